import IOMMU

// The files of groups, devices and drivers.

extension KernelState {
  func addFiles(of group: GroupState) {
    let base = "/sys/kernel/iommu_groups/\(group.number)"
    tree.add(base + "/devices", .directory)
    if group.isNoIOMMU {
      tree.addText(base + "/name", "vfio-noiommu")
    } else {
      // The host's own domains are lazy on x86; not with caching mode, unless tables are first-stage ones.
      let isStrict = machine.iommu == .smmuv3 || machine.cachingMode && !machine.usesFirstStage
      let type = isStrict ? "DMA" : "DMA-FQ"
      tree.addText(base + "/type", type, mode: 0o644)
    }
  }

  /// Where sysfs has a device.
  func path(of device: DeviceState) -> String {
    let root = "/sys/devices/pci\(hexadecimal(UInt64(device.address.domain), width: 4)):00"
    return root + (device.spec.bridge.map { "/\($0)" } ?? "") + "/\(device.address)"
  }

  private func relative(_ target: String, from device: DeviceState) -> String {
    // A link in /sys/devices/pci0000:00/<address> climbs three levels to /sys, and one more for a bridge.
    String(repeating: "../", count: device.spec.bridge == nil ? 3 : 4) + target
  }

  func addFiles(of device: DeviceState) {
    let (base, identity) = (path(of: device), device.identity)
    func number(_ value: some BinaryInteger, _ width: Int) -> String {
      "0x" + hexadecimal(UInt64(value), width: width)
    }
    tree.addText(base + "/vendor", number(identity.vendor, 4))
    tree.addText(base + "/device", number(identity.device, 4))
    tree.addText(base + "/subsystem_vendor", number(identity.subsystemVendor, 4))
    tree.addText(base + "/subsystem_device", number(identity.subsystemDevice, 4))
    tree.addText(base + "/class", number(identity.classCode, 6))
    tree.addText(base + "/revision", number(identity.revision, 2))
    tree.addText(base + "/numa_node", "\(device.spec.numaNode)", mode: 0o644)
    tree.addText(base + "/power_state", "D0")
    tree.addText(base + "/ari_enabled", "0")
    tree.addText(base + "/msi_bus", "1", mode: 0o644)
    tree.addText(base + "/local_cpulist", "0")
    tree.addText(base + "/irq", identity.hasINTx ? "10" : "0")
    tree.addText(base + "/enable", "0", mode: 0o644)
    tree.addText(base + "/dma_mask_bits", "32")
    tree.addText(base + "/consistent_dma_mask_bits", "32")
    tree.addText(base + "/modalias", modalias(identity))
    tree.add(base + "/resource", .file(.resource(device.address), mode: 0o444))
    for (index, bar) in identity.bars.enumerated() where bar.byteCount > 0 {
      // A file to be mapped, not read; nobody maps it here.
      tree.add(base + "/resource\(index)", .file(.ignored(""), mode: 0o600))
    }
    tree.add(base + "/config", .file(.config(device.address), mode: 0o644))
    tree.add(base + "/driver_override", .file(.driverOverride(device.address), mode: 0o644))
    tree.add(base + "/remove", .file(.removeDevice(device.address), mode: 0o220))
    if identity.canReset {
      tree.addText(base + "/reset_method", "flr", mode: 0o644)
      tree.add(base + "/reset", .file(.ignored(""), mode: 0o200))
    }
    tree.add(base + "/subsystem", .link(relative("bus/pci", from: device)))
    let below = path(of: device).dropFirst("/sys/".count)
    tree.add("/sys/bus/pci/devices/\(device.address)", .link("../../../" + below))
    addGroupLinks(of: device, base: base, below: String(below))
  }

  private func addGroupLinks(of device: DeviceState, base: String, below: String) {
    guard let group = device.group else { return }
    let groupPath = "kernel/iommu_groups/\(group.number)"
    tree.add(base + "/iommu_group", .link(relative(groupPath, from: device)))
    tree.add("/sys/\(groupPath)/devices/\(device.address)", .link("../../../../" + below))
    if let unit = unitPath(device.unit) {
      let up = String(repeating: "../", count: device.spec.bridge == nil ? 2 : 3)
      tree.add(base + "/iommu", .link(up + unit.path.dropFirst("devices/".count)))
      let climb = String(repeating: "../", count: unit.path.split(separator: "/").count + 1)
      tree.add("/sys/\(unit.path)/devices/\(device.address)", .link(climb + below))
    }
    guard !group.isNoIOMMU else { return }
    var regions: [ReservedSpan] = []
    for region in group.members.flatMap({ reservedRegions(of: $0) }) + reservedRegions(of: device)
    where !regions.contains(where: { $0.span == region.span && $0.type == region.type }) {
      regions.append(region)
    }
    let lines = regions.sorted { $0.span.start < $1.span.start }.map {
      "0x\(hexadecimal($0.span.start, width: 16)) 0x\(hexadecimal($0.span.last, width: 16)) \($0.type)\n"
    }
    tree.add("/sys/\(groupPath)/reserved_regions", .file(.text(lines.joined()), mode: 0o444))
  }

  private func modalias(_ identity: DeviceIdentity) -> String {
    func upper(_ value: some BinaryInteger, _ width: Int) -> String {
      hexadecimal(UInt64(value), width: width).uppercased()
    }
    let code = identity.classCode
    return
      "pci:v\(upper(identity.vendor, 8))d\(upper(identity.device, 8))sv\(upper(identity.subsystemVendor, 8))"
      + "sd\(upper(identity.subsystemDevice, 8))bc\(upper(code >> 16 & 0xff, 2))sc\(upper(code >> 8 & 0xff, 2))"
      + "i\(upper(code & 0xff, 2))"
  }

  /// Lines of start, end and flags: six BARs, the ROM, six for SR-IOV; a bridge has four windows more.
  func resourceLines(_ device: DeviceState) -> String {
    var lines: [String] = []
    for index in 0..<13 {
      let byteCount = device.barByteCount(index)
      guard index < 6, byteCount > 0 else {
        lines.append("0x0000000000000000 0x0000000000000000 0x0000000000000000")
        continue
      }
      let start = device.barBases[index]
      let flags: UInt64 = 0x40200 | (device.identity.bars[index].is64Bit ? 0x100000 : 0)
      lines.append(resourceLine(start, start + byteCount - 1, flags))
    }
    if device.identity.isBridge { lines += windowLines(device) }
    return lines.joined(separator: "\n") + "\n"
  }

  private func resourceLine(_ start: UInt64, _ last: UInt64, _ flags: UInt64) -> String {
    [start, last, flags].map { "0x" + hexadecimal($0, width: 16) }.joined(separator: " ")
  }

  /// A bridge's windows: I/O, memory around the BARs behind it in megabytes, prefetchable memory, unused.
  private func windowLines(_ bridge: DeviceState) -> [String] {
    let behind = devices.values.filter { $0.spec.bridge == bridge.spec.address }
    let bars = behind.flatMap { device in
      device.barBases.enumerated().filter { $0.element != 0 }.map {
        Span64(start: $0.element, last: $0.element + device.barByteCount($0.offset) - 1)
      }
    }
    let none = resourceLine(0, 0, 0)
    guard let first = bars.map(\.start).min(), let last = bars.map(\.last).max() else {
      return [none, none, none, none]
    }
    return [none, resourceLine(first & ~0xf_ffff, last | 0xf_ffff, 0x200), none, none]
  }
}
