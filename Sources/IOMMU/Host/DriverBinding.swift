/// What has to be written to sysfs to give a device, with its group, to VFIO, to no driver, or back to its own.
///
/// ```swift
/// let plan = try host.plan(.bind, of: address)
/// for write in plan.writes { print(write.path, write.value) }      // --dry-run
/// try host.perform(plan)
/// ```
///
/// The kernel interface is `driver_override` with `drivers_probe`, which touches only the devices that are named.
public struct DriverBinding: Hashable, Sendable {
  /// What it comes to.
  public let action: Action
  /// The device that was named.
  public let device: PCIAddress
  /// The writes, in their order; empty when all is as wanted already.
  public var writes: [Write] { steps.map(\.write) }
  /// Members of the group that are left as they are: bridges, and devices that leave the group viable.
  public internal(set) var skipped: [IOMMUGroup.Member] = []
  /// Sentences on what the user may miss afterwards.
  public internal(set) var warnings: [String] = []

  var steps: [Step] = []
  /// Former drivers to be remembered before the first write.
  var remembers: [FormerDriver] = []
  /// Devices whose former driver is to be forgotten after the last write.
  var forgets: [PCIAddress] = []
  /// The group's node, to be tried before VFIO's driver loses a device: an unbind waits for its user without end.
  var groupNode: String?

  init(_ action: Action, _ device: PCIAddress) { (self.action, self.device) = (action, device) }

  /// What to do with a device.
  public enum Action: String, Hashable, Sendable, CaseIterable {
    /// Give its whole group to vfio-pci.
    case bind
    /// Take it off its driver; when that is VFIO, the group's other devices as well.
    case unbind
    /// Give its whole group back to the drivers that it had before `bind` or `unbind`.
    case restore
  }

  /// A write to sysfs.
  public struct Write: Hashable, Sendable {
    /// The file.
    public let path: String
    /// The text; a line end alone clears an override.
    public let value: String
  }

  /// A write, how to take it back, and what must be so afterwards.
  struct Step: Hashable, Sendable {
    let write: Write
    let undo: Write
    let device: PCIAddress
    /// The driver that the device must have after the write, when the write binds.
    var driver: String?
  }
}

extension DriverBinding {
  /// Adds the steps that take a device from one driver and override to others. `driver` nil leaves it unbound.
  mutating func move(_ device: PCIDevice, to driver: String?, override: String?, probing: Bool = false) {
    let address = device.address.description, changesDriver = device.driver != driver || driver == nil
    if let old = device.driver, changesDriver {
      steps.append(Step(write: .unbind(address, old), undo: .bind(address, old), device: device.address))
    }
    if device.driverOverride != override {
      let path = "\(device.path)/driver_override"
      let undo = Write(path: path, value: device.driverOverride ?? "\n")
      steps.append(
        Step(write: Write(path: path, value: override ?? "\n"), undo: undo, device: device.address))
    }
    if probing, driver == nil {
      // The driver that takes it is for the kernel to choose; taken back by the file of the device.
      let undo = Write(path: "\(device.path)/driver/unbind", value: address)
      steps.append(Step(write: .probe(address), undo: undo, device: device.address))
    } else if let driver, changesDriver {
      let write: Write = override == driver ? .probe(address) : .bind(address, driver)
      steps.append(Step(write: write, undo: .unbind(address, driver), device: device.address, driver: driver))
    }
  }
}

extension DriverBinding.Write {
  fileprivate static func bind(_ address: String, _ driver: String) -> Self {
    Self(path: "\(SysPath.drivers)/\(driver)/bind", value: address)
  }
  fileprivate static func unbind(_ address: String, _ driver: String) -> Self {
    Self(path: "\(SysPath.drivers)/\(driver)/unbind", value: address)
  }
  fileprivate static func probe(_ address: String) -> Self {
    Self(path: "/sys/bus/pci/drivers_probe", value: address)
  }
}

/// The driver and the override that a device had before this library changed them.
struct FormerDriver: Hashable, Sendable {
  let device: PCIAddress
  let driver: String?
  let override: String?

  static let directory = "/run/iommuctl"
  static func path(of device: PCIAddress) -> String { "\(directory)/\(device)" }

  init(_ device: PCIDevice) {
    (self.device, driver, override) = (device.address, device.driver, device.driverOverride)
  }

  var text: String { "driver=\(driver ?? "")\noverride=\(override ?? "")\n" }

  /// nil for a text that makes no sense, such as a name that would leave the directory of drivers.
  init?(_ device: PCIAddress, parsing text: String) {
    var values: [Substring: String] = [:]
    for line in text.split(separator: "\n") {
      let parts = line.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      guard parts.count == 2, !parts[1].contains("/"), parts[1] != ".", parts[1] != ".." else { return nil }
      values[parts[0]] = String(parts[1])
    }
    guard let driver = values["driver"], let override = values["override"] else { return nil }
    self.device = device
    (self.driver, self.override) = (driver.isEmpty ? nil : driver, override.isEmpty ? nil : override)
  }
}
