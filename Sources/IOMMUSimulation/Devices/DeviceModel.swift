/// A PCI device in software: what it is, and what it does when a driver reads and writes its registers.
///
/// A model is plain code. The simulated machine calls it one call at a time for each device, so a structure with
/// mutating methods needs no lock; a class must be `Sendable` by its own means if other threads touch it.
/// The model reaches memory through its ``DeviceBus`` only, that is through the IOMMU: what the driver did not
/// map, the model cannot see.
///
/// ```swift
/// struct Doubler: DeviceModel {
///   var identity: DeviceIdentity { DeviceIdentity(vendor: 0x1234, device: 0x0001, bars: [.memory(4096)]) }
///   var value: UInt64 = 0
///   func read(bar: Int, offset: UInt64, width: Int, bus: DeviceBus) -> UInt64 { value }
///   mutating func write(_ value: UInt64, bar: Int, offset: UInt64, width: Int, bus: DeviceBus) {
///     self.value = value * 2
///   }
/// }
/// ```
public protocol DeviceModel: Sendable {
  /// What config space says of the device. Asked once, when the machine is built.
  var identity: DeviceIdentity { get }

  /// A read of 1, 2, 4 or 8 bytes (`width`), naturally aligned, at a byte offset of a BAR. Bits above the width
  /// are ignored.
  mutating func read(bar: Int, offset: UInt64, width: Int, bus: DeviceBus) -> UInt64

  /// A write of 1, 2, 4 or 8 bytes (`width`), naturally aligned, at a byte offset of a BAR.
  mutating func write(_ value: UInt64, bar: Int, offset: UInt64, width: Int, bus: DeviceBus)

  /// Back to the state after power on. The default does nothing.
  mutating func reset()

  /// Called once, before anything else, for models that act on their own threads and keep the bus. The default
  /// does nothing.
  mutating func attach(to bus: DeviceBus)

  /// A time asked for by ``DeviceBus/wake(after:)`` has come. The default does nothing.
  mutating func wake(bus: DeviceBus)

  /// Whether requests are still under way: the Transactions Pending bit of PCI Express. The default is false.
  var hasPendingTransactions: Bool { get }
}

extension DeviceModel {
  /// Does nothing.
  public mutating func reset() {}
  /// Does nothing.
  public mutating func attach(to bus: DeviceBus) {}
  /// Does nothing.
  public mutating func wake(bus: DeviceBus) {}
  /// False: every request is done when a register access returns.
  public var hasPendingTransactions: Bool { false }
}
