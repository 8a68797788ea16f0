extension RangeStore {
  /// The node that an address lies in; `nil` when it is free or not usable.
  ///
  /// - Complexity: O(log n).
  package func find(containing address: IOVA) -> Node? {
    let unit = unit(address)
    let (leaf, slot) = unsafe tiles.pointee.tree.lookUp(unit)
    guard slot >= 0 else { return nil }
    let value = leaf.value(slot)
    return value.start <= unit && unit < value.end ? node(value) : nil
  }

  /// The lowest node that has an address of a range.
  ///
  /// - Complexity: O(log n + u) with u the unusable ranges inside the range.
  package func find(overlapping range: IOVARange) -> Node? {
    guard let node = first(endingAbove: unit(range.start)), node.range.overlaps(range) else { return nil }
    return node
  }

  /// The lowest node that starts at an address or above: to walk the nodes while the store changes
  /// between the steps.
  ///
  /// - Complexity: O(log n + u) with u the unusable ranges on the way.
  package func next(from address: IOVA) -> Node? {
    var unit = unit(address)
    while let node = first(endingAbove: unit) {
      if node.start >= address { return node }
      unit = self.unit(node.range.last) + 1
    }
    return nil
  }

  /// The highest node that lies below an address as a whole: to walk the nodes downwards while the store changes between the steps.
  ///
  /// - Complexity: O(log n + u) with u the unusable ranges on the way.
  package func previous(below address: IOVA) -> Node? {
    unsafe tiles.pointee.value(below: unit(address)).flatMap { node($0) }
  }

  /// The lowest node that ends behind a granule.
  private func first(endingAbove unit: UInt64) -> Node? {
    unsafe tiles.pointee.value(from: unit).flatMap { node($0) }
  }

  /// Calls a function with every node, from the lowest. It must not change the store.
  ///
  /// - Complexity: O(n).
  package func forEach(_ body: (Node) -> Void) {
    unsafe tiles.pointee.tree.forEach { _, value in
      if let node = node(value) { body(node) }
    }
  }
}

// MARK: - Counters

extension RangeStore {
  /// The number of nodes.
  package var count: Int { Kind.allCases.reduce(0) { $0 + count(of: $1) } }

  /// The bytes that all nodes occupy; the highest number there is for 2⁶⁴ of them, as ``IOVARange/byteCount``.
  package var byteCount: UInt64 {
    byteCount(Kind.allCases.reduce(0) { unsafe $0 + tiles.pointee.granules[Int($1.rawValue)] })
  }

  /// The number of nodes of a kind.
  package func count(of kind: Kind) -> Int { unsafe tiles.pointee.counts[Int(kind.rawValue)] }

  /// The bytes that the nodes of a kind occupy.
  package func byteCount(of kind: Kind) -> UInt64 { byteCount(unsafe tiles.pointee.granules[Int(kind.rawValue)]) }

  private func byteCount(_ granules: UInt64) -> UInt64 {
    granules > .max >> UInt64(granule.shift) ? .max : granules << UInt64(granule.shift)
  }

  /// The bytes of memory that the nodes take.
  package var footprint: Int {
    unsafe tiles.pointee.tree.pool.byteCount + MemoryLayout<TileMap>.size
  }

  /// How many tree nodes the search of the last allocation looked at: a figure for tests and benchmarks.
  package var visits: Int { unsafe tiles.pointee.visits }

  /// The levels of the tree, a leaf's among them: what a search visits that goes straight to its place.
  package var levelCount: Int { unsafe tiles.pointee.tree.height + 1 }
}
