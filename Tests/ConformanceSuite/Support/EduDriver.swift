import AddressSpace
import AddressSpaceModels
import IOMMU

/// Drives an edu device: it moves up to 4 KiB between memory and its buffer, one transfer at a time.
///
/// QEMU's takes 100 ms for a transfer whatever its size, so cases are thrifty: at most 40 in a row of the suite.
final class EduDriver {
  let device: Device
  private let registers: Registers
  private let kernel: any Kernel
  /// Transfers made.
  private(set) var transferCount = 0

  private enum Offset { static let source = 0x80, destination = 0x88, count = 0x90, command = 0x98 }
  /// Where the device's own buffer of 4 KiB is, in its own address space.
  private static let buffer: UInt64 = 0x40000

  init(_ address: String, _ environment: Environment, bits: Int = 32, sharing domain: DMADomain? = nil) throws {
    device = try environment.open(address, sharing: domain)
    try device.dma.setMask(.bits(bits))
    registers = try device.registers(bar: 0)
    kernel = environment.kernel
  }

  /// The device reads memory into its buffer, from `offset` on.
  func load(_ address: IOVA, byteCount: Int, offset: Int = 0) throws {
    start(load: address, byteCount: byteCount, offset: offset)
    try finish()
  }

  /// The device writes its buffer to memory, from `offset` on.
  func store(_ address: IOVA, byteCount: Int, offset: Int = 0) throws {
    start(store: address, byteCount: byteCount, offset: offset)
    try finish()
  }

  func start(load address: IOVA, byteCount: Int, offset: Int = 0) {
    start(address.rawValue, Self.buffer + UInt64(offset), byteCount, command: 1)
  }

  func start(store address: IOVA, byteCount: Int, offset: Int = 0) {
    start(Self.buffer + UInt64(offset), address.rawValue, byteCount, command: 3)
  }

  private func start(_ source: UInt64, _ destination: UInt64, _ byteCount: Int, command: UInt64) {
    registers.store(source, at: Offset.source)
    registers.store(destination, at: Offset.destination)
    registers.store(UInt64(byteCount), at: Offset.count)
    registers.store(command, at: Offset.command)
    transferCount += 1
  }

  /// Waits until the transfer is over: sleeps first, since each look costs the machine an exit.
  func finish() throws {
    if !isBusy { return }
    kernel.sleep(.milliseconds(100))
    for _ in 0..<1000 {
      if !isBusy { return }
      kernel.sleep(.milliseconds(2))
    }
    throw Failure("The edu device did not end a transfer within two seconds")
  }

  private var isBusy: Bool { registers.load(at: Offset.command, as: UInt64.self) & 1 != 0 }
}

/// Bytes that tell where they came from, different for each seed.
func pattern(_ seed: UInt64, _ count: Int) -> [UInt8] {
  var random = SplitMix64(seed: seed)
  var words: [UInt64] = []
  words.reserveCapacity((count + 7) / 8)
  // A debug build takes three times as long for `map` over a range.
  while words.count * 8 < count { words.append(random.next()) }
  return unsafe words.withUnsafeBytes { unsafe [UInt8](UnsafeRawBufferPointer(rebasing: $0[..<count])) }
}
