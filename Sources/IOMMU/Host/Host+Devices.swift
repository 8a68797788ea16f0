extension Host {
  /// Every PCI device, by address.
  ///
  /// Reads six to eight small files a device; O(devices). Names cost one load of pci.ids, some 15 ms, for the whole
  /// list. Nothing that a tree holds makes it throw or trap: what is unreadable or senseless is in
  /// ``PCIDevice/unread``. The source is `/sys/bus/pci/devices`.
  ///
  /// - Parameter named: Whether to look names up; false saves the load.
  /// - Throws: ``DMAError/Code-swift.struct/corruptTree`` when there is no sysfs, or when the list itself cannot be read.
  public func devices(named: Bool = true) throws(DMAError) -> [PCIDevice] {
    let entries: [String]
    do { entries = try kernel.listDirectory(SysPath.devices) } catch {
      guard error == .noEntry else { throw unreadable(SysPath.devices, error) }
      try requireSysfs()
      return []  // A machine without PCI.
    }
    var devices = entries.compactMap { PCIAddress(sysfsName: $0[...]) }.sorted().map(read)
    settle(&devices)
    if named { name(&devices) }
    return devices
  }

  /// One PCI device, and as much of its group as its status needs.
  ///
  /// - Parameters:
  ///   - address: Where it sits.
  ///   - named: Whether to look names up, which loads pci.ids.
  /// - Throws: ``DMAError/Code-swift.struct/noSuchDevice``; ``DMAError/Code-swift.struct/corruptTree`` when there is no
  ///   sysfs.
  public func device(_ address: PCIAddress, named: Bool = true) throws(DMAError) -> PCIDevice {
    // What the list names is a device, whatever can be read of it.
    do { _ = try kernel.readLink(PCIDevice.path(of: address)) } catch {
      if error == .notDirectory { throw unreadable(SysPath.devices, error) }
      guard error == .noEntry else { return settled(address, named: named) }
      try requireSysfs()
      throw DMAError(
        .noSuchDevice, "find", errno: error, device: address.description, remedy: whichDevices())
    }
    return settled(address, named: named)
  }

  /// Which devices there are, or how to see them.
  func whichDevices() -> String {
    if isCaptured { return "`iommuctl list` with the same --root shows the devices of the captured machine" }
    guard isSimulated else { return "`iommuctl list` shows the devices of this machine" }
    // Another simulated machine than iommuctl's may be meant: a test's.
    let names = ((try? kernel.listDirectory(SysPath.devices)) ?? []).sorted()
    let more = names.count > 8 ? " …" : ""
    return "The simulated machine has \(names.isEmpty ? "no device" : names.prefix(8).joined(separator: ", "))\(more)"
  }

  private func settled(_ address: PCIAddress, named: Bool) -> PCIDevice {
    var devices = [read(address)]
    settle(&devices)
    if named { name(&devices) }
    return devices[0]
  }

  /// Everything but names and status.
  func read(_ address: PCIAddress) -> PCIDevice {
    var device = PCIDevice(address: address), reader = FileReader(kernel)
    let path = device.path
    readIdentity(&device, path, &reader)
    readPlace(&device, path)
    device.driver = reader.linkName("\(path)/driver")
    device.driverOverride = reader.text("\(path)/driver_override", optional: true)
      .flatMap { $0.isEmpty || $0 == "(null)" ? nil : $0 }
    if let name = reader.linkName("\(path)/iommu_group") {
      device.group = Field.number(Array(name.utf8)[...]).flatMap { (id: Int) in id < 0 ? nil : id }
      if device.group == nil { reader.note("\(path)/iommu_group") }
    }
    if device.group != nil { device.unit = reader.linkName("\(path)/iommu") }
    let mayHaveNode = device.driver.map(VFIODriver.drives) ?? reader.unread.contains("\(path)/driver")
    if mayHaveNode { device.cdev = readNode(path, &reader) }
    let node: Int? = reader.number("\(path)/numa_node", optional: true)
    device.numaNode = node.flatMap { $0 < 0 ? nil : $0 }
    device.unread = reader.unread
    return device
  }

  /// The ids, from one file that holds them all, else from one file each.
  private func readIdentity(_ device: inout PCIDevice, _ path: String, _ reader: inout FileReader) {
    for line in (try? kernel.readFile("\(path)/uevent")).map({ Field.lines($0[...]) }) ?? [] {
      let parts = line.split(separator: UInt8(ascii: "="), maxSplits: 1)
      guard parts.count == 2 else { continue }
      let ids = parts[1].split(separator: UInt8(ascii: ":")).compactMap { Field.hex($0) as UInt16? }
      if parts[0].elementsEqual("PCI_CLASS".utf8) {
        device.classCode = Field.hex(parts[1])
      } else if parts[0].elementsEqual("PCI_ID".utf8), ids.count == 2 {
        (device.vendor, device.device) = (ids[0], ids[1])
      } else if parts[0].elementsEqual("PCI_SUBSYS_ID".utf8), ids.count == 2 {
        (device.subsystemVendor, device.subsystemDevice) = (ids[0], ids[1])
      }
    }
    if device.vendor == nil { device.vendor = reader.number("\(path)/vendor") }
    if device.device == nil { device.device = reader.number("\(path)/device") }
    if device.classCode == nil { device.classCode = reader.number("\(path)/class") }
    if device.subsystemVendor == nil {
      device.subsystemVendor = reader.number("\(path)/subsystem_vendor", optional: true)
    }
    if device.subsystemDevice == nil {
      device.subsystemDevice = reader.number("\(path)/subsystem_device", optional: true)
    }
    if let code = device.classCode, code > 0xff_ffff {
      device.classCode = nil
      reader.note("\(path)/class")
    }
  }

  /// Root bus and bridges, from the components of `../../../devices/pci0000:00/0000:00:1c.0/0000:03:00.0`.
  private func readPlace(_ device: inout PCIDevice, _ path: String) {
    // In a captured tree it may be a directory: then the place is not told.
    guard let target = try? kernel.readLink(path) else { return }
    for component in target.split(separator: "/").dropLast() {
      if let bridge = PCIAddress(sysfsName: component) {
        device.upstream.append(bridge)
      } else if component.utf8.starts(with: "pci".utf8), component.utf8.contains(UInt8(ascii: ":")) {
        device.rootBus = String(component)
      }
    }
  }

  /// The device's own node. Kernels before 6.6 have the directory but no such node: then `dev` is missing.
  private func readNode(_ path: String, _ reader: inout FileReader) -> String? {
    for name in reader.names("\(path)/vfio-dev", optional: true) {
      guard let name = Field.lastComponent(name), name.contains("vfio") else { continue }
      if reader.exists("\(path)/vfio-dev/\(name)/dev") != false { return name }
      if reader.exists("/dev/vfio/devices/\(name)") == true { return name }
    }
    return nil
  }

  func requireSysfs() throws(DMAError) {
    if (try? kernel.status("/sys"))?.kind == .directory, (try? kernel.listDirectory("/sys"))?.isEmpty == false {
      return
    }
    throw DMAError(
      .corruptTree, "read /sys", detail: "There is no sysfs here",
      remedy: "Mount sysfs at /sys, or name a root that holds sys/, proc/ and dev/")
  }

  func unreadable(_ path: String, _ error: Errno) -> DMAError {
    let isDenied = error == .accessDenied || error == .notPermitted
    return DMAError(
      isDenied ? .permission : .corruptTree, "read \(path)", errno: error,
      remedy: isDenied ? "Run it as root, or with leave to read \(path)" : nil)
  }
}
