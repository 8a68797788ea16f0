import AddressSpace
import AddressSpaceModels
import Testing

/// A store in 4 KiB granules.
func makeStore(_ usable: IOVARange...) throws -> RangeStore {
  try RangeStore(usable: IOVARanges(usable), granule: .fourKiB)
}

/// What a call failed with; `nil` when it succeeded.
func failure(_ body: () throws(RangeStoreFailure) -> Void) -> RangeStoreFailure? {
  do throws(RangeStoreFailure) { try body() } catch { return error }
  return nil
}

/// The start of an allocation, or why there is none.
func allocate(_ store: borrowing RangeStore, _ request: RangeStore.Request) -> Result<
  UInt64, RangeStoreFailure
> {
  do throws(RangeStoreFailure) { return .success(try store.allocate(request).rawValue) } catch {
    return .failure(error)
  }
}

struct RangeStoreAllocationTests {
  typealias Request = RangeStore.Request

  /// Where the first range goes in 0x1000…0xff_ffff.
  @Test(
    arguments: [
      (Request(byteCount: 0x1000), 0xff_f000), (Request(byteCount: 0x3000), 0xff_c000),
      (Request(byteCount: 0x3000, alignment: .fourKiB), 0xff_d000),
      (Request(byteCount: 0x1000, alignment: PageSize(shift: 0)), 0xff_f000),
      (Request(byteCount: 0x1000, alignment: PageSize(shift: 20)), 0xf0_0000),
      (Request(byteCount: 0x1000, limit: 0x7f_ffff), 0x7f_f000),
      (Request(byteCount: 0x1000, limit: 0x80_0ffe), 0x7f_f000),
      (Request(byteCount: 0x2000, limit: 0x80_0fff), 0x7f_e000),
      (
        Request(byteCount: 0x3000, alignment: .fourKiB, limit: 0x10_0fff, boundary: PageSize(shift: 16)),
        0xf_d000
      ),
      (Request(byteCount: 0x1000, direction: .bottomUp), 0x1000),
      (Request(byteCount: 0x2000, direction: .bottomUp), 0x2000),
      (Request(byteCount: 0x3000, alignment: .fourKiB, direction: .bottomUp), 0x1000),
      (Request(byteCount: 0x1000, lowest: 0x10_0001, direction: .bottomUp), 0x10_1000),
      (
        Request(
          byteCount: 0x3000, alignment: .fourKiB, lowest: 0xf_e000, boundary: PageSize(shift: 16),
          direction: .bottomUp), 0x10_0000
      ),
    ] as [(Request, UInt64)])
  func placesTheFirst(_ request: Request, _ expected: UInt64) throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    #expect(allocate(store, request) == .success(expected))
    #expect(store.checkInvariants() == nil)
  }

  @Test(
    arguments: [
      (Request(byteCount: 0), .empty), (Request(byteCount: 0x1001), .unaligned),
      (Request(byteCount: 0xfff), .unaligned),
      (Request(byteCount: 0x4000, boundary: PageSize(shift: 13)), .boundaryTooSmall),
      (Request(byteCount: 0x100_0000), .noSpace), (Request(byteCount: 0x1000, limit: 0xfff), .noSpace),
      (Request(byteCount: 0x1000, limit: 0x1ffe), .noSpace),
      (Request(byteCount: 0x1000, lowest: 0xff_f001), .noSpace),
      (Request(byteCount: 0x1000, limit: 0x7fff, lowest: 0x8000), .noSpace),
      (Request(byteCount: .max - 0xfff), .noSpace),
      (Request(byteCount: 0x1000, alignment: PageSize(shift: 63)), .noSpace),
    ] as [(Request, RangeStoreFailure)])
  func refuses(_ request: Request, _ expected: RangeStoreFailure) throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    #expect(allocate(store, request) == .failure(expected))
    #expect(store.count == 0)
  }

  @Test func fillsDownwardsAndUpwardsUntilFull() throws {
    for direction in [RangeStore.Direction.topDown, .bottomUp] {
      let store = try makeStore(range(0x1000, 0x10_0fff))
      let expected = (0..<256).map { UInt64(direction == .topDown ? 256 - $0 : $0 + 1) << 12 }
      #expect(
        try expected.map { _ in try store.allocate(Request(byteCount: 0x1000, direction: direction)).rawValue
        } == expected)
      #expect(allocate(store, Request(byteCount: 0x1000)) == .failure(.noSpace))
      #expect(store.byteCount == 0x10_0000)
      #expect(store.checkInvariants() == nil)
    }
  }

  @Test func reachesTheTopOfTheSpace() throws {
    let store = try RangeStore(usable: [.full], granule: .fourKiB)
    #expect(allocate(store, Request(byteCount: 0x1000)) == .success(.max - 0xfff))
    #expect(allocate(store, Request(byteCount: 1 << 63)) == .success(0))
    #expect(allocate(store, Request(byteCount: 1 << 63)) == .failure(.noSpace))
    #expect(store.find(containing: IOVA(.max))?.range == range(.max - 0xfff, .max))
    #expect(store.remove(IOVA(.max - 0xfff)) != nil)
    #expect(store.checkInvariants() == nil)
  }

  @Test func findsFreedSpaceAtOnce() throws {
    let store = try makeStore(range(0, 0xf_ffff))
    let starts = try (0..<256).map { _ in try store.allocate(Request(byteCount: 0x1000)) }
    for start in [starts[200], starts[100], starts[0], starts[255]] {
      store.remove(start)
      #expect(allocate(store, Request(byteCount: 0x1000)) == .success(start.rawValue))
    }
  }

  /// 256 blocks of 64 KiB with three free granules each. In one of them two lie at a multiple of 64 KiB.
  @Test func givesUpOnGapsThatMightFitButTakesOneThatSurelyDoes() throws {
    let store = try makeStore(range(0, 0xff_ffff))
    for block in UInt64(0)..<256 {
      for page in UInt64(0)..<16 where block == 100 ? page > 2 : page == 0 || page > 3 {
        let start = block << 16 | page << 12
        try store.insert(RangeStore.Node(range: range(start, start | 0xfff), kind: .fixed))
      }
    }
    var request = Request(byteCount: 0x2000, alignment: PageSize(shift: 16))
    #expect(allocate(store, request) == .failure(.fragmented))
    // A window in which it is the 32nd is searched to its end.
    request.limit = 131 << 16 + 0xffff
    #expect(allocate(store, request) == .success(100 << 16))
    request.lowest = 100 << 16
    #expect(allocate(store, request) == .failure(.noSpace), "31 were tried, and there are no more")
    // A block that is free as a whole is found behind any number.
    for page in UInt64(0)..<16 { store.remove(IOVA(50 << 16 | page << 12)) }
    #expect(allocate(store, Request(byteCount: 0x2000, alignment: PageSize(shift: 16))) == .success(50 << 16))
  }
}

