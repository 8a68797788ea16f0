// Nodes in the place of others: all of it or nothing, so that no addresses are lost where memory is.

extension RangeStore {
  /// Puts a node in the place of the one that starts at an address, and returns that one; `nil`, with nothing changed, when none
  /// starts there or another node is in the way.
  ///
  /// The new one may be shorter or longer at either end, as far as the addresses beside the old one are free. It takes the
  /// entry of the old one, and no memory.
  ///
  /// - Complexity: O(log n).
  @discardableResult
  package func replace(_ start: IOVA, with node: Node) -> Node? {
    guard isAligned(node.range), start.isAligned(to: granule) else { return nil }
    let old = unsafe changingTiles.pointee.replace(unit(start), with: tile(node))
    return old.flatMap { self.node($0) }
  }

  /// Puts a node in the place of a part of another, or of all of it; what is left of that one on either side stays.
  ///
  /// - Throws: `unaligned`, `noSpace` unless all addresses are those of one node, `outOfMemory`. Nothing was changed then.
  /// - Complexity: O(log n).
  package func carve(_ node: Node) throws(RangeStoreFailure) {
    guard isAligned(node.range) else { throw .unaligned }
    switch unsafe changingTiles.pointee.carve(tile(node)) {
    case .placed: return
    case .outOfMemory: throw .outOfMemory
    case .noSpace, .fragmented: throw .noSpace
    }
  }

  /// Whether a range is whole granules.
  func isAligned(_ range: IOVARange) -> Bool {
    granule.isAligned(range.start.rawValue) && range.last.rawValue & granule.mask == granule.mask
  }

  /// The occupied part of a node's tile.
  func tile(_ node: Node) -> Tile.Value {
    Tile.Value(
      start: unit(node.start), end: unit(node.range.last) + 1, tag: node.tag, auxiliary: node.auxiliary, kind: node.kind
    )
  }
}

extension TileMap {
  /// The occupied and usable range that starts at a granule, with the cursor on its tile; nil when none does.
  private mutating func seekRange(from start: UInt64) -> Tile.Value? {
    tree.seek(start)
    guard tree.slot >= 0 else { return nil }
    let value = tree.value
    return value.start == start && value.kind != nil ? value : nil
  }

  /// ``RangeStore/replace(_:with:)``
  ///
  /// The tile keeps its gap's beginning; the gap above belongs to the next tile, which there always is.
  mutating func replace(_ start: UInt64, with value: Tile.Value) -> Tile.Value? {
    guard let old = seekRange(from: start) else { return nil }
    let floor = tree.key
    tree.seek(old.end)
    let above = tree.value
    guard floor <= value.start, value.end <= above.start else { return nil }
    if value.end != old.end {
      tree.rekey(value.end, value.end < old.end ? .raised(value.end, above) : .lowered(old.end, above))
      noteGap(from: old.end, to: above.start, becomes: value.end, above.start)
    }
    tree.seek(floor)
    tree.leaf.setValue(tree.slot, value)
    if value.start != old.start {
      tree.note(value.start > old.start ? .raised(floor, value) : .lowered(floor, old))
      noteGap(from: floor, to: old.start, becomes: floor, value.start)
    }
    note(old, -1)
    note(value, 1)
    return old
  }

  /// Keeps what is known of the space below 4 GiB right where a gap changes at one end.
  private mutating func noteGap(from floor: UInt64, to end: UInt64, becomes newFloor: UInt64, _ newEnd: UInt64) {
    guard min(floor, newFloor) < low.end else { return }
    if newEnd - newFloor > end - floor {
      low.capacity = max(low.capacity, Room.capacity(ofGapFrom: newFloor, to: min(newEnd, low.end)))
    } else {
      low.isExact = false
    }
  }

  /// ``RangeStore/carve(_:)``
  mutating func carve(_ value: Tile.Value) -> Outcome {
    tree.seek(value.start)
    guard tree.slot >= 0 else { return .noSpace }
    let old = tree.value
    guard old.kind != nil, old.start <= value.start, value.end <= old.end else { return .noSpace }
    let isBelow = old.start < value.start, isAbove = value.end < old.end
    guard tree.reserveInsertions((isBelow ? 1 : 0) + (isAbove ? 1 : 0)) else { return .outOfMemory }
    // The first of the new ones has the old one's gap below it, the others have none.
    var first = isBelow ? old : value
    if isBelow { first.end = value.start }
    tree.leaf.setValue(tree.slot, first)
    if isBelow { insert(value, behind: first) }
    if isAbove {
      var rest = old
      rest.start = value.end
      insert(rest, behind: value)
    }
    note(old, -1)
    note(first, 1)
    return .placed(value.start)
  }

  /// Inserts a tile without a gap. There is memory for it.
  private mutating func insert(_ value: Tile.Value, behind below: Tile.Value) {
    let isReserved = tree.reserveInsertion()
    assert(isReserved)
    tree.seek(below.start)
    tree.slot += 1
    tree.insert(value.start, value, .raised(value.start, value))
    note(value, 1)
  }
}
