// A driver that waits for each transfer releases what it allocated last, and then asks for the same again. The answer is
// the same too, so neither needs the tree.

/// What is known of the range that the store chose last; the tree learns of it when the tree is needed.
@usableFromInline
struct LastAllocation: BitwiseCopyable {
  /// Its first address; `max`, which no granule begins with, when there is none.
  @usableFromInline var start = UInt64.max
  /// What it was chosen for; a length of 0, which no request has, when there is none.
  @usableFromInline var byteCount: UInt64 = 0, limit: UInt64 = 0, alignment: UInt8 = 0
  /// It was released, and its node is still in the tree; or there is none.
  @usableFromInline var isFree = true
  /// The tree holds another tag, or the node of a range that was released.
  @usableFromInline var isAhead = false
  /// The tag that it has now.
  @usableFromInline var tag: UInt64 = 0

  init() {}

  /// Only a request that says no more than these three is remembered.
  init(_ request: RangeStore.Request, start: IOVA, tag: UInt64) {
    guard request.lowest == 0, request.boundary == nil, request.direction == .topDown,
      let alignment = request.alignment ?? PageSize(fitting: request.byteCount)
    else { return }
    (self.start, self.tag) = (start.rawValue, tag)
    (byteCount, limit, self.alignment) = (request.byteCount, request.limit, alignment.shift)
    isFree = false
  }
}

extension RangeStore {
  /// What ``allocate(_:kind:tag:auxiliary:)`` answers to a top-down request of these three, if it is the range that
  /// ``removeLast(_:)`` has just released; `nil` stands for not known: then ask it.
  ///
  /// - Complexity: O(1).
  @inlinable @inline(__always)
  package func allocateAgain(byteCount: UInt64, alignment: PageSize, limit: UInt64, tag: UInt64) -> IOVA? {
    guard unsafe last.pointee.isFree, unsafe last.pointee.byteCount == byteCount,
      unsafe last.pointee.limit == limit, unsafe last.pointee.alignment == alignment.shift
    else { return nil }
    unsafe last.pointee.isFree = false
    unsafe last.pointee.tag = tag
    return unsafe IOVA(last.pointee.start)
  }

  /// Releases the allocation that starts at an address and returns its tag, if it is the last and the tree has not
  /// changed since; `nil` stands for not known: then ask ``remove(_:)``.
  ///
  /// - Complexity: O(1).
  @inlinable @inline(__always)
  package func removeLast(_ start: IOVA) -> UInt64? {
    guard unsafe last.pointee.start == start.rawValue, unsafe !last.pointee.isFree else { return nil }
    unsafe last.pointee.isFree = true
    unsafe last.pointee.isAhead = true
    return unsafe last.pointee.tag
  }

  /// The tiles as they are, for questions.
  ///
  /// - Complexity: O(log n) after the calls above, else O(1).
  var tiles: UnsafeMutablePointer<TileMap> {
    if unsafe last.pointee.isAhead { settle() }
    return unsafe map
  }

  /// The tiles, for a change: after it, another range may be what the last request would get.
  var changingTiles: UnsafeMutablePointer<TileMap> {
    let tiles = unsafe tiles
    unsafe last.pointee = LastAllocation()
    return unsafe tiles
  }

  /// Brings the tree up to date.
  @inline(never)
  private func settle() {
    let known = unsafe last.pointee
    let start = unit(IOVA(known.start))
    if known.isFree {
      _ = unsafe map.pointee.release(start)
      unsafe last.pointee = LastAllocation()
    } else {
      unsafe map.pointee.setTag(known.tag, at: start)
      unsafe last.pointee.isAhead = false
    }
  }
}
