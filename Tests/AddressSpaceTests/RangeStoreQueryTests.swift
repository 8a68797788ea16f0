import AddressSpace
import AddressSpaceModels
import Testing

/// Looking ranges up, walking them, and the counters, in a space with holes.
struct RangeStoreQueryTests {
  typealias Node = RangeStore.Node

  /// Three usable ranges, and a node of each kind: at the very start, in the middle, up to an end, and a
  /// whole range.
  static let nodes = [
    Node(range: range(0x1000, 0x1fff), kind: .reservation, tag: 1),
    Node(range: range(0x4000, 0x5fff), kind: .allocation, tag: 2, auxiliary: 0xffff_ffff),
    Node(range: range(0xf000, 0xffff), kind: .guard, tag: 3),
    Node(range: range(0x2_0000, 0x2_0fff), kind: .fixed, tag: .max),
    Node(range: range(.max - 0xfff, .max), kind: .allocation, tag: 5),
  ]

  static func makeFilled() throws -> RangeStore {
    let store = try makeStore(range(0x1000, 0xffff), range(0x2_0000, 0x2_0fff), range(.max - 0xffff, .max))
    for node in nodes.reversed() { try store.insert(node) }
    return store
  }

  @Test(
    arguments: [
      (0, nil), (0xfff, nil), (0x1000, 0), (0x1fff, 0), (0x2000, nil), (0x3fff, nil), (0x4000, 1),
      (0x5123, 1), (0x5fff, 1),
      (0x6000, nil), (0xefff, nil), (0xf000, 2), (0xffff, 2), (0x1_0000, nil), (0x1_ffff, nil), (0x2_0000, 3),
      (0x2_0fff, 3),
      (0x2_1000, nil), (1 << 40, nil), (.max - 0x1_0000, nil), (.max - 0xffff, nil), (.max - 0x1000, nil),
      (.max - 0xfff, 4),
      (.max, 4),
    ] as [(UInt64, Int?)])
  func findsByAddress(_ address: UInt64, _ expected: Int?) throws {
    let store = try Self.makeFilled()
    #expect(store.find(containing: IOVA(address)) == expected.map { Self.nodes[$0] })
    #expect(store.find(overlapping: range(address, address)) == expected.map { Self.nodes[$0] })
  }

  @Test(
    arguments: [
      (0, 0xfff, nil), (0, 0x1000, 0), (0, .max, 0), (0x2000, 0x3fff, nil), (0x1fff, 0x4000, 0),
      (0x2000, 0x4000, 1),
      (0x5fff, 0x6000, 1), (0x6000, 0xefff, nil), (0x6000, .max, 2), (0x1_0000, 0x1_ffff, nil),
      (0x1_0000, .max, 3),
      (0x2_1000, .max - 0x1000, nil), (0x2_1000, .max - 0xfff, 4), (.max, .max, 4),
    ] as [(UInt64, UInt64, Int?)])
  func findsTheLowestThatOverlaps(_ start: UInt64, _ last: UInt64, _ expected: Int?) throws {
    let store = try Self.makeFilled()
    #expect(store.find(overlapping: range(start, last)) == expected.map { Self.nodes[$0] })
  }

  @Test(
    arguments: [
      (0, 0), (0x1000, 0), (0x1001, 1), (0x4000, 1), (0x4001, 2), (0xf000, 2), (0xf001, 3), (0x2_0000, 3),
      (0x2_0001, 4),
      (.max - 0xfff, 4), (.max - 0xffe, nil), (.max, nil),
    ] as [(UInt64, Int?)])
  func findsTheNext(_ address: UInt64, _ expected: Int?) throws {
    let store = try Self.makeFilled()
    #expect(store.next(from: IOVA(address)) == expected.map { Self.nodes[$0] })
  }

  @Test(
    arguments: [
      (0, nil), (0x1000, nil), (0x1fff, nil), (0x2000, 0), (0x5fff, 0), (0x6000, 1), (0xffff, 1), (0x1_0000, 2),
      (0x2_0fff, 2), (0x2_1000, 3), (.max - 0xfff, 3), (.max, 3),
    ] as [(UInt64, Int?)])
  func findsThePrevious(_ address: UInt64, _ expected: Int?) throws {
    let store = try Self.makeFilled()
    #expect(store.previous(below: IOVA(address)) == expected.map { Self.nodes[$0] })
  }

