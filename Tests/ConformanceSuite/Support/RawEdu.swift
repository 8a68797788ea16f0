import IOMMU

/// The registers of an edu device that is bound, by the kernel's calls alone.
struct RawEdu {
  private let kernel: any Kernel
  private let descriptor: Int32
  private let offset: UInt64

  /// Switches memory and bus mastering on, which opening the device left off.
  init(_ raw: RawDevice) throws {
    (kernel, descriptor) = (raw.kernel, raw.device)
    offset = try kernel.vfioRegionInfo(descriptor, index: 0).offset
    let config = try kernel.vfioRegionInfo(descriptor, index: VFIOPCI.config).offset
    try write(UInt16(0x6), at: config + 4)
  }

  /// The device reads memory into its buffer.
  func load(_ address: UInt64, byteCount: Int) throws {
    try transfer(from: address, to: Self.buffer, byteCount, command: 1)
  }

  /// The device writes its buffer to memory.
  func store(_ address: UInt64, byteCount: Int) throws {
    try transfer(from: Self.buffer, to: address, byteCount, command: 3)
  }

  /// The device sends its interrupt.
  func interrupt() throws { try write(UInt32(1), at: offset + 0x60) }

  /// What the device has sent is dealt with.
  func acknowledge() throws { try write(UInt32(1), at: offset + 0x64) }

  private static let buffer: UInt64 = 0x40000

  private func transfer(from source: UInt64, to destination: UInt64, _ byteCount: Int, command: UInt64) throws {
    try write(source, at: offset + 0x80)
    try write(destination, at: offset + 0x88)
    try write(UInt64(byteCount), at: offset + 0x90)
    try write(command, at: offset + 0x98)
    // A transfer takes 100 ms whatever its size.
    kernel.sleep(.milliseconds(100))
    for _ in 0..<1000 {
      if try read(at: offset + 0x98) & 1 == 0 { return }
      kernel.sleep(.milliseconds(2))
    }
    throw Failure("The edu device did not end a transfer within two seconds")
  }

  private func write<Word: FixedWidthInteger>(_ word: Word, at position: UInt64) throws {
    let done = try unsafe withUnsafeBytes(of: word.littleEndian) { bytes throws(Errno) in
      try unsafe kernel.pwrite(descriptor, bytes, at: position)
    }
    try expectEqual(done, MemoryLayout<Word>.size, "bytes written to the device")
  }

  private func read(at position: UInt64) throws -> UInt64 {
    var word: UInt64 = 0
    let done = try unsafe withUnsafeMutableBytes(of: &word) { bytes throws(Errno) in
      try unsafe kernel.pread(descriptor, bytes, at: position)
    }
    try expectEqual(done, 8, "bytes read from the device")
    return UInt64(littleEndian: word)
  }
}
