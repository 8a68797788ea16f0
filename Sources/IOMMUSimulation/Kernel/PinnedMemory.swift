import IOMMU

/// Memory of this process that a map of the simulated kernel refers to, and what gives it back.
///
/// A map by address refers to the process's own memory. A map of a file has a mapping of its own, as the kernel has
/// the file's pages: it outlives the descriptor.
final class PinnedMemory {
  let address: UInt
  let byteCount: UInt64
  /// Bytes of the pages behind it: 4096, or a huge page's size.
  let pageByteCount: UInt64
  private let ownsMapping: Bool

  /// The process's own memory.
  init(address: UInt64, byteCount: UInt64) {
    (self.address, self.byteCount, pageByteCount, ownsMapping) = (UInt(address), byteCount, 4096, false)
  }

  /// Part of a memory file, mapped here. EINVAL when the descriptor is no memory file or the range leaves it.
  init(
    file: Int32, pageByteCount: UInt64, start: UInt64, byteCount: UInt64, isWritable: Bool
  ) throws(Errno) {
    let (end, overflow) = start.addingReportingOverflow(byteCount)
    guard !overflow, end <= (try HostSystem.memoryFileByteCount(file)) else { throw .invalidArgument }
    // A mapping begins and ends on the file's own pages, which are larger than 4 KiB for hugetlb.
    let first = start & ~(pageByteCount - 1)
    let length = (end - first + pageByteCount - 1) & ~(pageByteCount - 1)
    let base = try HostSystem.map(
      byteCount: Int(length), descriptor: file, offset: first, isWritable: isWritable)
    mapping = (base, Int(length))
    (address, self.byteCount, self.pageByteCount) = (base + UInt(start - first), byteCount, pageByteCount)
    ownsMapping = true
  }

  private var mapping: (base: UInt, byteCount: Int) = (0, 0)

  deinit {
    if ownsMapping { HostSystem.unmap(mapping.base, byteCount: mapping.byteCount) }
  }

  /// Pages of 4 KiB that have a byte of it.
  var pageCount: UInt64 {
    guard byteCount > 0 else { return 0 }
    return UInt64((address & 4095) + UInt(byteCount) + 4095) / 4096
  }

  /// What pinning does first: fault the pages in. EFAULT where the process has no memory, or none it may write.
  func faultIn(forWriting: Bool) throws(Errno) {
    guard !ownsMapping else { return }
    try HostSystem.populate(address & ~4095, byteCount: Int(pageCount * 4096), forWriting: forWriting)
  }
}
