import Glibc
import IOMMU

/// Pages of this process, given back when the value goes.
@safe
final class HostMemory {
  let base: UnsafeMutableRawPointer
  let byteCount: Int
  private let kernel: any Kernel
  private let file: Int32?

  /// Private zeroed pages; with a shift, pages of that size from hugetlbfs.
  init(_ kernel: any Kernel, byteCount: Int, hugePageShift: Int? = nil) throws(Errno) {
    var file: Int32?
    if let hugePageShift {
      file = try kernel.createMemoryFile("conformance", byteCount: byteCount, hugePageShift: hugePageShift)
    }
    do throws(Errno) {
      unsafe base = try kernel.mapMemory(byteCount: byteCount, descriptor: file ?? -1, offset: 0)
    } catch {
      if let file { kernel.close(file) }
      throw error
    }
    (self.kernel, self.byteCount, self.file) = (kernel, byteCount, file)
  }

  deinit {
    unsafe kernel.unmapMemory(base, byteCount: byteCount)
    if let file { kernel.close(file) }
  }

  var address: UInt64 { unsafe UInt64(UInt(bitPattern: base)) }
  var buffer: UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(start: base, count: byteCount) }

  subscript(offset: Int) -> UInt8 {
    get { unsafe base.load(fromByteOffset: offset, as: UInt8.self) }
    set { unsafe base.storeBytes(of: newValue, toByteOffset: offset, as: UInt8.self) }
  }

  func fill(_ byte: UInt8) { unsafe base.initializeMemory(as: UInt8.self, repeating: byte, count: byteCount) }

  // By the block: byte for byte, a debug build takes a second for what the NVMe cases move.

  func bytes(_ range: Range<Int>) -> [UInt8] {
    unsafe [UInt8](unsafeUninitializedCapacity: range.count) { bytes, count in
      unsafe memcpy(bytes.baseAddress!, part(range), range.count)
      count = range.count
    }
  }

  func store(_ bytes: [UInt8], at offset: Int) {
    unsafe bytes.withUnsafeBytes {
      unsafe part(offset..<offset + $0.count).copyMemory(from: $0.baseAddress!, byteCount: $0.count)
    }
  }

  /// A little-endian word, as devices and IOMMUs read it. What makes one look comes later: a call of the kernel's.
  func store(word: UInt64, at offset: Int) {
    precondition(offset >= 0 && offset + 8 <= byteCount)
    unsafe base.storeBytes(of: word.littleEndian, toByteOffset: offset, as: UInt64.self)
  }

  /// Whether the bytes from `offset` on are these.
  func holds(_ bytes: ArraySlice<UInt8>, at offset: Int) -> Bool {
    unsafe bytes.withUnsafeBytes { unsafe memcmp(part(offset..<offset + $0.count), $0.baseAddress!, $0.count) == 0 }
  }

  private func part(_ range: Range<Int>) -> UnsafeMutableRawPointer {
    precondition(range.lowerBound >= 0 && range.upperBound <= byteCount && !range.isEmpty)
    return unsafe base + range.lowerBound
  }
}
