/// A simulated device's side of the bus: memory through the IOMMU, interrupts, and time.
///
/// Safe to use from any thread. Nothing happens while the driver has not set the bus-master bit of the command
/// register, or once the machine is gone.
public struct DeviceBus: Sendable {
  /// Why the bus did not carry out a request. The device sees no more than that (an unsupported request or a
  /// completer abort); what the IOMMU thinks of it is in ``SimulatedHost/faults``.
  public enum Failure: Error, Hashable, Sendable {
    /// The command register's bus-master bit is clear.
    case notBusMaster
    /// The IOMMU refused an address of the request. Nothing was transferred.
    case refused
    /// The device or the machine has gone away.
    case gone
  }

  let port: BusPort

  /// Reads memory at an I/O virtual address, all of it or nothing.
  public func read(_ iova: UInt64, byteCount: Int) throws(Failure) -> [UInt8] {
    try port.transfer(iova, byteCount: byteCount)
  }

  /// Writes memory at an I/O virtual address, all of it or nothing.
  public func write(_ bytes: [UInt8], to iova: UInt64) throws(Failure) {
    try port.transfer(iova, bytes: bytes)
  }

  /// Sends a message-signalled interrupt. Nothing happens unless the driver switched MSI or MSI-X on and the
  /// vector is in use.
  public func interrupt(_ vector: Int = 0) { port.interrupt(vector) }

  /// Drives the INTx pin; the interrupt lasts until the model lets go of it.
  public func setPin(_ asserted: Bool) { port.setPin(asserted) }

  /// Whether the driver uses MSI or MSI-X; a device then leaves its pin alone.
  public var usesMessages: Bool { port.usesMessages }

  /// Asks for a call of ``DeviceModel/wake(bus:)`` after a time of the machine's clock. The clock jumps ahead when
  /// a driver waits for the device, so that a test never sleeps.
  public func wake(after delay: Duration) { port.wake(after: delay) }
}

extension DeviceBus {
  /// Reads a little-endian number of 1, 2, 4 or 8 bytes.
  public func load<Number: FixedWidthInteger>(_ iova: UInt64, as type: Number.Type) throws(Failure) -> Number {
    let bytes = try read(iova, byteCount: MemoryLayout<Number>.size)
    return bytes.reversed().reduce(0) { $0 << 8 | Number(truncatingIfNeeded: $1) }
  }

  /// Writes a number in little-endian order.
  public func store(_ value: some FixedWidthInteger, to iova: UInt64) throws(Failure) {
    let count = value.bitWidth / 8
    try write((0..<count).map { UInt8(truncatingIfNeeded: value >> ($0 * 8)) }, to: iova)
  }
}