struct RangeStoreFixedTests {
  static func node(_ start: UInt64, _ last: UInt64, _ kind: RangeStore.Kind = .fixed) -> RangeStore.Node {
    RangeStore.Node(range: range(start, last), kind: kind, tag: 7, auxiliary: 9)
  }

  @Test(
    arguments: [
      (node(0x1800, 0x2fff), .unaligned), (node(0x1000, 0x2ffe), .unaligned),
      (node(0, 0x1fff), .outsideAperture(range(0, 0xfff))),
      (node(0, 0xfff), .outsideAperture(range(0, 0xfff))),
      (node(0xf000, 0x1_0fff), .outsideAperture(range(0x1_0000, 0x1_0fff))),
      (node(0x1_0000, 0x1_0fff), .outsideAperture(range(0x1_0000, 0x1_0fff))),
      (node(0x2_8000, .max), .outsideAperture(range(0x3_0000, .max))),
      (node(0x5_0000, 0x5_ffff), .outsideAperture(range(0x5_0000, 0x5_ffff))),
      (node(0x4000, 0x4fff), .occupied(range(0x4000, 0x5fff))),
      (node(0x3000, 0x6fff), .occupied(range(0x4000, 0x5fff))),
      (node(0x5000, 0x8fff), .occupied(range(0x4000, 0x5fff))),
      (node(0x7000, 0x8fff), .reserved(range(0x8000, 0x8fff))),
      (node(0x9000, 0x9fff), .reserved(range(0x9000, 0x9fff))),
      (node(0xe000, 0xefff), .aboveLimit(limit: 0xdfff)),
      (node(0xd000, 0xefff), .aboveLimit(limit: 0xdfff)),
    ] as [(RangeStore.Node, RangeStoreFailure)])
  func refuses(_ node: RangeStore.Node, _ expected: RangeStoreFailure) throws {
    let store = try makeStore(range(0x1000, 0xffff), range(0x2_0000, 0x2_ffff))
    try store.insert(Self.node(0x4000, 0x5fff))
    try store.insert(Self.node(0x8000, 0x8fff, .reservation))
    try store.insert(Self.node(0x9000, 0x9fff, .guard))
    let limit: UInt64 = if case .aboveLimit(let limit) = expected { limit } else { .max }
    #expect(failure { () throws(RangeStoreFailure) in try store.insert(node, limit: limit) } == expected)
    #expect(store.count == 3)
    #expect(store.checkInvariants() == nil)
  }

