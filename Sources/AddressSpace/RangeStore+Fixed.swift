// Ranges whose address the caller chose, and giving ranges back.

extension RangeStore {
  /// Occupies a range whose address the caller chose.
  ///
  /// - Parameter limit: the highest address that may be used, inside.
  /// - Throws: `unaligned`, `aboveLimit`, `outsideAperture`, `reserved` or `occupied` with the lowest
  ///   range that is in the way, `outOfMemory`.
  /// - Complexity: O(log n).
  package func insert(_ node: Node, limit: UInt64 = .max) throws(RangeStoreFailure) {
    let range = node.range
    guard isAligned(range) else { throw .unaligned }
    guard range.last.rawValue <= limit else { throw .aboveLimit(limit: limit) }
    let (start, end) = (unit(range.start), unit(range.last) + 1)
    let map = unsafe changingTiles
    let base = unsafe map.pointee.base
    guard start >= base else { throw .outsideAperture(self.range(start, min(end, base))) }
    unsafe map.pointee.tree.seek(start)
    let above = unsafe map.pointee.tree.value
    guard end <= above.start else { throw obstacle(above, to: start, end) }
    guard unsafe map.pointee.occupy(tile(node)) else { throw .outOfMemory }
  }

  /// What a tile that is in the way makes an insertion fail with.
  private func obstacle(_ value: Tile.Value, to start: UInt64, _ end: UInt64) -> RangeStoreFailure {
    switch value.kind {
    case .allocation, .fixed: .occupied(range(value.start, value.end))
    case .reservation, .guard: .reserved(range(value.start, value.end))
    // The mark above the last usable range is one granule long and stands for all above.
    case nil:
      unsafe .outsideAperture(
        range(max(value.start, start), value.start == map.pointee.top ? end : min(value.end, end)))
    }
  }

  /// Reserves every granule that has an address of a range in it.
  ///
  /// - Throws: As ``insert(_:limit:)``, less `unaligned`.
  /// - Complexity: O(log n).
  package func reserve(_ range: IOVARange, tag: UInt64 = 0) throws(RangeStoreFailure) {
    try insert(Node(range: range.widened(to: granule), kind: .reservation, tag: tag))
  }

  /// Lifts a reservation; `false` when there is none of exactly these granules.
  ///
  /// - Complexity: O(log n).
  package func unreserve(_ range: IOVARange) -> Bool {
    let range = range.widened(to: granule)
    guard let node = find(containing: range.start), node.range == range, node.kind == .reservation else {
      return false
    }
    return remove(range.start) != nil
  }

  /// Frees the node that starts at an address and returns it; `nil` when none does.
  ///
  /// - Complexity: O(log n).
  @discardableResult
  package func remove(_ start: IOVA) -> Node? {
    guard start.isAligned(to: granule), let value = unsafe changingTiles.pointee.release(unit(start)) else {
      return nil
    }
    return node(value)
  }

  /// Gives the node that starts at an address another tag and returns the one it had; `nil` when none starts there.
  ///
  /// - Complexity: O(log n).
  package func setTag(_ tag: UInt64, at start: IOVA) -> UInt64? {
    guard start.isAligned(to: granule), let old = unsafe changingTiles.pointee.retag(unit(start), tag) else {
      return nil
    }
    return old
  }
}
