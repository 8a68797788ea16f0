/// The occupied ranges of an I/O address space: allocations, reservations, guards and addresses that the
/// caller fixed are all nodes of this one store, so that whatever is in the way of whatever is found.
///
/// **Which address.** Of all addresses that satisfy a request the highest, or for `.bottomUp` the lowest.
/// Freed ranges are found again at once: nothing is remembered from one search to the next but the last allocation, as
/// long as nothing else has changed (``allocateAgain(byteCount:alignment:limit:tag:)``).
///
/// **Cost.** A B+-tree of tiles, each an occupied range and the free gap below it. Every subtree is
/// summarised by its longest gap and by its largest *capacity*: the largest n such that n granules at
/// natural alignment (a multiple of n rounded up to a power of two, as Linux aligns every IOVA) fit into
/// one gap. Both are plain maxima and both are exact, so the two kinds of requests that matter
///
/// - natural alignment, any size, any boundary, and
/// - alignment to the granule without a boundary
///
/// take O(log n) in the worst case to succeed **and to fail**, in any window: the search goes up past
/// subtrees that cannot help and down into the first that can, and only the two gaps that the window
/// clips are looked at by themselves. Without a window a failure looks at the root alone. For the space
/// below 4 GiB the largest capacity is remembered, so that a probe which must fail there is one
/// comparison, also after releases.
///
/// For any other alignment or boundary no one number tells whether a gap has room. There the length is
/// necessary and a capacity is sufficient: up to 32 gaps that are long enough are tried in order, then the
/// first gap that surely has room is taken. The result is the highest (lowest) address unless all 32 failed,
/// room is always found where some gap surely has it, and the bound is O(32 · log n). A search that
/// gave up fails with `fragmented`, which is not the proof that `noSpace` is.
///
/// **Memory.** Nodes of 704 bytes with 4 to 17 tiles, from chunks that start at 4 KiB; no object, no
/// reference count, no exclusivity check. Keep it in a `let`: its methods do not mutate the handle.
///
/// Not thread-safe: the caller holds a lock around every call, queries included. Where that is a spin lock it is taken by
/// ``lock(_:insertions:)``, so that no memory is asked for with it held.
@safe
@usableFromInline
package struct RangeStore: ~Copyable, @unchecked Sendable {
  /// The smallest unit of the space.
  package let granule: PageSize
  /// The tiles, in granules. A pointer, so that a store in a `let` of a class is changed without a check
  /// at run time.
  let map: UnsafeMutablePointer<TileMap>
  /// What the tiles may not know yet; whoever looks at them goes through ``tiles``.
  @usableFromInline let last: UnsafeMutablePointer<LastAllocation>

  /// A store without nodes for the whole granules of some ranges.
  ///
  /// - Throws: `granuleTooSmall`, `outOfMemory`.
  package init(usable: IOVARanges, granule: PageSize) throws(RangeStoreFailure) {
    guard granule.shift >= 2 else { throw .granuleTooSmall }
    guard let tree = Tree<Tile>() else { throw .outOfMemory }
    let shift = UInt64(granule.shift)
    let usable = usable.trimmed(to: granule)
    let base = usable.first.map { $0.start.rawValue >> shift } ?? 0
    let top = usable.last.map { ($0.last.rawValue >> shift) + 1 } ?? 0
    let map = UnsafeMutablePointer<TileMap>.allocate(capacity: 1)
    unsafe map.initialize(
      to: TileMap(tree: tree, from: base, to: top, granulesBelow4GiB: (1 << 32) >> shift))
    for (below, above) in zip(usable, usable.dropFirst()) {
      let (start, end) = ((below.last.rawValue >> shift) + 1, above.start.rawValue >> shift)
      guard unsafe map.pointee.exclude(from: start, to: end) else {
        unsafe map.deinitialize(count: 1)
        unsafe map.deallocate()
        throw .outOfMemory
      }
    }
    self.granule = granule
    unsafe self.map = unsafe map
    unsafe last = .allocate(capacity: 1)
    unsafe last.initialize(to: LastAllocation())
  }

  deinit {
    unsafe map.deinitialize(count: 1)
    unsafe map.deallocate()
    unsafe last.deallocate()
  }
}

extension RangeStore {
  /// What a node stands for.
  package enum Kind: UInt8, Sendable, BitwiseCopyable, CaseIterable {
    /// An address that the store chose.
    case allocation
    /// An address that the caller chose.
    case fixed
    /// Not to be used: a reserved region.
    case reservation
    /// Not to be used: a gap that catches a device that runs past its buffer.
    case `guard`
  }

  /// An occupied range.
  package struct Node: Equatable, Sendable {
    /// The addresses.
    package var range: IOVARange
    /// What it stands for.
    package var kind: Kind
    /// The user's 64 bits: the virtual address of the mapped memory.
    package var tag: UInt64
    /// The user's further 32 bits.
    package var auxiliary: UInt32

    package init(range: IOVARange, kind: Kind, tag: UInt64 = 0, auxiliary: UInt32 = 0) {
      (self.range, self.kind, self.tag, self.auxiliary) = (range, kind, tag, auxiliary)
    }

    /// The first address.
    package var start: IOVA { range.start }
    /// The length in bytes.
    package var byteCount: UInt64 { range.byteCount }
  }
}

// MARK: - Between addresses and granules

extension RangeStore {
  /// The granule of an address.
  func unit(_ address: IOVA) -> UInt64 { address.rawValue &>> UInt64(granule.shift) }

  /// The addresses from one granule up to, not including, another.
  func range(_ start: UInt64, _ end: UInt64) -> IOVARange {
    let shift = UInt64(granule.shift)
    return IOVARange(unchecked: start << shift, ((end - 1) << shift) | granule.mask)
  }

  /// The node of a tile; `nil` when its range is not usable.
  func node(_ value: Tile.Value) -> Node? {
    guard let kind = value.kind else { return nil }
    return Node(
      range: range(value.start, value.end), kind: kind, tag: value.tag, auxiliary: value.auxiliary)
  }
}
