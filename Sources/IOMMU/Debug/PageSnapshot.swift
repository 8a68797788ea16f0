/// Which pages some memory of the caller's had when it was pinned, to see later whether it still has them.
///
/// What `/proc/self/pagemap` tells: whether a page is there, and to who has `CAP_SYS_ADMIN` its frame's number. A pinned page
/// is neither moved nor swapped out while the process has it: one that is not there, or another, was given up by the process.
/// Without the numbers a page that was given up is seen only until the next one takes its place.
struct PageSnapshot: Sendable {
  /// The address of the first page.
  let host: UInt64
  let pageByteCount: Int
  private var entries: [UInt64]

  private static let isPresent: UInt64 = 1 << 63, isSwapped: UInt64 = 1 << 62
  /// Of a file, or shared and anonymous.
  private static let isShared: UInt64 = 1 << 61
  private static let frame: UInt64 = (1 << 55) - 1

  /// What became of some memory.
  enum Change { case gone, replaced }

  /// The pages of some memory as they are now; nil where that cannot be seen.
  ///
  /// - Parameter comparesFrames: Whether the process is not to get other pages by writing: the kernel may have pinned a
  ///   page of zeros that it only reads.
  init?(_ kernel: any Kernel, host: UInt64, byteCount: Int, comparesFrames: Bool) {
    let page = kernel.pageByteCount
    let first = host & ~UInt64(page - 1)
    let count = (Int(host - first) + byteCount + page - 1) / page
    guard let entries = try? kernel.pageMap(first, pageCount: count) else { return nil }
    (self.host, pageByteCount) = (first, page)
    self.entries = comparesFrames ? entries : entries.map { $0 & ~Self.frame }
  }

  /// The first page of some memory inside that is not the one that it was, and what became of it.
  func firstChange(_ kernel: any Kernel, host: UInt64, byteCount: Int) -> (page: UInt64, change: Change)? {
    guard let now = PageSnapshot(kernel, host: host, byteCount: byteCount, comparesFrames: true), now.host >= self.host
    else { return nil }
    let offset = Int(now.host - self.host) / pageByteCount
    for index in 0..<min(now.entries.count, entries.count - offset) {
      let page = now.host + UInt64(index * pageByteCount)
      guard let change = Self.change(entries[offset + index], now.entries[index]) else { continue }
      // A page of a file may be taken from the process and be the same: it is gone when its file has it no more.
      let isShared = entries[offset + index] & Self.isShared != 0
      if change == .gone, isShared, (try? kernel.isResident(page)) == true { continue }
      return (page, change)
    }
    return nil
  }

  /// What two words of the map say: of a page that was not there nothing, as it was not pinned.
  static func change(_ old: UInt64, _ new: UInt64) -> Change? {
    guard old & isPresent != 0 else { return nil }
    // What is swapped out was not pinned after all: the simulated kernel pins nothing.
    guard new & isPresent != 0 else { return new & isSwapped != 0 ? nil : .gone }
    let known = old & frame != 0 && new & frame != 0
    return known && old & frame != new & frame ? .replaced : nil
  }
}
