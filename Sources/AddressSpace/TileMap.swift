/// An address space in granules, as a tree of tiles: what ``RangeStore`` is made of.
///
/// Every granule from the lowest usable one to the highest belongs to exactly one tile. Ranges that are
/// not usable are occupied tiles of their own kind, and one more marks the top.
///
/// What only looks is mutating here too, and in ``Tree``: a method that is not gets the struct by value, which is a copy of some 500
/// bytes for each call.
struct TileMap: ~Copyable {
  var tree: Tree<Tile>
  /// The lowest usable granule.
  let base: UInt64
  /// The granule behind the highest usable one.
  let top: UInt64
  /// The number of occupied ranges of each kind.
  private(set) var counts = InlineArray<4, Int>(repeating: 0)
  /// Their granules.
  private(set) var granules = InlineArray<4, UInt64>(repeating: 0)
  /// What is known of the space below 4 GiB, so that a probe there that must fail costs one load.
  var low: LowSpace
  /// Nodes visited by the last allocation.
  var visits = 0

  /// A space from the lowest usable granule up to, not including, another.
  init(tree: consuming Tree<Tile>, from base: UInt64, to top: UInt64, granulesBelow4GiB: UInt64) {
    self.tree = tree
    self.base = base
    self.top = top
    low = LowSpace(end: granulesBelow4GiB)
    let mark = Tile.Value(start: top, end: top + 1, tag: 0, auxiliary: 0, kind: nil)
    self.tree.seek(base)
    self.tree.slot = 0
    self.tree.insert(base, mark, .raised(base, mark))
  }

  /// Occupies what is not usable between the lowest and the highest granule. `false` when there is no memory.
  mutating func exclude(from start: UInt64, to end: UInt64) -> Bool {
    let hole = Tile.Value(start: start, end: end, tag: 0, auxiliary: 0, kind: nil)
    tree.seek(start)
    return occupy(hole)
  }
}

/// The largest capacity below 4 GiB: an upper bound always, and exact until something is allocated there.
///
/// A release can only raise it, and by how much is known from the one gap that grew, so no release makes
/// a later failure slow.
struct LowSpace {
  /// The granule at 4 GiB.
  let end: UInt64
  /// The largest capacity, clipped at 4 GiB.
  var capacity = UInt64.max
  /// Whether nothing was allocated there since it was computed.
  var isExact = false

  init(end: UInt64) { self.end = end }
}

// MARK: - Occupying and releasing

extension TileMap {
  /// Occupies a part of the gap of the cursor's tile: the tile is split. `false` when there is no memory.
  ///
  /// - Complexity: O(log n).
  mutating func occupy(_ value: Tile.Value) -> Bool {
    guard tree.reserveInsertion() else { return false }
    let (leaf, slot) = (tree.leaf, tree.slot)
    let upper = leaf.value(slot)
    let floor = leaf.key(slot)
    assert(floor <= value.start && value.start < value.end && value.end <= upper.start)
    leaf.setValue(slot, value)
    tree.slot = slot + 1
    tree.insert(value.end, upper, .lowered(floor, upper))
    note(value, 1)
    if value.start < low.end { low.isExact = false }
    return true
  }

  /// Releases the range that starts at a granule and returns it; `nil` when none does.
  ///
  /// - Complexity: O(log n).
  mutating func release(_ start: UInt64) -> Tile.Value? {
    tree.seek(start)
    let (leaf, slot) = (tree.leaf, tree.slot)
    guard slot >= 0 else { return nil }
    let value = leaf.value(slot)
    guard value.start == start, value.kind != nil else { return nil }
    let floor = leaf.key(slot)
    let gapEnd: UInt64
    if slot + 1 < leaf.count {
      // The tile above lies in the same leaf: it takes this one's place.
      let above = leaf.value(slot + 1)
      gapEnd = above.start
      leaf.setValue(slot, above)
      tree.slot = slot + 1
      tree.remove(.raised(floor, above))
    } else {
      tree.remove(.lowered(floor, value))
      tree.seek(value.end)
      gapEnd = tree.value.start
      tree.rekey(floor, .raised(floor, tree.value))
    }
    note(value, -1)
    if floor < low.end {
      low.capacity = max(low.capacity, Room.capacity(ofGapFrom: floor, to: min(gapEnd, low.end)))
    }
    return value
  }