  /// Over many nodes and levels: downwards are the same as upwards.
  @Test func walksDown() throws {
    let store = try makeStore(range(0x1000, 0xff_ffff), range(0x200_0000, 0x2ff_ffff))
    for index in 0..<1000 as Range<UInt64> {
      try store.insert(Node(range: range(0x2000 + index * 0x3000, 0x2fff + index * 0x3000), kind: .allocation))
    }
    var up: [Node] = [], down: [Node] = []
    store.forEach { up.append($0) }
    var from = IOVA(.max)
    while let node = store.previous(below: from) {
      down.append(node)
      from = node.start
    }
    #expect(down.count == 1000 && down == up.reversed())
  }

  @Test func walksInOrder() throws {
    let store = try Self.makeFilled()
    var walked: [Node] = []
    store.forEach { walked.append($0) }
    #expect(walked == Self.nodes)
  }

  /// Closing a domain: one node after the other is taken out while the walk goes on.
  @Test func canBeEmptiedDuringAWalk() throws {
    let store = try Self.makeFilled()
    var removed: [Node] = []
    var from = IOVA(0)
    while let node = store.next(from: from) {
      removed.append(node)
      #expect(store.remove(node.start) == node)
      guard let next = node.range.last.advanced(by: 1) else { break }
      from = next
    }
    #expect(removed == Self.nodes)
    #expect(store.count == 0 && store.checkInvariants() == nil)
  }

  @Test func countsByKind() throws {
    let store = try Self.makeFilled()
    #expect(store.count == 5)
    #expect(store.byteCount == 0x6000)
    #expect(RangeStore.Kind.allCases.map { store.count(of: $0) } == [2, 1, 1, 1])
    #expect(RangeStore.Kind.allCases.map { store.byteCount(of: $0) } == [0x3000, 0x1000, 0x1000, 0x1000])
    store.remove(IOVA(0x4000))
    #expect(store.count(of: .allocation) == 1 && store.byteCount(of: .allocation) == 0x1000)
  }

  /// What is not usable is nobody's node, but cannot be had either.
  @Test func holesAreNotNodes() throws {
    let store = try Self.makeFilled()
    #expect(store.remove(IOVA(0x1_0000)) == nil, "the hole begins here")
    #expect(store.remove(IOVA(0)) == nil)
    #expect(store.unreserve(range(0x1_0000, 0x1_ffff)) == false)
    let across = Node(range: range(0xe000, 0x2_0fff), kind: .fixed)
    #expect(
      failure { () throws(RangeStoreFailure) in try store.insert(across) } == .reserved(range(0xf000, 0xffff))
    )
    store.remove(IOVA(0xf000))
    #expect(
      failure { () throws(RangeStoreFailure) in try store.insert(across) }
        == .outsideAperture(range(0x1_0000, 0x1_ffff)))
  }

  /// As many usable ranges as a machine with large reserved regions never has.
  @Test func takesManyUsableRanges() throws {
    let usable = (UInt64(0)..<2_000).map { range($0 << 16 | 0x1000, $0 << 16 | 0x4fff) }
    let store = try RangeStore(usable: IOVARanges(usable), granule: .fourKiB)
    #expect(store.checkInvariants() == nil)
    #expect(store.count == 0 && store.next(from: IOVA(0)) == nil)
    #expect(store.largestFreeByteCount() == 0x2000, "at 0x2000 of each, naturally aligned")
    for index in (UInt64(0)..<2_000).reversed() {
      #expect(
        allocate(store, .init(byteCount: 0x4000, alignment: .fourKiB)) == .success(index << 16 | 0x1000))
    }
    #expect(allocate(store, .init(byteCount: 0x1000)) == .failure(.noSpace))
    #expect(store.checkInvariants() == nil)
  }
}

/// Granules other than 4 KiB, and the edges of the space.
struct RangeStoreGranuleTests {
  typealias Request = RangeStore.Request

