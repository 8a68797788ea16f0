import IOMMU
import IOMMUSimulation
import Testing

/// Binding and unbinding drivers through sysfs.
@Suite struct DriverTests {
  static let address = "0000:03:00.0"
  static let device = "/sys/bus/pci/devices/\(address)"

  /// A machine whose one device is bound to a driver of the host.
  func hosted(_ change: (inout SimulatedDevice) -> Void = { _ in }) -> SimulatedHost {
    var machine = SimulatedMachine.vtd
    var device = SimulatedDevice(Self.address, EduModel())
    (device.driver, device.hostDriver) = ("edu-host", "edu-host")
    change(&device)
    machine.devices = [device]
    return SimulatedHost(machine)
  }

  func driver(_ kernel: SimulatedKernel) -> String? {
    (try? kernel.readLink("\(Self.device)/driver"))?.split(separator: "/").last.map(String.init)
  }

  @Test func fromTheHostToVFIOAndBack() throws {
    let kernel = hosted().kernel
    #expect(driver(kernel) == "edu-host")
    #expect(try kernel.listDirectory("/dev/vfio") == ["vfio"])
    try kernel.writeFile("\(Self.device)/driver_override", "vfio-pci\n")
    #expect(try kernel.text("\(Self.device)/driver_override") == "vfio-pci\n")
    try kernel.writeFile("/sys/bus/pci/drivers/edu-host/unbind", Self.address)
    #expect(driver(kernel) == nil)
    try kernel.writeFile("/sys/bus/pci/drivers/vfio-pci/bind", Self.address)
    #expect(driver(kernel) == "vfio-pci")
    #expect(try kernel.listDirectory("/dev/vfio") == ["0", "devices", "vfio"])
    #expect(try kernel.listDirectory("/dev/vfio/devices") == ["vfio0"])
    #expect(try kernel.listDirectory("\(Self.device)/vfio-dev") == ["vfio0"])
    // And back, by probing.
    try kernel.writeFile("/sys/bus/pci/drivers/vfio-pci/unbind", Self.address)
    #expect(try kernel.listDirectory("/dev/vfio") == ["devices", "vfio"])
    try kernel.writeFile("\(Self.device)/driver_override", "\n")
    try kernel.writeFile("/sys/bus/pci/drivers_probe", Self.address)
    #expect(driver(kernel) == "edu-host")
  }

  @Test func bindErrors() throws {
    let kernel = hosted().kernel
    let bind = "/sys/bus/pci/drivers/vfio-pci/bind"
    // Not the driver's device without driver_override; no such device; bound already.
    #expect(throws: Errno.noDevice) { try kernel.writeFile(bind, Self.address) }
    #expect(throws: Errno.noDevice) { try kernel.writeFile(bind, "0000:09:00.0") }
    #expect(throws: Errno.noDevice) { try kernel.writeFile(bind, "nonsense") }
    try kernel.writeFile("\(Self.device)/driver_override", "vfio-pci")
    #expect(throws: Errno.busy) { try kernel.writeFile(bind, Self.address) }
    #expect(throws: Errno.noDevice) {
      try kernel.writeFile("/sys/bus/pci/drivers/vfio-pci/unbind", Self.address)
    }
    #expect(throws: Errno.noDevice) { try kernel.writeFile("/sys/bus/pci/drivers_probe", "0000:09:00.0") }
    #expect(throws: Errno.noEntry) { try kernel.writeFile("/sys/bus/pci/drivers/other/bind", Self.address) }
    #expect(throws: Errno.accessDenied) { try kernel.readFile(bind) }
  }

  @Test func vfioRefusesAtBind() throws {
    let incoherent = hosted {
      ($0.driver, $0.isCoherent) = (nil, false)
    }.kernel
    try incoherent.writeFile("\(Self.device)/driver_override", "vfio-pci")
    #expect(throws: Errno.invalidArgument) {
      try incoherent.writeFile("/sys/bus/pci/drivers/vfio-pci/bind", Self.address)
    }
    // A probe fails without a word.
    try incoherent.writeFile("/sys/bus/pci/drivers_probe", Self.address)
    #expect(driver(incoherent) == nil)
    var machine = SimulatedMachine.withoutIOMMU
    var device = SimulatedDevice(Self.address, EduModel())
    device.driver = nil
    machine.devices = [device]
    let bare = SimulatedKernel(machine)
    try bare.writeFile("\(Self.device)/driver_override", "vfio-pci")
    #expect(throws: Errno.invalidArgument) {
      try bare.writeFile("/sys/bus/pci/drivers/vfio-pci/bind", Self.address)
    }
  }

  @Test func inUse() throws {
    let rig = try IOMMUFDRig()
    let event = try rig.kernel.createEvent()
    try rig.kernel.vfioSetInterrupts(rig.device, index: VFIOPCI.request, start: 0, events: [event])
    // Its user is asked; nobody lets go.
    #expect(throws: Errno.busy) {
      try rig.kernel.writeFile("/sys/bus/pci/drivers/vfio-pci/unbind", IOMMUFDRig.address)
    }
    #expect(try rig.kernel.takeEvent(event) == 1)
    rig.kernel.close(event)
    rig.kernel.close(rig.device)
    try rig.kernel.writeFile("/sys/bus/pci/drivers/vfio-pci/unbind", IOMMUFDRig.address)
    rig.close()
  }

  @Test func hostDriverCannotJoinAnOwnedGroup() throws {
    var machine = SimulatedMachine.vtd
    for function in 0..<2 {
      var device = SimulatedDevice("0000:05:00.\(function)", EduModel())
      (device.group, device.hostDriver) = (3, "edu-host")
      if function == 1 { device.driver = nil }
      machine.devices.append(device)
    }
    let simulated = SimulatedHost(machine)
    let kernel = simulated.kernel
    let iommufd = try kernel.open("/dev/iommu"), node = try kernel.open("/dev/vfio/devices/vfio0")
    _ = try kernel.vfioBind(node, iommufd: iommufd, token: nil)
    let bind = "/sys/bus/pci/drivers/edu-host/bind"
    #expect(throws: Errno.busy) { try kernel.writeFile(bind, "0000:05:00.1") }
    kernel.close(node)
    try kernel.writeFile(bind, "0000:05:00.1")
    #expect(throws: Errno.notPermitted) {
      let again = try kernel.open("/dev/vfio/devices/vfio0")
      defer { kernel.close(again) }
      _ = try kernel.vfioBind(again, iommufd: iommufd, token: nil)
    }
    kernel.close(iommufd)
    #expect(simulated.isClean)
  }
}
