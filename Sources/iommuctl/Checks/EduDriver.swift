import IOMMU

/// A driver for QEMU's edu device: it moves bytes between memory and its own 4 KiB, and interrupts.
struct EduDriver {
  private let registers: Registers
  private let kernel: any Kernel

  /// The mask that QEMU's device has unless told otherwise; it drops higher bits silently.
  static let mask = DMAMask.bits(28)
  /// How much the device holds.
  static let byteCount = 4096

  private enum Register {
    static let identification = 0x00, raise = 0x60, acknowledge = 0x64
    static let source = 0x80, destination = 0x88, count = 0x90, command = 0x98
    static let buffer: UInt64 = 0x40000
  }

  /// Whether a device is one.
  static func drives(_ device: PCIDevice) -> Bool { device.vendor == 0x1234 && device.device == 0x11e8 }

  init(_ device: Device, _ host: Host) throws {
    registers = try device.registers(bar: 0)
    kernel = host.kernel
    let identification = registers[Register.identification]
    try require(identification & 0xff == 0xed, "BAR 0 reads 0x\(String(identification, radix: 16)) at 0")
  }

  /// The device reads memory into its own.
  func read(from address: IOVA, byteCount: Int, to offset: Int = 0) throws {
    try transfer(address.rawValue, Register.buffer + UInt64(offset), byteCount, command: 1)
  }

  /// The device writes its own memory to memory.
  func write(to address: IOVA, byteCount: Int, from offset: Int = 0) throws {
    try transfer(Register.buffer + UInt64(offset), address.rawValue, byteCount, command: 3)
  }

  private func transfer(_ source: UInt64, _ destination: UInt64, _ byteCount: Int, command: UInt64) throws {
    registers.store(source, at: Register.source)
    registers.store(destination, at: Register.destination)
    registers.store(UInt64(byteCount), at: Register.count)
    registers.store(command, at: Register.command)
    // QEMU's takes 100 ms, whatever the length.
    for _ in 0..<2000 {
      if registers.load(at: Register.command, as: UInt64.self) & 1 == 0 { return }
      kernel.sleep(.milliseconds(1))
    }
    throw CaseStop.failed("The transfer did not end within 2 s")
  }

  /// The device interrupts.
  func raiseInterrupt() { registers[Register.raise] = 1 }
  func acknowledgeInterrupt() { registers[Register.acknowledge] = 1 }
}

/// Bytes that say where they are: a shifted, lost or repeated byte shows.
func pattern(_ byteCount: Int, seed: Int) -> [UInt8] {
  (0..<byteCount).map { UInt8(truncatingIfNeeded: ($0 &* 167) ^ ($0 >> 8) &+ seed) }
}

extension DMABuffer {
  mutating func fill(_ bytes: [UInt8]) {
    for (offset, byte) in bytes.enumerated() { store(byte, at: offset) }
  }

  /// The first offset where the buffer differs; nil when all bytes are as expected.
  func difference(from bytes: [UInt8], at start: Int = 0) -> Int? {
    bytes.indices.first { load(at: start + $0, as: UInt8.self) != bytes[$0] }.map { start + $0 }
  }
}
