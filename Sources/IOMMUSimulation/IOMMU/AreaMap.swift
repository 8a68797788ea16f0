/// Ranges of addresses that do not overlap, each with a value, in order.
///
/// A sorted array: look-up by binary search, insertion moves the tail. That is what a simulator of some ten
/// thousand areas needs, and simple enough to be right.
struct AreaMap<Value> {
  struct Area {
    let start: UInt64
    /// Inclusive, so that the top of the address space can be named.
    let last: UInt64
    var value: Value
    var byteCount: UInt64 { last - start + 1 }
  }

  private(set) var areas: [Area] = []

  var isEmpty: Bool { areas.isEmpty }
  var count: Int { areas.count }

  /// Index of the first area that ends at or after `address`. O(log n).
  func firstIndex(endingAtOrAfter address: UInt64) -> Int {
    var (low, high) = (0, areas.count)
    while low < high {
      let middle = (low + high) / 2
      if areas[middle].last < address { low = middle + 1 } else { high = middle }
    }
    return low
  }

  /// The area that holds an address. O(log n).
  func area(at address: UInt64) -> Area? {
    let index = firstIndex(endingAtOrAfter: address)
    return index < areas.count && areas[index].start <= address ? areas[index] : nil
  }

  /// The same, by the index of an area that was found before, which becomes that of this one. O(1) for itself and its neighbours.
  func area(at address: UInt64, near guess: inout Int) -> Area? {
    for index in guess - 1...guess + 1 where holds(index, address) {
      guess = index
      return areas[index]
    }
    let index = firstIndex(endingAtOrAfter: address)
    guard holds(index, address) else { return nil }
    guess = index
    return areas[index]
  }

  @inline(__always)
  private func holds(_ index: Int, _ address: UInt64) -> Bool {
    areas.indices.contains(index) && areas[index].start <= address && address <= areas[index].last
  }

  /// The lowest area that has an address in a range. O(log n).
  func first(in start: UInt64, through last: UInt64) -> Area? {
    let index = firstIndex(endingAtOrAfter: start)
    return index < areas.count && areas[index].start <= last ? areas[index] : nil
  }

  /// Adds an area where none is. O(n).
  mutating func insert(_ start: UInt64, through last: UInt64, _ value: Value) {
    assert(start <= last && first(in: start, through: last) == nil)
    areas.insert(Area(start: start, last: last, value: value), at: firstIndex(endingAtOrAfter: start))
  }

  /// Takes out the area that begins at an address. O(n).
  @discardableResult
  mutating func remove(startingAt start: UInt64) -> Area? {
    let index = firstIndex(endingAtOrAfter: start)
    guard index < areas.count, areas[index].start == start else { return nil }
    return areas.remove(at: index)
  }

  /// Takes out all that begin in a range. O(n).
  mutating func removeAll(from start: UInt64, through last: UInt64) -> [Area] {
    var first = firstIndex(endingAtOrAfter: start)
    if first < areas.count, areas[first].start < start { first += 1 }
    var end = firstIndex(endingAtOrAfter: last)
    if end < areas.count, areas[end].start <= last { end += 1 }
    guard first < end else { return [] }
    defer { areas.removeSubrange(first..<end) }
    return [Area](areas[first..<end])
  }

  /// Takes out everything. O(1).
  mutating func removeAll() -> [Area] {
    defer { areas = [] }
    return areas
  }
}