  @Test func givesBackWhatItKept() throws {
    let store = try makeStore(range(0, 0xffff))
    for kind in RangeStore.Kind.allCases {
      let node = Self.node(0x2000, 0x4fff, kind)
      try store.insert(node)
      #expect(store.find(containing: IOVA(0x4fff)) == node)
      #expect(store.find(overlapping: range(0, 0x2000)) == node)
      #expect(store.find(overlapping: range(0, 0x1fff)) == nil)
      #expect(store.next(from: IOVA(0x1fff)) == node)
      #expect(store.next(from: IOVA(0x2001)) == nil)
      #expect(store.count(of: kind) == 1 && store.byteCount(of: kind) == 0x3000)
      #expect(store.remove(IOVA(0x3000)) == nil)
      #expect(store.remove(IOVA(0x2001)) == nil)
      #expect(store.remove(IOVA(0x2000)) == node)
      #expect(store.remove(IOVA(0x2000)) == nil)
      #expect(store.count == 0 && store.byteCount == 0)
    }
  }

  @Test func reservesWholeGranules() throws {
    let store = try makeStore(range(0, 0xffff))
    try store.reserve(range(0x1234, 0x2001))
    #expect(store.next(from: IOVA(0))?.range == range(0x1000, 0x2fff))
    #expect(
      failure { () throws(RangeStoreFailure) in try store.reserve(range(0x2fff, 0x3000)) }
        == .reserved(range(0x1000, 0x2fff)))
    #expect(store.unreserve(range(0x1234, 0x1235)) == false)
    #expect(store.unreserve(range(0x1fff, 0x2fff)) == true)
    #expect(store.unreserve(range(0x1fff, 0x2fff)) == false)
    try store.insert(Self.node(0x1000, 0x1fff))
    #expect(store.unreserve(range(0x1000, 0x1fff)) == false, "no reservation")
  }

  @Test func needsAGranuleOf4Bytes() {
    #expect(
      failure { () throws(RangeStoreFailure) in
        _ = try RangeStore(usable: [.full], granule: PageSize(shift: 1))
      } == .granuleTooSmall)
  }
}

struct RangeStoreRoomTests {
  /// Every gap in 64 granules: the largest length that an allocation with natural alignment gets.
  @Test func capacityOfEveryGap() throws {
    for first in UInt64(0)..<64 {
      for last in first..<64 {
        let store = try makeStore(range(first << 12, last << 12 | 0xfff))
        let largest = store.largestFreeByteCount()
        #expect(
          largest
            == NaiveStore(usable: [range(first << 12, last << 12 | 0xfff)], granule: .fourKiB)
            .largestFreeByteCount(.full))
        #expect(
          store.largestFreeOrder().map { 1 << UInt64($0) <= largest && largest < 2 << UInt64($0) } == true)
        #expect(allocate(store, .init(byteCount: largest + 0x1000)) == .failure(.noSpace))
        #expect(throws: Never.self) { try store.allocate(.init(byteCount: largest)) }
      }
    }
  }

  @Test func remembersTheRoomBelow4GiB() throws {
    let store = try makeStore(range(0x1000, 0xfedf_ffff), range(0xfef0_0000, (1 << 48) - 1))
    let low = UInt64(UInt32.max)
    #expect(store.largestFreeOrder(limit: low) == 30)
    #expect(store.largestFreeOrder() == 47)
    while let start = try? store.allocate(.init(byteCount: 1 << 20, limit: low)) {
      #expect(start.rawValue <= low)
    }
    #expect(store.largestFreeOrder(limit: low) == 19)
    #expect(allocate(store, .init(byteCount: 1 << 20, limit: low)) == .failure(.noSpace))
    #expect(store.visits == 0, "a probe that must fail looks at no node")
    // A release elsewhere, of another size, or above 4 GiB does not bring the search back.
    store.remove(try store.allocate(.init(byteCount: 1 << 12, limit: low)))
    store.remove(try store.allocate(.init(byteCount: 1 << 20)))
    #expect(allocate(store, .init(byteCount: 1 << 20, limit: low)) == .failure(.noSpace))
    #expect(store.visits == 0)
    #expect(store.remove(IOVA(0x1000_0000)) != nil)
    #expect(store.largestFreeOrder(limit: low) == 20)
    #expect(allocate(store, .init(byteCount: 1 << 20, limit: low)) == .success(0x1000_0000))
    #expect(store.largestFreeOrder(limit: low, lowest: low - 0xfff) == nil)
  }

  @Test func hasNoRoomWhereNothingIsUsable() throws {
    let store = try makeStore(range(1, 0xffe))
    #expect(store.largestFreeByteCount() == 0)
    #expect(allocate(store, .init(byteCount: 0x1000)) == .failure(.noSpace))
    #expect(store.find(containing: IOVA(0)) == nil && store.next(from: IOVA(0)) == nil)
    #expect(store.checkInvariants() == nil)
  }
}
