import AddressSpace
import AddressSpaceModels
import Testing

struct IntervalIndexTests {
  typealias Interval = IntervalIndex.Interval

  static func interval(_ start: UInt64, _ byteCount: UInt64, _ address: UInt64) -> Interval {
    Interval(start: start, byteCount: byteCount, address: IOVA(address))
  }

  /// One long interval, a short one inside it, one that overlaps its end, and the first memory mapped a
  /// second time.
  static let sample = [
    interval(0x1000, 0x9000, 0xa000), interval(0x3000, 0x1000, 0xb000), interval(0x9000, 0x4000, 0xc000),
    interval(0x1000, 0x9000, 0xd000), interval(.max - 0xfff, 0x1000, 0xe000),
  ]

  @Test(
    arguments: [
      (0x1000, 1, 3 as Int?), (0xfff, 1, nil), (0x2fff, 1, 3), (0x2fff, 2, 3), (0x3000, 0x1000, 1),
      (0x3000, 0x1001, 3),
      (0x3fff, 1, 1), (0x3fff, 2, 3), (0x9000, 0x1000, 2), (0x8fff, 0x1001, 3), (0x8fff, 0x1002, nil),
      (0xc000, 0x1000, 2),
      (0xc000, 0x1001, nil), (0x1000, 0x9000, 3), (0x1000, 0x9001, nil), (0x1000, 0, nil), (.max, 1, 4),
      (.max, 2, nil),
      (.max - 0x1000, 1, nil), (0x1000, .max, nil), (0, .max, nil),
    ] as [(UInt64, UInt64, Int?)])
  func findsTheWholeRange(_ start: UInt64, _ byteCount: UInt64, _ expected: Int?) throws {
    let index = try IntervalIndex()
    for interval in Self.sample { try index.insert(interval) }
    #expect(index.find(containing: start, byteCount: byteCount) == expected.map { Self.sample[$0] })
  }

  @Test(
    arguments: [
      (interval(0x1000, 0, 0), .empty), (interval(.max, 2, 0), .overflow), (interval(1, .max, 0), nil),
      (interval(0x3000, 8, 0xb000), .duplicate), (interval(0x3000, 0x1000, 0xb001), nil),
    ] as [(Interval, RangeStoreFailure?)])
  func refuses(_ interval: Interval, _ expected: RangeStoreFailure?) throws {
    let index = try IntervalIndex()
    for interval in Self.sample { try index.insert(interval) }
    #expect(failure { () throws(RangeStoreFailure) in try index.insert(interval) } == expected)
    #expect(index.count == Self.sample.count + (expected == nil ? 1 : 0))
  }

  @Test func removesByBothAddresses() throws {
    let index = try IntervalIndex()
    for interval in Self.sample { try index.insert(interval) }
    #expect(index.remove(start: 0x1000, address: IOVA(0xc000)) == nil)
    #expect(index.remove(start: 0x1001, address: IOVA(0xd000)) == nil)
    #expect(index.remove(start: 0x1000, address: IOVA(0xd000)) == Self.sample[3])
    #expect(index.find(containing: 0x1000) == Self.sample[0])
    var left: [Interval] = []
    index.forEach { left.append($0) }
    #expect(left == [0, 1, 2, 4].map { Self.sample[$0] })
  }

  /// A trace against an array: few addresses, so that memory is mapped twice and intervals nest and overlap.
  @Test(arguments: [(60, 400), (1_000, 60), (1 << 40, 30)] as [(UInt64, Int)])
  func agreesWithTheModel(_ width: UInt64, _ spread: Int) throws {
    let index = try IntervalIndex()
    var model: [Interval] = []
    var random = SplitMix64(seed: RangeStoreModelTests.seed)
    for step in 0..<RangeStoreModelTests.steps * 2 {
      let start = UInt64.random(in: 0...width, using: &random)
      if Int.random(in: 0..<10, using: &random) < (model.count > 500 ? 3 : 6) {
        let new = Self.interval(
          start, .random(in: 1...UInt64(spread) * 4, using: &random), UInt64(random.next() % 4))
        let isThere = model.contains { $0.start == new.start && $0.address == new.address }
        #expect(
          failure { () throws(RangeStoreFailure) in try index.insert(new) } == (isThere ? .duplicate : nil))
        if !isThere { model.append(new) }
      } else if let position = model.indices.randomElement(using: &random) {
        let old = model.remove(at: position)
        #expect(index.remove(start: old.start, address: old.address) == old)
        #expect(index.remove(start: old.start, address: old.address) == nil)
      }
      let byteCount = UInt64.random(in: 1...UInt64(spread), using: &random)
      let expected = model.filter { $0.start <= start && start - $0.start + byteCount <= $0.byteCount }
        .max { ($0.start, $0.address) < ($1.start, $1.address) }
      try #require(index.find(containing: start, byteCount: byteCount) == expected, "step \(step)")
      try #require(index.checkInvariants() == nil, "step \(step)")
    }
    #expect(index.count == model.count)
  }

  /// Intervals that all hold an address, none that reach far enough, and many that only touch: a search
  /// visits a node a level on each way, found or not.
  @Test func isLogarithmicHoweverManyOverlap() throws {
    let index = try IntervalIndex()
    let count: UInt64 = 20_000
    for item in 0..<count { try index.insert(Self.interval(item, 2 * count - item, item)) }
    let bound = 2 * RangeStoreComplexityTests.logarithm(Int(count))
    for start in [0, 1, count / 2, count - 1, count, count + 1] {
      #expect(index.find(containing: start)?.start == min(start, count - 1))
      #expect(index.visits <= bound)
      #expect(index.find(containing: start, byteCount: 2 * count - start)?.start == min(start, count - 1))
      #expect(index.find(containing: start, byteCount: 2 * count + 1 - start) == nil)
      #expect(index.visits <= bound)
    }
    // One that reaches further, at the very bottom.
    try index.insert(Self.interval(0, 4 * count, count))
    #expect(index.find(containing: count, byteCount: 2 * count)?.byteCount == 4 * count)
    #expect(index.visits <= bound)
  }

  /// The same memory mapped a thousand times: all are kept, and each is removed by its own device address.
  @Test func keepsManyMappingsOfOneBuffer() throws {
    let index = try IntervalIndex()
    for item in UInt64(0)..<1_000 { try index.insert(Self.interval(0x1000, 0x1000, item << 12)) }
    for item in (UInt64(0)..<1_000).reversed() {
      #expect(index.find(containing: 0x1800) == Self.interval(0x1000, 0x1000, item << 12))
      #expect(index.remove(start: 0x1000, address: IOVA(item << 12)) != nil)
    }
    #expect(index.find(containing: 0x1800) == nil)
    #expect(index.count == 0 && index.checkInvariants() == nil)
  }
}
