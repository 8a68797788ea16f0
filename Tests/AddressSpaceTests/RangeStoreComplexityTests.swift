import AddressSpace
import AddressSpaceModels
import Testing

/// What searches cost in a space of many fragments, in nodes visited: counted, never timed.
struct RangeStoreComplexityTests {
  typealias Request = RangeStore.Request

  /// 10⁵ ranges in a debug build, 5·10⁵ in a release build.
  #if DEBUG
    static let fragments: UInt64 = 100_000
  #else
    static let fragments: UInt64 = 500_000
  #endif

  /// The top of a space of that many allocations of one granule, each with a gap of one granule below.
  static let top = fragments * 2 << 12

  /// The space of fragments, above it a row of gaps of two granules of which no two are naturally
  /// aligned, and below everything 65 free granules.
  static func fragmented() throws -> RangeStore {
    let store = try makeStore(range(0, top + 1 << 22 - 1))
    for index in 0..<fragments where index >= 32 {
      try store.insert(
        RangeStore.Node(range: range(index << 13 | 0x1000, index << 13 | 0x1fff), kind: .allocation))
    }
    for block in 0..<UInt64(256) {
      let start = top + block << 14
      try store.insert(RangeStore.Node(range: range(start, start + 0xfff), kind: .allocation))
      try store.insert(RangeStore.Node(range: range(start + 0x3000, start + 0x3fff), kind: .allocation))
    }
    return store
  }

  static func logarithm(_ count: Int) -> Int { Int.bitWidth - count.leadingZeroBitCount }

  @Test func isLogarithmicToSucceedAndToFail() throws {
    let store = try Self.fragmented()
    #expect(store.checkInvariants() == nil)
    let bound = 2 * Self.logarithm(store.count)
    let requests: [(Request, Result<UInt64, RangeStoreFailure>)] = [
      (Request(byteCount: 0x4_0000), .success(0)), (Request(byteCount: 0x8_0000), .failure(.noSpace)),
      (Request(byteCount: 0x4_1000, alignment: .fourKiB), .success(0)),
      (Request(byteCount: 0x4_2000, alignment: .fourKiB), .failure(.noSpace)),
      (Request(byteCount: 0x1000), .success(Self.top + 255 << 14 + 0x2000)),
      (Request(byteCount: 0x2000, limit: Self.top - 1), .success(0x3_e000)),
      (Request(byteCount: 0x2000, limit: Self.top - 1, lowest: 0x4_1000), .failure(.noSpace)),
      (Request(byteCount: 0x2000, lowest: 0x4_1000, direction: .bottomUp), .failure(.noSpace)),
      (
        Request(byteCount: 0x2000, alignment: .fourKiB, lowest: 0x4_1000, direction: .bottomUp),
        .success(Self.top + 0x1000)
      ),
      (Request(byteCount: 0x3000, alignment: .fourKiB), .success(0x3_e000)),
      (Request(byteCount: 0x3000, alignment: .fourKiB, lowest: 0x4_0000), .failure(.noSpace)),
    ]
    for (request, expected) in requests {
      let got = allocate(store, request)
      let visits = store.visits
      #expect(got == expected, "\(request)")
      #expect(visits <= bound, "\(visits) nodes for \(request)")
      if case .success(let start) = got { store.remove(IOVA(start)) }
    }
  }

  /// Alignments that no summary knows: bounded, and a place that surely fits is found behind gaps that do
  /// not.
  @Test func isBoundedForAnyAlignment() throws {
    let store = try Self.fragmented()
    let bound = 33 * 2 * Self.logarithm(store.count)
    let requests: [(Request, Result<UInt64, RangeStoreFailure>)] = [
      (Request(byteCount: 0x2000, alignment: PageSize(shift: 14)), .success(0x3_c000)),
      (Request(byteCount: 0x2000, alignment: PageSize(shift: 14), lowest: 0x3_f000), .failure(.fragmented)),
      (
        Request(byteCount: 0x2000, alignment: PageSize(shift: 14), lowest: 0x3_f000, direction: .bottomUp),
        .failure(.fragmented)
      ),
      (
        Request(byteCount: 0x2000, alignment: .fourKiB, lowest: Self.top, boundary: PageSize(shift: 13)),
        .failure(.fragmented)
      ),
    ]
    for (request, expected) in requests {
      #expect(allocate(store, request) == expected, "\(request)")
      #expect(store.visits <= bound, "\(store.visits) nodes for \(request)")
      if case .success(let start) = expected { store.remove(IOVA(start)) }
    }
  }

