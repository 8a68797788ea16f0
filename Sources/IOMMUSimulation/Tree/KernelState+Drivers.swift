import IOMMU

// Drivers: binding, unbinding, and the nodes that come and go with vfio-pci.

extension KernelState {
  func addDriver(_ name: String) {
    let base = "/sys/bus/pci/drivers/\(name)"
    tree.add(base + "/bind", .file(.bind(driver: name), mode: 0o200))
    tree.add(base + "/unbind", .file(.unbind(driver: name), mode: 0o200))
    tree.add(base + "/new_id", .file(.ignored(""), mode: 0o200))
  }

  /// Writes to a driver's `bind`: ENODEV when the device is not there or not the driver's, EBUSY when it is bound.
  func bind(_ text: String, to driver: String) throws(Errno) {
    guard let device = device(named: text), driverMatches(device, driver) else { throw .noDevice }
    guard device.driver == nil else { throw .busy }
    try probe(device, driver)
  }

  /// Writes to a driver's `unbind`. ENODEV when the device is not bound to it.
  ///
  /// A real kernel asks the user of an open device to let go and waits. Here the request is sent, and EBUSY says that
  /// nobody let go: a test must not hang.
  func unbind(_ text: String, from driver: String) throws(Errno) {
    guard let device = device(named: text), device.driver == driver else { throw .noDevice }
    guard device.openCount == 0 else {
      device.interrupts.request()
      throw .busy
    }
    unsettle(device)
  }

  /// Writes to `drivers_probe`: the driver that matches takes the device, or fails without a word. ENODEV when there
  /// is no such device.
  func probeDrivers(_ text: String) throws(Errno) {
    guard let device = device(named: text) else { throw .noDevice }
    guard device.driver == nil else { return }
    let driver = device.driverOverride ?? device.spec.hostDriver
    guard let driver, tree.nodes["/sys/bus/pci/drivers/\(driver)"] != nil else { return }
    try? probe(device, driver)
  }

  private func device(named text: String) -> DeviceState? {
    PCIAddress(text.trimmingNewline).flatMap { devices[$0] }.flatMap { $0.isGone ? nil : $0 }
  }

  /// driver_override names the only driver that matches; without it a driver takes what is in its table.
  private func driverMatches(_ device: DeviceState, _ driver: String) -> Bool {
    if let override = device.driverOverride { return override == driver }
    return device.spec.hostDriver == driver
  }

  private func probe(_ device: DeviceState, _ driver: String) throws(Errno) {
    if driver == "vfio-pci" {
      guard !device.identity.isBridge else { throw .invalidArgument }
      guard let group = device.group, group.isNoIOMMU || device.spec.isCoherent else {
        throw .invalidArgument
      }
    } else if let group = device.group, group.ownerCount > 0, driver != "pci-stub" {
      // A host driver cannot have DMA in a group that a user has.
      throw .busy
    }
    settle(device, driver)
  }

  /// Binds without asking.
  func settle(_ device: DeviceState, _ driver: String) {
    if tree.nodes["/sys/bus/pci/drivers/\(driver)"] == nil { addDriver(driver) }
    device.driver = driver
    let below = path(of: device).dropFirst("/sys/".count)
    let up = String(repeating: "../", count: device.spec.bridge == nil ? 3 : 4)
    tree.add(path(of: device) + "/driver", .link(up + "bus/pci/drivers/\(driver)"))
    tree.add("/sys/bus/pci/drivers/\(driver)/\(device.address)", .link("../../../../" + below))
    if driver == "vfio-pci" { addNodes(of: device) }
  }

  func unsettle(_ device: DeviceState) {
    guard let driver = device.driver else { return }
    if driver == "vfio-pci" { removeNodes(of: device) }
    tree.remove("/sys/bus/pci/drivers/\(driver)/\(device.address)")
    tree.remove(path(of: device) + "/driver")
    device.driver = nil
  }

  /// vfio-pci makes the device's own node and, with the first device of a group, the group's.
  private func addNodes(of device: DeviceState) {
    guard let group = device.group else { return }
    if machine.interfaces.contains(.type1) {
      tree.add("/dev/vfio/\(group.nodeName)", .node(.group(group.number)))
      tree.addText("/sys/devices/virtual/vfio/\(group.nodeName)/dev", "254:\(group.number)")
      tree.add("/sys/class/vfio/\(group.nodeName)", .link("../../devices/virtual/vfio/\(group.nodeName)"))
    }
    guard machine.hasDeviceNodes, machine.interfaces.contains(.iommufd), !group.isNoIOMMU else { return }
    var number = 0
    let taken = Set(devices.values.compactMap(\.nodeNumber))
    while taken.contains(number) { number += 1 }
    device.nodeNumber = number
    let folder = path(of: device) + "/vfio-dev/vfio\(number)"
    tree.addText(folder + "/dev", "253:\(number)")
    tree.add(folder + "/device", .link("../../../\(device.address)"))
    let below = path(of: device).dropFirst("/sys/".count)
    tree.add("/sys/class/vfio-dev/vfio\(number)", .link("../../\(below)/vfio-dev/vfio\(number)"))
    tree.add("/dev/vfio/devices/vfio\(number)", .node(.device(device.address)))
  }

  private func removeNodes(of device: DeviceState) {
    guard let group = device.group else { return }
    let others = group.members.contains { $0 !== device && $0.driver == "vfio-pci" }
    if !others {
      tree.remove("/dev/vfio/\(group.nodeName)")
      tree.remove("/sys/devices/virtual/vfio/\(group.nodeName)")
      tree.remove("/sys/class/vfio/\(group.nodeName)")
    }
    guard let number = device.nodeNumber else { return }
    tree.remove("/dev/vfio/devices/vfio\(number)")
    tree.remove(path(of: device) + "/vfio-dev")
    tree.remove("/sys/class/vfio-dev/vfio\(number)")
    device.nodeNumber = nil
  }
}

extension String {
  /// Without the newline that `echo` adds.
  var trimmingNewline: String { hasSuffix("\n") ? String(dropLast()) : self }
}
