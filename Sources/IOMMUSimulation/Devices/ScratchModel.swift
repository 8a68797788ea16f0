/// A device for a unit test, in a closure: one BAR of plain memory, and what happens when the driver writes to it.
///
/// ```swift
/// // Writing a length to 0x10 sends that many bytes to the address at 0x00 and interrupts.
/// let sender = ScratchModel { registers, offset, bus in
///   guard offset == 0x10 else { return }
///   let bytes = [UInt8](repeating: 0xab, count: Int(registers[0x10] & 0xffff))
///   try? bus.write(bytes, to: registers[0x00])
///   bus.interrupt()
/// }
/// let machine = SimulatedHost(devices: ["0000:03:00.0": sender])
/// ```
public struct ScratchModel: DeviceModel {
  /// The BAR's memory, by byte offset.
  public struct Registers: Sendable {
    /// The bytes as they are.
    public internal(set) var bytes: [UInt8]

    /// The eight bytes at an offset, little endian; zero beyond the end.
    public subscript(offset: UInt64) -> UInt64 {
      get { load(offset, width: 8) }
      set { store(newValue, at: offset, width: 8) }
    }

    func load(_ offset: UInt64, width: Int) -> UInt64 {
      (0..<width).reduce(0) { value, index in
        let at = Int(clamping: offset) + index
        return at < bytes.count ? value | UInt64(bytes[at]) << (8 * UInt64(index)) : value
      }
    }

    mutating func store(_ value: UInt64, at offset: UInt64, width: Int) {
      for index in 0..<width where Int(clamping: offset) + index < bytes.count {
        bytes[Int(offset) + index] = UInt8(truncatingIfNeeded: value >> (8 * UInt64(index)))
      }
    }
  }

  /// What config space says of the device.
  public let identity: DeviceIdentity
  /// The BAR's memory.
  public private(set) var registers: Registers
  private let onWrite: @Sendable (inout Registers, UInt64, DeviceBus) -> Void

  /// A device with one BAR and one MSI message.
  ///
  /// - Parameters:
  ///   - byteCount: Length of BAR 0 in bytes, a power of two.
  ///   - addressBits: How many address bits the device drives.
  ///   - onWrite: Called after each write of the driver, with the byte offset written to.
  public init(
    byteCount: Int = 4096, addressBits: Int = 64,
    onWrite: @escaping @Sendable (inout Registers, UInt64, DeviceBus) -> Void = { _, _, _ in }
  ) {
    identity = DeviceIdentity(
      vendor: 0x1234, device: 0x5c4a, bars: [.memory(UInt64(byteCount))], addressBits: addressBits)
    registers = Registers(bytes: [UInt8](repeating: 0, count: byteCount))
    self.onWrite = onWrite
  }

  /// Reads the BAR's memory.
  public func read(bar: Int, offset: UInt64, width: Int, bus: DeviceBus) -> UInt64 {
    registers.load(offset, width: width)
  }

  /// Writes the BAR's memory, then does what the test said.
  public mutating func write(_ value: UInt64, bar: Int, offset: UInt64, width: Int, bus: DeviceBus) {
    registers.store(value, at: offset, width: width)
    onWrite(&registers, offset, bus)
  }

  /// Clears the memory.
  public mutating func reset() {
    registers = Registers(bytes: [UInt8](repeating: 0, count: registers.bytes.count))
  }
}
