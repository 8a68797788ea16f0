/// What an allocation must satisfy, in granules.
struct Fit {
  /// The number of granules.
  var size: UInt64
  /// The start is a multiple of one more than this.
  var alignmentMask: UInt64
  /// A multiple of one more than this must not be crossed; all ones when there is no boundary.
  var boundaryMask: UInt64
  /// The lowest granule that may be used.
  var low: UInt64
  /// The granule behind the highest that may be used.
  var high: UInt64
  /// The highest place is looked for rather than the lowest.
  var isTopDown: Bool
}

extension Fit {
  /// The natural alignment of the size, less one.
  var naturalMask: UInt64 { .max >> UInt64((size - 1).leadingZeroBitCount) }

  /// Any granule will do.
  var isUnaligned: Bool { alignmentMask == 0 && boundaryMask == .max }

  /// Naturally aligned ranges do not cross a boundary that is no smaller than they are.
  var isNatural: Bool { alignmentMask == naturalMask }

  /// What every gap with room for the range satisfies, and only those when ``isExact``.
  var necessary: Room.Query {
    isNatural ? .capacity(size) : .length(size)
  }

  /// What only gaps with room for the range satisfy: room for a range with natural alignment that is no
  /// smaller and no less aligned.
  var sufficient: Room.Query {
    .capacity(alignmentMask > naturalMask ? (alignmentMask + 1) / 2 + 1 : size)
  }

  /// Whether ``necessary`` is sufficient too.
  var isExact: Bool { isNatural || isUnaligned }

  /// Where in a gap the range goes; `nil` when it does not fit.
  ///
  /// Granules, sizes and masks are below 2⁶², so that no sum of two wraps.
  @inline(__always)
  func place(from floor: UInt64, to end: UInt64) -> UInt64? {
    let (floor, end) = (max(floor, low), min(end, high))
    guard floor &+ size <= end else { return nil }
    return isTopDown ? placeHighest(floor, end) : placeLowest(floor, end)
  }

  @inline(__always)
  private func placeHighest(_ floor: UInt64, _ end: UInt64) -> UInt64? {
    var start = (end &- size) & ~alignmentMask
    let last = start &+ size &- 1
    if (start ^ last) & ~boundaryMask != 0 {
      // Right below the boundary that it crosses. A start that is a multiple of the boundary never
      // crosses one, so the alignment is smaller, and the range stays between two boundaries when it is
      // aligned down.
      let crossed = last & ~boundaryMask
      guard crossed >= floor &+ size else { return nil }
      start = (crossed &- size) & ~alignmentMask
    }
    return start >= floor ? start : nil
  }

  @inline(__always)
  private func placeLowest(_ floor: UInt64, _ end: UInt64) -> UInt64? {
    var start = (floor &+ alignmentMask) & ~alignmentMask
    let last = start &+ size &- 1
    // At the boundary that it crosses, which is a multiple of the alignment, as above.
    if (start ^ last) & ~boundaryMask != 0 { start = last & ~boundaryMask }
    return start &+ size <= end ? start : nil
  }

  /// Whether the part of a gap in the window has the length, be it aligned or not.
  fileprivate func isLongEnough(from floor: UInt64, to end: UInt64) -> Bool {
    max(floor, low) &+ size <= min(end, high)
  }
}

extension TileMap {
  /// The gaps that are tried for a request whose fit no summary tells exactly.
  static var candidateLimit: Int { 32 }

  /// How a search ended.
  enum Outcome {
    /// The start of the range.
    case placed(UInt64)
    /// No gap has room.
    case noSpace
    /// No gap surely has room, and not all of the others were tried.
    case fragmented
    /// The store cannot grow.
    case outOfMemory
  }

  /// Finds room and occupies it.
  ///
  /// - Complexity: O(log n).
  mutating func allocate(_ fit: Fit, kind: RangeStore.Kind, tag: UInt64, auxiliary: UInt32) -> Outcome {
    visits = 0
    let fit = clip(fit)
    guard fit.low < fit.high else { return .noSpace }
    let isLow = fit.isNatural && fit.high <= low.end
    if isLow && low.capacity < fit.size { return .noSpace }
    let found = find(fit)
    visits = tree.visits
    guard case .placed(let start) = found else {
      // The bound was too high. Only a probe of the whole low space may lower it.
      if isLow && fit.high == min(low.end, top) && fit.low == base { _ = lowCapacity() }
      return found
    }
    let value = Tile.Value(
      start: start, end: start &+ fit.size, tag: tag, auxiliary: auxiliary, kind: kind)
    return occupy(value) ? found : .outOfMemory
  }

  private mutating func clip(_ fit: Fit) -> Fit {
    var fit = fit
    fit.low = max(fit.low, base)
    fit.high = min(fit.high, top)
    return fit
  }

  /// Sets the cursor on the first tile, in the direction, with room for a range in its gap.
  ///
  /// The tile at either end of the window is clipped by it and tried by itself. For those between the
  /// summaries tell: exactly when `fit.isExact`; or else gaps that are long enough are tried, up to
  /// ``candidateLimit``.
  private mutating func find(_ fit: Fit) -> Outcome {
    let step = fit.isTopDown ? -1 : 1
    let query = fit.necessary
    var candidates = fit.isExact ? Int.max : TileMap.candidateLimit
    if fit.isTopDown ? fit.high == top : fit.low == base {
      // The first tile is not clipped: the way down from the root is half the way up and down from that tile.
      guard tree.searchAll(step: step, for: query) else { return .noSpace }
    } else {
      tree.seek(fit.isTopDown ? fit.high - 1 : fit.low)
    }
    while true {
      let (floor, value) = (tree.key, tree.value)
      if let place = fit.place(from: floor, to: value.start) { return .placed(place) }
      let isLast = fit.isTopDown ? floor <= fit.low : value.end >= fit.high
      if isLast { return .noSpace }
      if fit.isLongEnough(from: floor, to: value.start) { candidates -= 1 }
      tree.slot += step
      guard tree.search(step: step, for: query) else { return .noSpace }
      if candidates == 0 { return findSure(fit, step) }
    }
  }

  /// From the first gap that was not tried on, looks only at those that surely have room.
  private mutating func findSure(_ fit: Fit, _ step: Int) -> Outcome {
    guard fit.isLongEnough(from: tree.key, to: tree.value.start) else { return .noSpace }
    guard tree.search(step: step, for: fit.sufficient),
      let place = fit.place(from: tree.key, to: tree.value.start)
    else { return .fragmented }
    return .placed(place)
  }
}
