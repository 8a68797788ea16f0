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

  func bytes(_ range: Range<Int>) -> [UInt8] { range.map { self[$0] } }

  func store(_ bytes: [UInt8], at offset: Int) {
    for (index, byte) in bytes.enumerated() { self[offset + index] = byte }
  }
}
