import Glibc
public import IOMMU
import IOMMUSimulation

extension Environment {
  /// This machine, a guest of `Tests/VirtualHardware/run`, with its devices bound to vfio-pci.
  ///
  /// The guest's variable SHARED_GROUP has the addresses of the devices that share a group; they are left as they are.
  public static func live(
    _ machine: String, interface: Interface, translation: TranslationChoice = .kernel
  ) throws -> Environment {
    var devices = Devices()
    if let text = unsafe getenv("SHARED_GROUP") {
      devices.sharedGroup = unsafe String(cString: text).split(separator: " ").map(String.init)
    }
    let host = Host.local()
    if host.kernel.effectiveUser() == 0 {
      let known =
        [devices.edu, devices.secondEdu, devices.narrowEdu, devices.nvme] + [devices.igb].compactMap(\.self)
      devices.spareEdus = try edus(on: host).filter { !known.contains($0) && !devices.sharedGroup.contains($0) }
      for address in known + devices.spareEdus { try bind(address, on: host) }
      // Bound one by one: the last one's own driver keeps the group from being viable.
      try takeEdus(of: devices.sharedGroup, on: host)
    }
    return Environment(
      host: host, interface: interface, translation: translation, machine: machine, devices: devices)
  }

  private static func edus(on host: Host) throws -> [String] {
    try host.devices(named: false).filter { $0.vendor == 0x1234 && $0.device == 0x11e8 }.map(\.address.description)
  }

  private static func bind(_ address: String, on host: Host) throws {
    guard let parsed = PCIAddress(address) else { throw Failure("\(address) is no PCI address") }
    try host.perform(try host.plan(.bind, of: parsed))
  }

  /// Gives the edu devices of the shared group to vfio-pci and leaves the last one alone, which the library would not do.
  static func takeEdus(of group: [String], on host: Host) throws {
    for address in group.dropLast() {
      try host.kernel.writeFile("/sys/bus/pci/devices/\(address)/driver_override", "vfio-pci")
      try host.kernel.writeFile("/sys/bus/pci/drivers_probe", address)
    }
  }

  /// Lets group 1001, `vfio` in the guests, use one edu device, as the rules of `udev/` would; the others stay root's.
  public func grant() throws {
    let details = try details(devices.edu)
    var nodes = ["/dev/iommu"]
    if let name = details.cdev { nodes.append("/dev/vfio/devices/\(name)") }
    if let group = details.group { nodes.append("/dev/vfio/\(group)") }
    for node in nodes {
      guard unsafe chown(node, 0, 1001) == 0, unsafe chmod(node, 0o660) == 0 else {
        throw Failure("\(node) cannot be given to group 1001: errno \(errno)")
      }
    }
    guard unsafe chmod("/dev/vfio/vfio", 0o666) == 0 else { throw Failure("/dev/vfio/vfio: errno \(errno)") }
  }

  /// A simulated machine with the guests' devices; names as the guest runner's, others are VT-d in legacy mode.
  ///
  /// - Parameter unprivileged: The process is an ordinary user's, as for ``Suite/unprivileged``.
  public static func simulated(
    _ name: String, interface: Interface, translation: TranslationChoice = .kernel, unprivileged: Bool = false
  ) -> Environment {
    var machine = SimulatedMachine.named(name)
    machine.usesFirstStage = name == "vtd-flts"
    machine.isolatesInterrupts = !name.hasSuffix("-no-remapping")
    if unprivileged { machine.restrict() }
    var devices = Devices()
    devices.igb = nil
    devices.sharedGroup = ["0000:02:01.0", "0000:02:02.0", "0000:02:03.0"]
    for (index, address) in devices.sharedGroup.enumerated() {
      var device = SimulatedDevice(address, EduModel(addressBits: 32))
      device.group = 100
      if index == 2 { (device.driver, device.hostDriver) = ("virtio-pci", "virtio-pci") }
      machine.devices.append(device)
    }
    let host = SimulatedHost(
      machine,
      devices: [
        devices.edu: EduModel(addressBits: 32), devices.secondEdu: EduModel(addressBits: 32),
        devices.narrowEdu: EduModel(addressBits: 28), devices.nvme: NVMeModel(),
      ])
    return Environment(
      host: host.host, interface: interface, translation: translation, machine: name, simulated: host,
      devices: devices)
  }
}

extension SimulatedMachine {
  fileprivate static func named(_ name: String) -> SimulatedMachine {
    switch name {
    case "smmuv3-nested": .smmuv3Nested
    case _ where name.hasPrefix("smmuv3"): .smmuv3
    case "vtd-caching": .vtdCaching
    case "vtd-nested": .vtdNested
    default: .vtd
    }
  }

  /// What `guest/unprivileged` does to a process: uid 1000 in the nodes' group, 8 MiB of lockable memory.
  fileprivate mutating func restrict() {
    let user = SimulatedMachine.unprivileged
    (self.user, groups, nodeGroup, nodeMode) = (user.user, user.groups, user.nodeGroup, user.nodeMode)
    (memoryLockLimit, canLockMemory) = (user.memoryLockLimit, user.canLockMemory)
  }
}