  @Test(arguments: [2, 9, 12, 14, 16, 21, 30, 32, 40, 62, 63] as [UInt8])
  func worksInAnyGranule(_ shift: UInt8) throws {
    let granule = PageSize(shift: shift)
    let store = try RangeStore(usable: [.full], granule: granule)
    let top = UInt64.max - granule.mask
    #expect(allocate(store, Request(byteCount: granule.byteCount)) == .success(top))
    #expect(allocate(store, Request(byteCount: granule.byteCount, direction: .bottomUp)) == .success(0))
    #expect(store.find(containing: IOVA(granule.mask))?.range == range(0, granule.mask))
    #expect(allocate(store, Request(byteCount: granule.byteCount / 2)) == .failure(.unaligned))
    #expect(store.checkInvariants() == nil)
    store.remove(IOVA(top))
    store.remove(IOVA(0))
    #expect(store.count == 0)
    #expect(store.largestFreeOrder() == 63)
    #expect(allocate(store, Request(byteCount: 1 << 63)) == .success(1 << 63))
    #expect(allocate(store, Request(byteCount: 1 << 63)) == .success(0))
  }

  @Test func trimsUsableRangesToGranules() throws {
    let store = try RangeStore(
      usable: [range(0x800, 0x1_27ff), range(0x1_3000, 0x1_3ffe)], granule: .fourKiB)
    #expect(allocate(store, Request(byteCount: 0x1000)) == .success(0x1_1000))
    #expect(allocate(store, Request(byteCount: 0x1000, direction: .bottomUp)) == .success(0x1000))
    let before = RangeStore.Node(range: range(0, 0xfff), kind: .fixed)
    #expect(
      failure { () throws(RangeStoreFailure) in try store.insert(before) }
        == .outsideAperture(range(0, 0xfff)))
  }

  /// A range must not cross 4 GiB, as for a device with a 32-bit counter in its address generator.
  @Test(arguments: [RangeStore.Direction.topDown, .bottomUp])
  func keepsOffABoundary(_ direction: RangeStore.Direction) throws {
    let store = try makeStore(range(0xffff_0000, 0x1_0000_ffff))
    var request = Request(
      byteCount: 0x3000, alignment: .fourKiB, boundary: PageSize(shift: 32), direction: direction)
    var starts: [UInt64] = []
    while case .success(let start) = allocate(store, request) { starts.append(start) }
    // Five on each side, where without the boundary ten would fit as well, one of them across.
    #expect(starts.count == 10)
    #expect(starts.allSatisfy { $0 >> 32 == ($0 + 0x2fff) >> 32 })
    #expect(starts == (direction == .topDown ? starts.sorted(by: >) : starts.sorted()))
    request.boundary = nil
    #expect(allocate(store, request) == .failure(.noSpace))
    request.byteCount = 0x1000
    #expect(allocate(store, request) == .success(direction == .topDown ? 0x1_0000_0000 : 0xffff_f000))
  }

  /// A 32-bit device in a space that reaches further gets the highest address that it can drive.
  @Test(arguments: [28, 32, 36, 48, 64])
  func honoursAMask(_ bits: Int) throws {
    let store = try makeStore(range(0x1000, 0xfedf_ffff), range(0xfef0_0000, (1 << 48) - 1))
    let limit = DMAMask.bits(bits).limit
    let highest = min(limit, (1 << 48) - 1)
    #expect(allocate(store, Request(byteCount: 0x1000, limit: limit)) == .success(highest - 0xfff))
    #expect(
      allocate(store, Request(byteCount: 0x20_0000, limit: limit))
        == .success((highest - 0xfff) / 0x20_0000 * 0x20_0000 - 0x20_0000))
    let above = RangeStore.Node(range: range(highest - 0xfff, highest), kind: .fixed)
    #expect(
      failure { () throws(RangeStoreFailure) in try store.insert(above, limit: highest - 1) }
        == .aboveLimit(limit: highest - 1))
  }

  /// Every address there is in use, by nodes of different kinds: one byte more than a word can count.
  @Test func bytesOfTheWholeSpace() throws {
    let store = try RangeStore(usable: [.full], granule: .fourKiB)
    let half = IOVARange(start: IOVA(0), byteCount: 1 << 63)!, rest = IOVARange(start: IOVA(1 << 63), last: IOVA(.max))!
    try store.insert(RangeStore.Node(range: half, kind: .fixed, tag: 1))
    #expect(store.byteCount == 1 << 63)
    try store.insert(RangeStore.Node(range: rest, kind: .guard))
    #expect(store.byteCount == .max && store.count == 2)
    let other = try RangeStore(usable: [.full], granule: .fourKiB)
    try other.insert(RangeStore.Node(range: .full, kind: .guard))
    #expect(other.byteCount == .max && other.byteCount(of: .guard) == .max)
  }
}
