import AddressSpace
import AddressSpaceModels
import Testing

/// Releasing what was allocated last and asking for the same again, which leaves the tree alone: nobody may notice.
struct RangeStoreAgainTests {
  typealias Request = RangeStore.Request
  let page = Request(byteCount: 0x1000)

  @Test func theSameComesAgainWithItsOwnTag() throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    let first = try store.allocate(page, tag: 1)
    #expect(store.again(page) == nil, "it is taken")
    #expect(store.removeLast(first) == 1)
    #expect(store.again(page, tag: 2) == first)
    #expect(store.find(containing: first)?.tag == 2)
    #expect(store.count == 1 && store.byteCount == 0x1000)
    #expect(store.removeLast(first) == 2)
    #expect(store.again(page, tag: 3) == first)
    #expect(store.remove(first)?.tag == 3)
    #expect(store.again(page) == nil, "the tree knows it as free")
    #expect(store.checkInvariants() == nil)
  }

  @Test func whatWasReleasedIsGone() throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    let whole = store.largestFreeByteCount()
    let start = try store.allocate(page)
    #expect(store.removeLast(start) == 0)
    #expect(store.removeLast(start) == nil, "released twice")
    #expect(store.remove(start) == nil, "released twice")
    #expect(store.find(containing: start) == nil)
    #expect(store.count == 0 && store.byteCount == 0)
    #expect(store.largestFreeByteCount() == whole)
    #expect(store.checkInvariants() == nil)
  }

  /// No address is the last allocation when there is none.
  @Test func nothingIsLastAtFirst() throws {
    let store = try makeStore(.full)
    for address in [0, 0x1000, UInt64.max] { #expect(store.removeLast(IOVA(address)) == nil) }
    // The top granule belongs to somebody: nothing above may release it.
    try store.insert(RangeStore.Node(range: range(0xffff_ffff_ffff_f000, .max), kind: .fixed, tag: 7))
    for address in [0, 0xffff_ffff_ffff_f000, UInt64.max] { #expect(store.removeLast(IOVA(address)) == nil) }
    #expect(store.find(containing: IOVA(.max))?.tag == 7)
    #expect(store.checkInvariants() == nil)
  }

  /// Releasing needs no memory, neither at once nor later, and a change that fails for want of it still is one.
  @Test func aStoreWithoutMemory() throws {
    let full = try makeStore(range(0x1000, 0xff_ffff)), store = try makeStore(range(0x1000, 0xff_ffff))
    full.limitMemory(toChunks: 0)
    store.limitMemory(toChunks: 0)
    while case .success = allocate(full, page) { _ = try store.allocate(page) }
    #expect(allocate(full, page) == .failure(.outOfMemory))
    #expect(full.again(page) == nil)
    let lowest = store.next(from: IOVA(0))
    let last = try #require(lowest).start
    #expect(store.removeLast(last) == 0)
    #expect(store.again(page, tag: 5) == last)
    #expect(store.removeLast(last) == 5)
    let low = RangeStore.Node(range: range(0x1000, 0x1fff), kind: .fixed)
    #expect(failure { () throws(RangeStoreFailure) in try store.insert(low) } == .outOfMemory)
    #expect(store.find(containing: last) == nil)
    #expect(store.again(page) == nil)
    #expect(store.count == full.count - 1)
    #expect(store.checkInvariants() == nil)
  }

  /// Each question by itself finds the tree up to date.
  @Test func everyQuestionKnows() throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    let everything = range(0, 0xff_ffff)
    let questions: [(String, (borrowing RangeStore) -> Bool)] = [
      ("find", { $0.find(overlapping: everything) == nil }), ("next", { $0.next(from: IOVA(0)) == nil }),
      ("count", { $0.count == 0 }), ("bytes", { $0.byteCount == 0 }),
      ("order", { $0.largestFreeOrder() == 23 }),
      (
        "each",
        { store in
          var count = 0
          store.forEach { _ in count += 1 }
          return count == 0
        }
      ),
    ]
    for (name, isRight) in questions {
      let start = try store.allocate(page)
      #expect(store.removeLast(start) != nil)
      let answer = isRight(store)
      #expect(answer, "\(name)")
    }
  }

  @Test(
    arguments: [
      Request(byteCount: 0x1000, limit: 0xff_fffe), Request(byteCount: 0x1000, alignment: PageSize(shift: 13)),
      Request(byteCount: 0x2000, alignment: .fourKiB),
    ])
  func anotherRequestSearches(_ other: Request) throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    #expect(store.removeLast(try store.allocate(page)) != nil)
    #expect(store.again(other) == nil)
  }

  /// What says more than length, alignment and limit is not remembered.
  @Test(
    arguments: [
      Request(byteCount: 0x1000, lowest: 0x1000), Request(byteCount: 0x1000, boundary: PageSize(shift: 13)),
      Request(byteCount: 0x1000, direction: .bottomUp),
    ])
  func onlyPlainRequestsAreRemembered(_ request: Request) throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    let start = try store.allocate(request)
    #expect(store.removeLast(start) == nil)
    #expect(store.remove(start) != nil)
  }

  @Test func norAreOtherKinds() throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    #expect(store.removeLast(try store.allocate(page, kind: .fixed)) == nil)
    #expect(store.removeLast(try store.allocate(page, auxiliary: 1)) == nil)
    #expect(store.count == 2)
  }

  @Test func anInsertionTakesItsPlace() throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    let start = try store.allocate(page)
    #expect(store.removeLast(start) != nil)
    try store.insert(RangeStore.Node(range: range(0xff_e000, 0xff_ffff), kind: .reservation))
    #expect(store.again(page) == nil)
    #expect(allocate(store, page) == .success(0xff_d000))
    #expect(store.checkInvariants() == nil)
  }

  /// A range that became free above it is what the request must get now.
  @Test func aHigherOneGoesFirst() throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    let high = try store.allocate(page), low = try store.allocate(page)
    #expect(store.remove(high) != nil)
    #expect(store.removeLast(low) == nil)
    #expect(store.remove(low) != nil)
    #expect(store.again(page) == nil)
    #expect(allocate(store, page) == .success(0xff_f000))
  }

  /// Full leaves split while the last allocation is remembered.
  @Test func manyInARow() throws {
    let store = try makeStore(range(0x1000, 0xff_ffff))
    var expected: UInt64 = 0xff_f000
    for _ in 0..<1_000 {
      let start = try store.allocate(page)
      #expect(start.rawValue == expected)
      #expect(store.removeLast(start) == 0)
      #expect(store.again(page) == start)
      expected -= 0x1000
    }
    #expect(store.checkInvariants() == nil)
    #expect(store.count == 1_000)
  }
}

extension RangeStore {
  fileprivate func again(_ request: Request, tag: UInt64 = 0) -> IOVA? {
    allocateAgain(
      byteCount: request.byteCount, alignment: request.alignment ?? PageSize(fitting: request.byteCount)!,
      limit: request.limit, tag: tag)
  }
}
