// What the machine gives: an IOMMU in use, interrupts that it contains.
extension PreflightFacts {
  private static let tables = [
    ("DMAR", "intel_iommu=on"), ("IVRS", "amd_iommu=on"), ("IORT", "iommu.passthrough=0"),
    ("VIOT", "iommu=on"),
  ]
  private static let switches = [
    "iommu", "intel_iommu", "amd_iommu", "intremap", "nointremap", "vfio", "iommufd",
  ]

  /// The words of the kernel's command line that are about IOMMUs.
  private func commandLine(_ check: inout CheckDraft) -> [String] {
    var words: [String] = []
    _ = check.text("/proc/cmdline") { text in
      words = text.split(separator: " ").map(String.init)
        .filter { word in
          Self.switches.contains { word == $0 || word.hasPrefix("\($0)=") || word.hasPrefix("\($0).") }
        }
      return words.isEmpty ? "nothing about IOMMUs" : words.joined(separator: " ")
    }
    return words
  }

  func checkEnabled(_ check: inout CheckDraft) {
    let units = check.names(SysPath.units, leavingOut: IOMMUUnit.isMock), groups = check.names(SysPath.groups)
    let words = commandLine(&check)
    guard let units, let groups else {
      return check.conclude(
        .unknown, "Whether an IOMMU is in use could not be read.", remedy: "Run it as root.")
    }
    if group?.isNoIOMMU == true {
      check.note("\(SysPath.groups)/\(group!.id)/name", "vfio-noiommu")
      return check.conclude(
        .fail, "The group is in VFIO's no-IOMMU mode: nothing translates or contains the device's DMA.",
        remedy:
          "Enable the machine's IOMMU and switch vfio's enable_unsafe_noiommu_mode off. This library refuses that "
          + "mode.")
    }
    if units.isEmpty || groups.isEmpty { return concludeDisabled(&check, words, hasUnits: !units.isEmpty) }
    if let device {
      switch check.link("\(device.path)/iommu_group") {
      case .value: break
      case .absent:
        return check.conclude(
          .fail,
          "The kernel has an IOMMU in use, but none translates for this device: it has no IOMMU group.",
          remedy:
            "Put it into a slot that an IOMMU covers, or see whether firmware leaves it out of its IOMMU tables."
        )
      case .unreadable:
        return check.conclude(.unknown, "The device's group could not be read.", remedy: "Run it as root.")
      }
    }
    check.conclude(
      .ok, "The kernel drives \(count(units, "IOMMU unit")) and has \(count(groups, "group")) of devices.")
  }

  private func concludeDisabled(_ check: inout CheckDraft, _ words: [String], hasUnits: Bool) {
    let off = words.first { $0.hasSuffix("=off") && !$0.hasPrefix("intremap") }
    let table = Self.tables.first { check.exists("/sys/firmware/acpi/tables/\($0.0)") == true }
    if let off {
      check.conclude(
        .fail, "The kernel's command line switches the IOMMU off.", remedy: "Boot without `\(off)`.")
    } else if let table {
      check.conclude(
        .fail, "Firmware describes an IOMMU (ACPI table \(table.0)) that the kernel does not use.",
        remedy: "Boot with `\(table.1)` on the kernel's command line.")
    } else if hasUnits {
      check.conclude(
        .fail, "There is an IOMMU, but it translates for no device.",
        remedy: "Boot with `intel_iommu=on` (Intel) or without `iommu=off` on the kernel's command line.")
    } else {
      check.conclude(
        .fail, "The kernel knows of no IOMMU.",
        remedy:
          "Switch VT-d, AMD-Vi or the SMMU on in the firmware's set-up; in a virtual machine, give it a virtual "
          + "IOMMU, with QEMU `-device intel-iommu,intremap=on`, `-device virtio-iommu-pci` or `-machine virt,iommu=smmuv3`."
      )
    }
  }

  private func count(_ names: [String], _ noun: String) -> String {
    "\(names.count) \(noun)\(names.count == 1 ? "" : "s")"
  }

  // MARK: - Interrupts

  private static let unsafeFiles = [
    "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    "/sys/module/iommufd/parameters/allow_unsafe_interrupts",
  ]
  private static let risk =
    "a device can then write any interrupt to any CPU, so that one with a fault, or misled by its driver, can stop or "
    + "corrupt the host"

  func checkInterrupts(_ check: inout CheckDraft) {
    guard let units = try? host.units(), !units.isEmpty else {
      return check.conclude(.notApplicable, "No IOMMU is in use, so that none remaps interrupts.")
    }
    let allowed = Self.unsafeFiles.filter { check.text($0).value?.first == "Y" }
    let isolated = interruptsIsolated(&check, units)
    let words = commandLine(&check)
    if let file = allowed.first {
      let needed = isolated == true ? "is not needed here" : "is what lets devices be driven here"
      return check.conclude(
        .warn, "`allow_unsafe_interrupts` is set and \(needed): \(Self.risk).",
        remedy: "Switch interrupt remapping on and write N to \(file).")
    }
    switch isolated {
    case true?: check.conclude(.ok, "The hardware checks each interrupt message of a device against a table.")
    case nil:
      check.conclude(
        .unknown, "Whether interrupts are remapped could not be read.", remedy: "Run it as root.")
    case false?:
      let off = words.first { $0 == "nointremap" || $0 == "intremap=off" }
      let first =
        off.map { "Boot without `\($0)`." }
        ?? "Switch interrupt remapping (and x2APIC) on in the firmware's set-up; with QEMU `-device intel-iommu,intremap=on` "
        + "and `-machine kernel-irqchip=split`."
      check.conclude(
        .fail,
        "Interrupts are not remapped: VFIO refuses devices with EPERM, since one could send any interrupt.",
        remedy:
          "\(first) VFIO would accept the device with `allow_unsafe_interrupts=Y`, at a risk: \(Self.risk).")
    }
  }

  /// By the names of the interrupt controllers in use: `IR-` on x86, the ITS on Arm; else by the hardware's registers.
  private func interruptsIsolated(_ check: inout CheckDraft, _ units: [IOMMUUnit]) -> Bool? {
    var names: Set<String> = []
    _ = check.text("/proc/interrupts") { text in
      for line in text.split(separator: "\n") {
        for word in line.split(separator: " ") {
          for mark in ["IR-", "ITS-", "PCI-MSI", "IO-APIC", "GICv2m"] where word.hasPrefix(mark) {
            names.insert(mark)
          }
        }
      }
      return names.isEmpty
        ? "no controller of message interrupts" : names.sorted().map { "\($0)*" }.joined(separator: " ")
    }
    if names.contains("IR-") || names.contains("ITS-") { return true }
    for unit in units where unit.remapsInterrupts == false {
      check.note(
        "\(SysPath.units)/\(unit.name)/intel-iommu/ecap", "interrupt remapping (bit 3) not in the hardware")
      return false
    }
    return names.isEmpty ? nil : false
  }
}
