// What the kernel has: modules, iommufd, type1's limit.
extension PreflightFacts {
  /// How a module stands.
  private enum Module { case loaded, loadable, missing, unknown }

  /// By sysfs, then by the kernel's module directory.
  private func module(_ name: String, file: String, _ check: inout CheckDraft) -> Module {
    if check.exists("/sys/module/\(name)") == true { return .loaded }
    var reader = FileReader(kernel)
    guard let release = reader.text("/proc/sys/kernel/osrelease"), Field.lastComponent(release) == release,
      reader.exists("/lib/modules/\(release)") == true
    else { return .unknown }
    let directory = "/lib/modules/\(release)"
    if let builtIn = reader.text("\(directory)/modules.builtin", optional: true), builtIn.contains("/\(file)") {
      check.note("\(directory)/modules.builtin", file)
      return .loaded
    }
    for suffix in ["", ".zst", ".xz", ".gz"] {
      let path = "\(directory)/kernel/drivers/\(file)\(suffix)"
      guard reader.exists(path) == true else { continue }
      check.note(path, "there")
      return .loadable
    }
    check.note("\(directory)/kernel/drivers/\(file)", "not there")
    return .missing
  }

  func checkModules(_ check: inout CheckDraft) {
    let hasDriver = check.exists("\(SysPath.drivers)/vfio-pci")
    let type1 = module("vfio_iommu_type1", file: "vfio/vfio_iommu_type1.ko", &check)
    let iommufd = check.exists("/dev/iommu") == true
    guard hasDriver == true || device?.isBoundToVFIO == true else {
      switch module("vfio_pci", file: "vfio/pci/vfio-pci.ko", &check) {
      case .missing:
        return check.conclude(
          .fail, "The kernel was built without vfio-pci.", remedy: "Boot a kernel with CONFIG_VFIO_PCI.")
      case .unknown where hasDriver == nil:
        return check.conclude(
          .unknown, "Whether vfio-pci is loaded could not be read.", remedy: "Run it as root.")
      case .loaded, .loadable, .unknown:
        return check.conclude(
          .fail, "vfio-pci, the driver that hands a device to a process, is not loaded.",
          remedy:
            "`sudo modprobe vfio-pci`, and a file /etc/modules-load.d/vfio-pci.conf with the line `vfio-pci` for later boots."
        )
      }
    }
    guard iommufd || type1 == .loaded else {
      return check.conclude(
        .fail, "vfio-pci is loaded, but neither iommufd nor type1, which would map memory for the device.",
        remedy: "`sudo modprobe vfio_iommu_type1` or `sudo modprobe iommufd`.")
    }
    let present = [iommufd ? "iommufd" : nil, type1 == .loaded ? "type1" : nil].compactMap { $0 }
    check.conclude(.ok, "vfio-pci is loaded, and for mapping memory \(present.joined(separator: " and ")).")
  }

  func checkIOMMUFD(_ check: inout CheckDraft) {
    let node = check.exists("/dev/iommu")
    if node == true {
      return check.conclude(.ok, "The kernel has iommufd, the newer of the two interfaces that map memory.")
    }
    let state = module("iommufd", file: "iommu/iommufd/iommufd.ko", &check)
    let fallback = check.exists("/dev/vfio/vfio") == true
    let means = fallback ? " type1 is used in its place." : " There is no type1 either."
    let verdict: Preflight.Verdict = fallback ? .warn : .fail
    switch state {
    case .loaded:
      check.conclude(
        verdict, "The kernel has iommufd, but its node /dev/iommu is not there.\(means)",
        remedy: "See whether udev runs here, and in a container, pass /dev/iommu in.")
    case .loadable:
      check.conclude(
        verdict, "The kernel has iommufd, which is not loaded.\(means)", remedy: "`sudo modprobe iommufd`.")
    case .missing:
      check.conclude(
        verdict, "The kernel was built without iommufd.\(means)",
        remedy: fallback
          ? "Nothing, if type1 is enough; else Linux 6.6 or later with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV."
          : "`sudo modprobe vfio-pci`.")
    case .unknown:
      check.conclude(
        node == nil ? .unknown : verdict,
        "iommufd is not loaded, or this kernel was built without it.\(means)",
        remedy: "`sudo modprobe iommufd`; if there is no such module, Linux 6.6 or later with CONFIG_IOMMUFD.")
    }
  }

  func checkEntries(_ check: inout CheckDraft) {
    let path = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit"
    switch check.text(path) {
    case .absent: check.conclude(.notApplicable, "type1 is not loaded.")
    case .unreadable:
      check.conclude(.unknown, "type1's limit of mappings could not be read.", remedy: "Run it as root.")
    case .value(let text):
      guard let limit = UInt32(text) else {
        return check.conclude(.unknown, "type1's limit of mappings makes no sense.")
      }
      if limit < 65_535 {
        return check.conclude(
          .warn,
          "On type1 a container can have \(limit) mappings at a time, fewer than the kernel's default 65535.",
          remedy:
            "Load vfio_iommu_type1 with a larger dma_entry_limit, or use iommufd, which has no such limit.")
      }
      check.conclude(
        .ok, "On type1 a container can have \(limit) mappings at a time; iommufd has no such limit.")
    }
  }
}
