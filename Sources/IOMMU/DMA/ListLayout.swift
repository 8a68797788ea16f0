import AddressSpace

/// Places the parts of a list in one range, one after the other, and joins them to segments.
///
/// The rules are those of the kernel's `iommu_dma_map_sg` and `__finalise_sg`, in offsets from the range's start, which
/// is a multiple of the boundary unless the range is shorter: a part joins the segment before it if that ends where a
/// page ends, the part begins where a page begins, and both together are neither too long nor cross the boundary. A part
/// that would cross the boundary alone begins on it. What the kernel does not do: a part that is too long for one segment
/// is cut, each piece but the last as long as can be.
struct ListLayout {
  private let pageMask: UInt64, startMask: UInt64, boundaryMask: UInt64?
  private let longest: UInt64, longestCut: UInt64
  /// Where the pages of the parts so far end.
  private(set) var end: UInt64 = 0
  /// Segments so far.
  private(set) var count = 0
  private var segment: (start: UInt64, end: UInt64) = (0, 0)
  /// More than any range: what is longer is refused before sums could overflow.
  private static let most: UInt64 = 1 << 62

  init(_ constraints: DMAConstraints, granuleMask: UInt64) {
    pageMask = granuleMask
    startMask = granuleMask | constraints.alignment.mask
    boundaryMask = constraints.boundary?.mask
    longest = UInt64(constraints.maxSegmentByteCount)
    longestCut = constraints.alignment.alignedDown(longest)
  }

  /// Places a part that begins `offset` bytes into its first page; gives each segment that is complete by now to `emit`.
  ///
  /// - Returns: Where the part's first page begins; nil when the range would be longer than any address space.
  /// - Complexity: O(pieces that the part is cut into).
  mutating func add<Failure: Error>(
    offset: UInt64, byteCount: UInt64, emit: (_ start: UInt64, _ byteCount: UInt64) throws(Failure) -> Void
  ) throws(Failure) -> UInt64? {
    guard byteCount <= Self.most else { return nil }
    if joins(offset: offset, byteCount: byteCount) {
      let start = end
      segment.end += byteCount
      end += (byteCount + pageMask) & ~pageMask
      return end <= Self.most ? start : nil
    }
    try finish(emit: emit)
    var start = (end + startMask) & ~startMask
    if crosses(start + offset, byteCount), let boundaryMask { start = (start + boundaryMask) & ~boundaryMask }
    guard start <= Self.most else { return nil }
    segment.start = start + offset
    let last = segment.start + byteCount
    while true {
      let length = piece(segment.start, last - segment.start)
      segment.end = segment.start + length
      count += 1
      if segment.end == last { break }
      try emit(segment.start, length)
      segment.start = segment.end
    }
    end = (last + pageMask) & ~pageMask
    return end <= Self.most ? start : nil
  }

  /// Emits the last segment.
  func finish<Failure: Error>(emit: (_ start: UInt64, _ byteCount: UInt64) throws(Failure) -> Void) throws(Failure) {
    if count > 0 { try emit(segment.start, segment.end - segment.start) }
  }

  private func joins(offset: UInt64, byteCount: UInt64) -> Bool {
    guard count > 0, segment.end == end, offset == 0 else { return false }
    let joined = segment.end - segment.start + byteCount
    return joined <= longest && !crosses(segment.start, joined)
  }

  private func crosses(_ start: UInt64, _ byteCount: UInt64) -> Bool {
    guard let boundaryMask else { return false }
    return (start & boundaryMask) + (byteCount - 1) > boundaryMask
  }

  /// How much of what is left goes into one segment.
  private func piece(_ start: UInt64, _ rest: UInt64) -> UInt64 {
    let length = rest <= longest ? rest : longestCut
    guard let boundaryMask else { return length }
    return min(length, boundaryMask - (start & boundaryMask) + 1)
  }
}
