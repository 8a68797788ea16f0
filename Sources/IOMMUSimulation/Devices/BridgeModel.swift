/// A PCI-to-PCI bridge: it has a class and does nothing.
struct BridgeModel: DeviceModel {
  let isExpress: Bool

  var identity: DeviceIdentity {
    DeviceIdentity(
      vendor: 0x1b36, device: isExpress ? 0x000c : 0x0001, classCode: 0x060400, hasINTx: isExpress,
      msiCount: 0,
      isExpress: isExpress)
  }

  func read(bar: Int, offset: UInt64, width: Int, bus: DeviceBus) -> UInt64 { .max }
  func write(_ value: UInt64, bar: Int, offset: UInt64, width: Int, bus: DeviceBus) {}
}

extension SimulatedDevice {
  /// A PCI-to-PCI bridge. Devices name it as their ``bridge``.
  ///
  /// Behind a conventional bridge an IOMMU cannot tell devices apart: give the bridge and them one ``group``. A
  /// PCI Express root port has a driver of its own, which leaves groups viable.
  public static func bridge(_ address: String, isExpress: Bool = false) -> SimulatedDevice {
    var device = SimulatedDevice(address, BridgeModel(isExpress: isExpress))
    device.driver = isExpress ? "pcieport" : nil
    return device
  }
}
