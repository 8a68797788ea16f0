/// The last range that was allocated, as long as nothing else has changed the tree since.
///
/// A driver that waits for each transfer releases what it allocated last and then asks for the same again. The answer
/// is the same too, so the range is released by taking its kind from the tile, and the next request, if it is the same,
/// puts one back: the tree stays as it is. Any other change gives the granules back to the tree first.
struct LastAllocation {
  /// Its first granule; `max` when there is none.
  private(set) var start = UInt64.max
  /// It was released: its tile has no kind, as a range that is not usable, so that no query finds it.
  fileprivate(set) var isFree = false
  fileprivate var request = RangeStore.Request(byteCount: 0)
  fileprivate var leaf: Tree<Tile>.Node
  fileprivate var slot = 0

  init(leaf: Tree<Tile>.Node) { self.leaf = leaf }

  /// The tree changes at a slot, where an allocation may be remembered afterwards.
  @inline(__always)
  mutating func forget(at leaf: Tree<Tile>.Node, _ slot: Int) {
    (start, isFree, self.leaf, self.slot) = (.max, false, leaf, slot)
  }

  /// What was just occupied, unless a split moved its tile.
  @inline(__always)
  fileprivate mutating func remember(_ request: RangeStore.Request, _ start: UInt64) {
    guard slot < leaf.count, leaf.value(slot).start == start else { return }
    (self.request, self.start) = (request, start)
  }
}

extension TileMap {
  /// After an allocation: what was asked and what was chosen.
  @inline(__always)
  mutating func remember(_ request: RangeStore.Request, _ start: UInt64) { last.remember(request, start) }

  /// Occupies the range that was released last, if the request is the one that it was allocated for; its first granule.
  @inline(__always)
  mutating func allocateAgain(
    _ request: RangeStore.Request, kind: RangeStore.Kind, tag: UInt64, auxiliary: UInt32
  ) -> UInt64? {
    guard last.isFree, request.isSame(as: last.request) else { return nil }
    last.isFree = false
    var value = last.leaf.value(last.slot)
    (value.kind, value.tag, value.auxiliary) = (kind, tag, auxiliary)
    last.leaf.setValue(last.slot, value)
    note(value, 1)
    visits = 0
    return value.start
  }

  /// Releases the last range, for the next request or for ``settle()``.
  @inline(__always)
  mutating func vacate() -> Tile.Value {
    let value = last.leaf.value(last.slot)
    note(value, -1)
    var free = value
    free.kind = nil
    last.leaf.setValue(last.slot, free)
    last.isFree = true
    return value
  }

  /// Gives the granules of a range that was vacated back to the tree, before anything else is done with it.
  ///
  /// - Complexity: O(log n); O(1) when there is none.
  @inline(__always)
  mutating func settle() {
    if last.isFree { giveBack() }
  }

  @inline(never)
  private mutating func giveBack() {
    tree.seek(last.start)
    erase(tree.value)
  }
}

extension RangeStore.Request {
  @inline(__always)
  fileprivate func isSame(as other: Self) -> Bool {
    byteCount == other.byteCount && limit == other.limit && lowest == other.lowest && alignment == other.alignment
      && boundary == other.boundary && direction == other.direction
  }
}
