// What must hold of a store between any two operations. Tests call it; no operation does.

extension RangeStore {
  /// The first thing found that must not be, with addresses; `nil` when all is well.
  ///
  /// Changes nothing: what the tree is not told yet it is not told by this.
  ///
  /// - Complexity: O(n).
  package func checkInvariants() -> String? { unsafe map.pointee.checkInvariants() ?? checkLast() }

  /// What is remembered of the last allocation must be in the tree as it was allocated.
  private func checkLast() -> String? {
    let last = unsafe last.pointee
    if last.start == .max { return last.isFree && !last.isAhead ? nil : "none was allocated last, and it changed" }
    let start = unit(IOVA(last.start))
    let (leaf, slot) = unsafe map.pointee.tree.lookUp(start)
    guard slot >= 0, leaf.value(slot).start == start else { return "the last allocation \(last) has no node" }
    let value = leaf.value(slot)
    let isRight =
      value.kind == .allocation && value.auxiliary == 0 && range(value.start, value.end).byteCount == last.byteCount
      && range(value.start, value.end).last.rawValue <= last.limit && (last.isAhead || value.tag == last.tag)
    if !isRight { return "the last allocation \(last) is \(value) in the tree" }
    return last.isFree && !last.isAhead ? "the last allocation \(last) was released unnoticed" : nil
  }

  /// Lets the store's memory run out after so many more requests for a chunk of it.
  package func limitMemory(toChunks count: Int) { unsafe tiles.pointee.tree.pool.chunkBudget = count }
}

extension IntervalIndex {
  /// The first thing found that must not be; `nil` when all is well.
  ///
  /// - Complexity: O(n).
  package func checkInvariants() -> String? { unsafe tree.pointee.checkInvariants() }

  /// Lets the index's memory run out after so many more requests for a chunk of it.
  package func limitMemory(toChunks count: Int) { unsafe tree.pointee.pool.chunkBudget = count }
}

extension TileMap {
  func checkInvariants() -> String? {
    if let failure = tree.checkInvariants() { return failure }
    var failure: String?
    var floor = base
    var last: RangeStore.Kind? = .allocation
    var counts = [0, 0, 0, 0]
    var granules: [UInt64] = [0, 0, 0, 0]
    var room = Room.none
    tree.forEach { key, value in
      if key != floor { failure = "a tile at granule \(key) behind one that ends at \(floor)" }
      if value.start < key || value.end <= value.start {
        failure = "a tile from \(value.start) to \(value.end)"
      }
      if key < low.end { room.insert(gapFrom: key, to: max(key, min(value.start, low.end))) }
      if let kind = value.kind {
        counts[Int(kind.rawValue)] += 1
        granules[Int(kind.rawValue)] += value.end - value.start
      }
      (floor, last) = (value.end, value.kind)
    }
    if floor != top + 1 || last != nil { failure = "no mark above the last granule" }
    for kind in RangeStore.Kind.allCases.map({ Int($0.rawValue) })
    where counts[kind] != self.counts[kind] || granules[kind] != self.granules[kind] {
      failure = "\(counts[kind]) ranges of kind \(kind), counted \(self.counts[kind])"
    }
    if low.isExact ? low.capacity != room.capacity : low.capacity < room.capacity {
      failure = "capacity \(room.capacity) below 4 GiB, remembered \(low.capacity)"
    }
    return failure
  }
}