  /// Changes the tag of the range that starts at a granule.
  ///
  /// - Complexity: O(log n).
  mutating func setTag(_ tag: UInt64, at start: UInt64) {
    tree.seek(start)
    var value = tree.value
    assert(value.start == start && value.kind != nil)
    value.tag = tag
    tree.leaf.setValue(tree.slot, value)
  }

  /// The same where there may be none; the tag it had.
  mutating func retag(_ start: UInt64, _ tag: UInt64) -> UInt64? {
    tree.seek(start)
    guard tree.slot >= 0, tree.value.start == start, tree.value.kind != nil else { return nil }
    defer { setTag(tag, at: start) }
    return tree.value.tag
  }

  /// Counts a range that comes (1) or goes (-1).
  mutating func note(_ value: Tile.Value, _ sign: Int) {
    guard let kind = value.kind else { return }
    counts[Int(kind.rawValue)] += sign
    // Wrapping, so that one line adds and takes away.
    granules[Int(kind.rawValue)] &+= (value.end - value.start) &* UInt64(bitPattern: Int64(sign))
  }
}

// MARK: - Capacity

extension TileMap {
  /// The largest capacity of the free gaps, clipped to a window.
  ///
  /// - Complexity: O(log n).
  mutating func capacity(from first: UInt64, to end: UInt64) -> UInt64 {
    let (first, end) = (max(first, base), min(end, top))
    guard first < end else { return 0 }
    let (low, high) = (tree.lookUp(first), tree.lookUp(end - 1))
    // The tiles at the ends are clipped; what lies between is known.
    var room = Room.none
    room.insert(gapFrom: first, to: max(first, min(low.leaf.value(low.slot).start, end)))
    let floor = high.leaf.key(high.slot)
    if first < floor {
      room.insert(gapFrom: floor, to: min(high.leaf.value(high.slot).start, end))
      room.formUnion(tree.summary(between: first, end - 1))
    }
    return room.capacity
  }

  /// The largest capacity in a window, remembered where it is.
  mutating func largestCapacity(from first: UInt64, to end: UInt64) -> UInt64 {
    if first <= base && end >= top { return tree.summary.capacity }
    if first <= base && end == low.end { return lowCapacity() }
    return capacity(from: first, to: end)
  }

  /// The largest capacity below 4 GiB.
  ///
  /// - Complexity: O(1) when nothing was allocated there since the last time, else O(log n).
  mutating func lowCapacity() -> UInt64 {
    if !low.isExact {
      low.capacity = capacity(from: base, to: low.end)
      low.isExact = true
    }
    return low.capacity
  }
}

// MARK: - Walking

extension TileMap {
  /// The lowest occupied and usable range that ends behind a granule.
  ///
  /// - Complexity: O(log n + u) with u the unusable ranges on the way.
  mutating func value(from unit: UInt64) -> Tile.Value? {
    var (leaf, slot) = tree.lookUp(max(unit, base))
    while true {
      let value = leaf.value(slot)
      if value.kind != nil && value.end > unit { return value }
      guard let next = tree.lookUp(after: leaf.key(slot)) else { return nil }
      (leaf, slot) = next
    }
  }

  /// The highest occupied and usable range that ends at a granule or below.
  ///
  /// - Complexity: O(log n + u) with u the unusable ranges on the way.
  mutating func value(below unit: UInt64) -> Tile.Value? {
    var unit = min(unit, top)
    // A tile begins where the one below ends, so the key leads down.
    while unit > base {
      let (leaf, slot) = tree.lookUp(unit - 1)
      let value = leaf.value(slot)
      if value.kind != nil && value.end <= unit { return value }
      unit = value.end <= unit ? value.start : leaf.key(slot)
    }
    return nil
  }
}
