/// How tiles are kept in a ``Tree``: an occupied range together with the free gap below it, in granules.
///
/// Tiles cover the space without holes: each begins where the one below ends. So a gap and what bounds it
/// are one record, an allocation splits one tile in two in place, and a release joins two.
enum Tile: TreeRecord {
  /// Where the gap begins.
  typealias Key = UInt64

  /// The occupied part, and what it stands for.
  struct Value: BitwiseCopyable {
    /// The first occupied granule, where the gap ends.
    var start: UInt64
    /// The first granule behind.
    var end: UInt64
    /// The user's 64 bits.
    var tag: UInt64
    /// The user's 32 bits.
    var auxiliary: UInt32
    /// What occupies the range; `nil` where it is not usable: between two usable ranges, and above the
    /// last one.
    var kind: RangeStore.Kind?
  }

  static func summarize(_ floor: UInt64, _ value: Value, into room: inout Room) {
    room.insert(gapFrom: floor, to: value.start)
  }

  static func admits(_ floor: UInt64, _ value: Value, _ query: Room.Query) -> Bool {
    guard value.start &- floor >= query.length else { return false }
    return query.capacity == 0 || Room.capacity(ofGapFrom: floor, to: value.start) >= query.capacity
  }
}

/// What fits into a set of gaps, in granules.
///
/// Two maxima answer exactly the two questions that requests ask: the longest gap, for a request that may
/// start at any granule, and the largest *capacity*, for one with natural alignment.
struct Room: TreeSummary {
  /// The length of the longest gap.
  var length: UInt64
  /// The largest capacity of a gap.
  var capacity: UInt64

  /// What is looked for: a gap that has both. A capacity is never above the length, so a query for a capacity
  /// names it as the length too, and then one gap has both exactly when the two maxima do.
  struct Query: BitwiseCopyable {
    private(set) var length: UInt64
    private(set) var capacity: UInt64

    static func length(_ length: UInt64) -> Query { Query(length: length, capacity: 0) }
    static func capacity(_ capacity: UInt64) -> Query { Query(length: capacity, capacity: capacity) }
  }

  static var none: Room { Room(length: 0, capacity: 0) }

  /// Branches, which mostly go the same way, are three times as fast here as the vector code for two
  /// maxima of 64 bits.
  @inline(__always)
  mutating func formUnion(_ other: Room) {
    if _slowPath(other.length > length) { length = other.length }
    if _slowPath(other.capacity > capacity) { capacity = other.capacity }
  }

  func covers(_ other: Room) -> Bool { length >= other.length && capacity >= other.capacity }

  func exceeds(_ other: Room) -> Bool { length > other.length && capacity > other.capacity }

  func admits(_ query: Query) -> Bool { length >= query.length && capacity >= query.capacity }

  /// Adds a gap, which may be empty. A gap no longer than the largest capacity so far cannot have a
  /// larger one.
  @inline(__always)
  mutating func insert(gapFrom floor: UInt64, to end: UInt64) {
    let gap = end &- floor
    length = max(length, gap)
    if gap > capacity { capacity = max(capacity, Room.capacity(ofGapFrom: floor, to: end)) }
  }

  /// The capacity of a gap: the largest n for which n granules with natural alignment, that is at a multiple
  /// of n rounded up to a power of two, fit. Every smaller n then fits as well.
  ///
  /// Let p be the boundary in the gap, its end included, that is a multiple of the highest power of two,
  /// 2^z. Less than 2^z granules lie below p, or else p − 2^z would be in the gap and one of the two a
  /// multiple of 2^(z+1). Above p, fewer than 2^z lie for the same reason, and whatever lies there fits
  /// at p. Below p, naturally aligned ranges end at p at best; of lengths in (2^j, 2^(j+1)] one fits only
  /// where 2^(j+1) granules lie below p, so the largest is the power of two that lies there.
  @inline(__always)
  static func capacity(ofGapFrom floor: UInt64, to end: UInt64) -> UInt64 {
    guard floor < end else { return 0 }
    // The highest bit in which the last granule before the gap differs from the end is where p differs
    // from everything before it. At 0 that granule is "−1", which differs everywhere: p is 0.
    let differing = UInt64.max >> UInt64(((floor &- 1) ^ end).leadingZeroBitCount)
    let boundary = end & ~(differing >> 1)
    let below = boundary &- floor
    let powerBelow = below == 0 ? 0 : UInt64(1) << UInt64(63 - below.leadingZeroBitCount)
    return max(end &- boundary, powerBelow)
  }
}
