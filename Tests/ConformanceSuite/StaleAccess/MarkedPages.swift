import IOMMU

/// Memory for a device to write to, of which it is known after each write which page was reached.
///
/// The first pages have a mark, which no device writes; the others are there so that a mapping can be as long as a table of pages.
final class MarkedPages {
  let memory: HostMemory
  /// How many pages have a mark: few enough that an emulated IOTLB keeps them all.
  static let markedCount = 40
  /// Where a mapping begins that fills a table: off the boundary of a block, so that it is made of pages.
  static let wideStart = 8
  static let widePageCount = 512
  static let byteCount = (wideStart + widePageCount + markedCount) * 4096
  /// Where in a page.
  static let offset = 64
  private static let mark: UInt32 = 0x5a5a_5a5a

  init(_ kernel: any Kernel) throws(Errno) {
    memory = try HostMemory(kernel, byteCount: Self.byteCount)
    for page in 0..<Self.markedCount { set(page) }
  }

  private func set(_ page: Int) {
    unsafe memory.base.storeBytes(of: Self.mark, toByteOffset: page * 4096 + Self.offset, as: UInt32.self)
  }

  /// Pages from one on, as memory of the caller's.
  func pages(_ first: Int, _ count: Int) -> UnsafeRawBufferPointer {
    unsafe UnsafeRawBufferPointer(start: memory.base + first * 4096, count: count * 4096)
  }

  /// Where a page lies in memory.
  func address(of page: Int) -> UInt64 { unsafe UInt64(UInt(bitPattern: memory.base + page * 4096)) }

  /// The pages that were written to since the last call, which have their marks again.
  func takeChanged() -> [Int] {
    var changed: [Int] = []
    for page in 0..<Self.markedCount {
      let found = unsafe memory.base.load(fromByteOffset: page * 4096 + Self.offset, as: UInt32.self)
      guard found != Self.mark else { continue }
      changed.append(page)
      set(page)
    }
    return changed
  }
}
