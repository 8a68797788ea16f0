import AddressSpace
import Testing

/// Releasing what was allocated last and asking for the same again, which leaves the tree alone: nobody may notice.
struct RangeStoreAgainTests {
  typealias Request = RangeStore.Request
  let page = Request(byteCount: 0x1000)

  @Test func theSameComesAgainWithItsOwnTag() throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    let first = try store.allocate(page, tag: 1)
    #expect(store.remove(first)?.tag == 1)
    let again = try store.allocate(page, kind: .fixed, tag: 2, auxiliary: 3)
    #expect(again == first)
    let node = store.find(containing: again)
    #expect(node?.kind == .fixed && node?.tag == 2 && node?.auxiliary == 3)
    #expect(store.count == 1 && store.count(of: .fixed) == 1 && store.byteCount == 0x1000)
    #expect(store.visits == 0, "no node was looked at")
    #expect(store.checkInvariants() == nil)
  }

  @Test func whatWasReleasedIsGone() throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    let whole = store.largestFreeByteCount()
    let start = try store.allocate(page)
    store.remove(start)
    #expect(store.remove(start) == nil, "released twice")
    #expect(store.find(containing: start) == nil)
    #expect(store.find(overlapping: range(0, 0xff_ffff)) == nil)
    #expect(store.next(from: IOVA(0)) == nil)
    #expect(store.count == 0 && store.byteCount == 0)
    store.forEach { _ in Issue.record("a node") }
    #expect(store.checkInvariants() == nil)
    #expect(store.largestFreeByteCount() == whole, "its granules are free")
    #expect(store.checkInvariants() == nil)
  }

  /// The range is the only one that the second request could get.
  @Test(
    arguments: [
      Request(byteCount: 0x1000, limit: 0x1fff), Request(byteCount: 0x1000, lowest: 0x1000),
      Request(byteCount: 0x1000, direction: .bottomUp), Request(byteCount: 0x1000, alignment: .fourKiB),
      Request(byteCount: 0x1000, boundary: PageSize(shift: 13)),
    ])
  func anotherRequestSearches(_ other: Request) throws {
    let store = try makeStore(range(0x1000, 0x1fff))
    store.remove(try store.allocate(page))
    #expect(allocate(store, other) == .success(0x1000))
    #expect(store.checkInvariants() == nil)
  }

  @Test func aLimitBelowItIsKept() throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    store.remove(try store.allocate(page))
    #expect(allocate(store, Request(byteCount: 0x1000, limit: 0x7f_ffff)) == .success(0x7f_f000))
    #expect(allocate(store, page) == .success(0xff_f000))
    #expect(store.checkInvariants() == nil)
  }

  @Test func anInsertionTakesItsPlace() throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    let start = try store.allocate(page)
    store.remove(start)
    try store.insert(RangeStore.Node(range: range(0xff_e000, 0xff_ffff), kind: .reservation))
    #expect(allocate(store, page) == .success(0xff_d000))
    #expect(store.checkInvariants() == nil)
  }

  /// A neighbour that goes joins with the gap that it left.
  @Test func neighboursThatGoJoinIt() throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    let first = try store.allocate(page), second = try store.allocate(page)
    store.remove(second)
    store.remove(first)
    #expect(store.largestFreeByteCount() == 0x80_0000)
    #expect(allocate(store, Request(byteCount: 0x2000)) == .success(0xff_e000))
    #expect(store.checkInvariants() == nil)
  }

  /// Full leaves split while the last allocation is remembered.
  @Test func manyInARow() throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    var expected: UInt64 = 0xff_f000
    for _ in 0..<1_000 {
      let start = try store.allocate(page)
      #expect(start.rawValue == expected)
      #expect(store.remove(start)?.start == start)
      #expect(try store.allocate(page) == start)
      #expect(store.checkInvariants() == nil)
      expected -= 0x1000
    }
    #expect(store.count == 1_000)
  }
}