  @Test func aFailureIsCheapRightAfterARelease() throws {
    let store = try Self.fragmented()
    let bound = 2 * Self.logarithm(store.count)
    var random = SplitMix64(seed: 1)
    for _ in 0..<200 {
      let start = IOVA(UInt64.random(in: 32..<Self.fragments, using: &random) << 13 | 0x1000)
      let removed = store.remove(start)
      let node = try #require(removed)
      #expect(allocate(store, Request(byteCount: 0x8_0000)) == .failure(.noSpace))
      #expect(store.visits <= bound)
      try store.insert(node)
    }
  }
}

struct RangeStoreMemoryTests {
  @Test func startsSmall() throws {
    let store = try makeStore(range(0x1000, 0xfedf_ffff), range(0xfef0_0000, (1 << 48) - 1))
    for _ in 0..<40 { _ = try store.allocate(.init(byteCount: 0x1000)) }
    #expect(store.footprint <= 16 << 10)
    #expect(try IntervalIndex().footprint <= 8 << 10)
  }

  /// A run of allocations leaves nodes three quarters full, whichever way it goes.
  @Test(arguments: [RangeStore.Direction.topDown, .bottomUp])
  func staysDense(_ direction: RangeStore.Direction) throws {
    let store = try makeStore(range(0x1000, (1 << 40) - 1))
    for _ in 0..<50_000 { _ = try store.allocate(.init(byteCount: 0x1000, direction: direction)) }
    #expect(store.footprint <= 50_000 * 72)
  }

  /// Memory runs out at every place where it can: the call says so and changes nothing, and the store
  /// goes on.
  @Test(arguments: 0..<6)
  func runsOutOfMemoryCleanly(_ chunks: Int) throws {
    let store = try makeStore(range(0, (1 << 40) - 1))
    store.limitMemory(toChunks: chunks)
    var starts: [IOVA] = []
    var refused = false
    while !refused && starts.count < 20_000 {
      switch allocate(store, .init(byteCount: 0x1000)) {
      case .success(let start): starts.append(IOVA(start))
      case .failure(let reason):
        #expect(reason == .outOfMemory)
        refused = true
      }
    }
    #expect(refused && store.count == starts.count)
    #expect(store.checkInvariants() == nil)
    let node = RangeStore.Node(range: range(0, 0xfff), kind: .fixed)
    #expect(failure { () throws(RangeStoreFailure) in try store.insert(node) } == .outOfMemory)
    for start in starts.shuffled() { #expect(store.remove(start) != nil) }
    #expect(store.count == 0 && store.checkInvariants() == nil)
    #expect(allocate(store, .init(byteCount: 0x1000)) == .success((1 << 40) - 0x1000))
  }

  @Test func indexRunsOutOfMemoryCleanly() throws {
    let index = try IntervalIndex()
    index.limitMemory(toChunks: 1)
    var count: UInt64 = 0
    while failure({ () throws(RangeStoreFailure) in
      try index.insert(.init(start: count * 8, byteCount: 8, address: IOVA(count)))
    }) == nil { count += 1 }
    #expect(index.count == Int(count) && index.checkInvariants() == nil)
    for item in 0..<count { #expect(index.remove(start: item * 8, address: IOVA(item)) != nil) }
    #expect(index.count == 0 && index.checkInvariants() == nil)
  }
}
