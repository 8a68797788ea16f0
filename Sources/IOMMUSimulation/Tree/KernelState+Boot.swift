import IOMMU

// The tree as it is after boot, and the devices in it.

extension KernelState {
  /// Makes groups, devices and files. Slots are made by the caller, since models keep their bus.
  func boot(_ slots: [(device: SimulatedDevice, address: PCIAddress, slot: DeviceSlot)]) {
    addMachineFiles()
    var nextGroup = 0
    // Above the memory of the machine, below 4 GiB as firmware likes it.
    var nextBase: UInt64 = 0xa000_0000
    let taken = Set(slots.compactMap(\.device.group))
    for (spec, address, slot) in slots {
      let group = group(of: spec, next: &nextGroup, taken: taken)
      let units = (group?.members ?? []).map(\.unit) + [spec.iommuUnit]
      precondition(units.allSatisfy { $0 == units[0] && $0 >= 0 }, "a group has one IOMMU, of a number from 0 on")
      let bases = placeBARs(spec.model.identity, from: &nextBase)
      let device = DeviceState(spec, at: address, slot: slot, group: group, barBases: bases)
      group?.members.append(device)
      devices[address] = device
      addFiles(of: device)
      if let hostDriver = spec.hostDriver { addDriver(hostDriver) }
      if let driver = spec.driver { settle(device, driver) }
    }
  }

  /// Gives each BAR a naturally aligned place.
  private func placeBARs(_ identity: DeviceIdentity, from next: inout UInt64) -> [UInt64] {
    var bases: [UInt64] = []
    for bar in identity.bars {
      guard bar.byteCount > 0 else {
        bases.append(0)
        continue
      }
      let base = (next + bar.byteCount - 1) & ~(bar.byteCount - 1)
      bases.append(base)
      next = base + bar.byteCount
    }
    return bases
  }

  /// The group that the machine's description names, or the next free one; none without an IOMMU.
  private func group(of spec: SimulatedDevice, next: inout Int, taken: Set<Int>) -> GroupState? {
    guard machine.iommu != nil || machine.noIOMMUMode else { return nil }
    while taken.contains(next) || groups[next] != nil { next += 1 }
    let number = machine.iommu == nil ? next : spec.group ?? next
    if let group = groups[number] { return group }
    let group = GroupState(number: number, isNoIOMMU: machine.iommu == nil)
    groups[number] = group
    addFiles(of: group)
    return group
  }

  private func addMachineFiles() {
    for name in ["vfio-pci", "pci-stub", "pcieport"] { addDriver(name) }
    tree.add("/sys/bus/pci/drivers_probe", .file(.probe, mode: 0o200))
    tree.addText("/sys/bus/pci/drivers_autoprobe", "1", mode: 0o644)
    tree.add("/sys/bus/pci/rescan", .file(.ignored(""), mode: 0o200))
    tree.add("/sys/bus/pci/devices", .directory)
    tree.add("/sys/kernel/iommu_groups", .directory)
    tree.add("/sys/class/iommu", .directory)
    tree.add("/proc/self/status", .file(.processStatus, mode: 0o444))
    tree.addText("/proc/cmdline", machine.iommu == .vtd ? "console=ttyS0 intel_iommu=on" : "console=ttyAMA0")
    tree.addText("/proc/interrupts", "           CPU0\n 24:          1  \(messageController)  0-edge")
    tree.add("/proc/modules", .file(.text(""), mode: 0o444))
    tree.addText("/proc/sys/kernel/osrelease", "7.2.0-simulated")
    addModuleParameters()
    for number in 0..<machine.unitCount { addIOMMUUnit(number) }
    if machine.interfaces.contains(.iommufd) { tree.add("/dev/iommu", .node(.iommufd)) }
    tree.add("/dev/vfio", .directory)
    if machine.interfaces.contains(.type1) { tree.add("/dev/vfio/vfio", .node(.container)) }
  }

  /// The interrupt controller of messages: its name tells whether the platform keeps devices' interrupts apart.
  private var messageController: String {
    switch (machine.iommu, machine.isolatesInterrupts) {
    case (.smmuv3, true): "ITS-PCI-MSI-0000:00:01.0"
    case (.smmuv3, false): "GICv2m-PCI-MSI-0000:00:01.0"
    case (.vtd, true): "IR-PCI-MSI-0000:00:01.0"
    case (.vtd, false), (nil, _): "PCI-MSI-0000:00:01.0"
    }
  }

  private func addModuleParameters() {
    let unsafe = machine.allowsUnsafeInterrupts ? "Y" : "N"
    if machine.interfaces.contains(.type1) {
      let folder = "/sys/module/vfio_iommu_type1/parameters/"
      tree.addText(folder + "allow_unsafe_interrupts", unsafe, mode: 0o644)
      tree.addText(folder + "dma_entry_limit", "\(machine.mappingLimit)", mode: 0o644)
      tree.addText(folder + "disable_hugepages", "N", mode: 0o644)
    }
    if machine.interfaces.contains(.iommufd) {
      tree.addText("/sys/module/iommufd/parameters/allow_unsafe_interrupts", unsafe, mode: 0o644)
    }
    let noIOMMU = machine.noIOMMUMode ? "Y" : "N"
    tree.addText("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", noIOMMU, mode: 0o644)
    for name in ["disable_idle_d3", "enable_sriov", "nointxmask"] {
      tree.addText("/sys/module/vfio_pci/parameters/\(name)", "N", mode: 0o644)
    }
  }

  /// Where sysfs has an IOMMU, below /sys.
  func unitPath(_ number: Int) -> (name: String, path: String)? {
    switch machine.iommu {
    case .vtd: return ("dmar\(number)", "devices/virtual/iommu/dmar\(number)")
    case .smmuv3:
      let name = "smmu3.0x" + hexadecimal(0x905_0000 + UInt64(number) * 0x10_0000, width: 16)
      return (name, "devices/platform/arm-smmu-v3.\(number).auto/iommu/\(name)")
    case nil: return nil
    }
  }

  private func addIOMMUUnit(_ number: Int) {
    guard let unit = unitPath(number), let kind = machine.iommu else { return }
    let base = "/sys/" + unit.path
    tree.add(base, .directory)
    tree.add("/sys/class/iommu/" + unit.name, .link("../../" + unit.path))
    tree.add(base + "/devices", .directory)
    guard kind == .vtd else { return }
    let registers = HardwareRegisters(machine, kind)
    tree.addText(base + "/intel-iommu/version", "1:0")
    tree.addText(base + "/intel-iommu/address", String(0xfed9_0000 + number * 0x1000, radix: 16))
    tree.addText(base + "/intel-iommu/cap", String(registers.capability, radix: 16))
    tree.addText(base + "/intel-iommu/ecap", String(registers.extendedCapability, radix: 16))
    tree.addText(base + "/intel-iommu/domains_supported", "65536")
    tree.addText(base + "/intel-iommu/domains_used", "1")
  }
}
