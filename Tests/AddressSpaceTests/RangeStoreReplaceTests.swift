import AddressSpace
import AddressSpaceModels
import Testing

/// Nodes in the place of others: all of it or nothing, wherever memory ends. What comes of it otherwise is the model check's.
struct RangeStoreReplaceTests {
  typealias Node = RangeStore.Node

  /// All that a store says of its nodes.
  static func dump(_ store: borrowing RangeStore) -> [Node] {
    var nodes: [Node] = []
    store.forEach { nodes.append($0) }
    return nodes
  }

  /// A store without memory for another node: `count` nodes of three granules at every fourth, and more behind them until there is
  /// none.
  static func exhausted(_ count: Int) throws -> RangeStore {
    let store = try makeStore(range(0, (1 << 40) - 1))
    for index in 0..<UInt64(count) {
      try store.insert(Node(range: range(index << 14, index << 14 | 0x2fff), kind: .guard, tag: index))
    }
    store.limitMemory(toChunks: 0)
    while case .success = allocate(store, .init(byteCount: 0x1000)) {}
    return store
  }

  /// In the middle, at either end, and all of it.
  @Test(arguments: [(1, 1), (0, 1), (2, 1), (0, 3), (1, 2), (0, 2)] as [(UInt64, UInt64)])
  func whatIsLeftStays(_ first: UInt64, _ count: UInt64) throws {
    let store = try makeStore(range(0, 0xf_ffff))
    let old = Node(range: range(0x3000, 0x5fff), kind: .guard, tag: 7, auxiliary: 9)
    try store.insert(old)
    let start = 0x3000 + first << 12
    let new = Node(range: range(start, start + count << 12 - 1), kind: .allocation, tag: 8)
    try store.carve(new)
    var expected: [Node] = [new]
    for rest in IOVARanges([old.range]).subtracting([new.range]) {
      expected.append(Node(range: rest, kind: .guard, tag: 7, auxiliary: 9))
    }
    #expect(Self.dump(store) == expected.sorted { $0.start < $1.start })
    #expect(store.checkInvariants() == nil)
  }

  @Test func whatCannotBeCarved() throws {
    let store = try makeStore(range(0x1000, 0xf_ffff))
    try store.insert(Node(range: range(0x3000, 0x5fff), kind: .guard))
    try store.insert(Node(range: range(0x6000, 0x6fff), kind: .guard))
    let refused: [(IOVARange, RangeStoreFailure)] = [
      (range(0x3000, 0x3ffe), .unaligned), (range(0x2000, 0x3fff), .noSpace), (range(0x5000, 0x6fff), .noSpace),
      (range(0x8000, 0x8fff), .noSpace), (range(0, 0xfff), .noSpace), (range(0x10_0000, 0x10_0fff), .noSpace),
    ]
    for (range, expected) in refused {
      let node = Node(range: range, kind: .fixed)
      #expect(failure { () throws(RangeStoreFailure) in try store.carve(node) } == expected)
    }
    for range in [range(0x3000, 0x3ffe), range(0x5000, 0x6fff), range(0, 0x3fff), range(0x8000, 0x8fff)] {
      let old = store.replace(IOVA(0x3000), with: Node(range: range, kind: .fixed))
      #expect(old == nil, "\(range) is not free beside it")
    }
    #expect(
      store.replace(IOVA(0x4000), with: Node(range: range(0x4000, 0x4fff), kind: .fixed)) == nil, "none begins there")
    #expect(store.replace(IOVA(0x3001), with: Node(range: range(0x4000, 0x4fff), kind: .fixed)) == nil)
    #expect(store.count == 2 && store.count(of: .guard) == 2 && store.checkInvariants() == nil)
  }

  /// At every length of the tree, and wherever in it: with memory for one more node, for two, or for none.
  @Test(arguments: stride(from: 1, to: 60, by: 1).map { $0 })
  func carvingWithoutMemoryChangesNothing(_ count: Int) throws {
    let store = try makeStore(range(0, (1 << 40) - 1))
    for index in 0..<UInt64(count) {
      try store.insert(Node(range: range(index << 14, index << 14 | 0x2fff), kind: .guard, tag: index))
    }
    store.limitMemory(toChunks: 0)
    var refused = 0
    for index in 0..<UInt64(count) {
      let before = Self.dump(store), start = index << 14 | 0x1000
      let node = Node(range: range(start, start | 0xfff), kind: .allocation, tag: 99)
      if let reason = failure({ () throws(RangeStoreFailure) in try store.carve(node) }) {
        #expect(reason == .outOfMemory && Self.dump(store) == before)
        refused += 1
      } else {
        #expect(store.count == before.count + 2 && store.find(containing: node.start) == node)
      }
      try #require(store.checkInvariants() == nil)
    }
    store.limitMemory(toChunks: .max)
    for index in 0..<UInt64(count) where store.find(containing: IOVA(index << 14 | 0x1000))?.kind == .guard {
      let start = index << 14 | 0x1000
      try store.carve(Node(range: range(start, start | 0xfff), kind: .allocation, tag: 99))
      refused -= 1
    }
    #expect(refused == 0 && store.count == 3 * count && store.checkInvariants() == nil)
  }

  /// One node in the place of one takes no memory: shorter, longer, moved, or of another kind.
  @Test(arguments: [1, 5, 17, 18, 40, 200])
  func replacingTakesNoMemory(_ count: Int) throws {
    let store = try Self.exhausted(count)
    for index in 0..<UInt64(count) {
      let start = index << 14
      for (first, last) in [(1, 1), (0, 3), (2, 3), (0, 0), (0, 2)] as [(UInt64, UInt64)] {
        let now = store.find(overlapping: range(start, start | 0x3fff))
        let old = try #require(now)
        let node = Node(range: range(start + first << 12, start + last << 12 | 0xfff), kind: .allocation, tag: last)
        #expect(store.replace(old.start, with: node) == old)
        #expect(store.find(containing: node.start) == node)
        try #require(store.checkInvariants() == nil)
      }
    }
  }

  /// Two that become one: the second makes room, the first takes it.
  @Test func mergingTakesNoMemory() throws {
    let store = try Self.exhausted(30)
    for index in stride(from: UInt64(0), to: 28, by: 2) {
      let (start, next) = (IOVA(index << 14), IOVA((index + 1) << 14))
      let removed = store.remove(next)
      let last = try #require(removed).range.last
      let whole = Node(range: IOVARange(start: start, last: last)!, kind: .guard, tag: 1)
      #expect(store.replace(start, with: whole) != nil)
      #expect(store.find(containing: next) == whole)
      try #require(store.checkInvariants() == nil)
    }
  }

  /// What is known of the room below 4 GiB stays right.
  @Test func roomBelow4GiBIsKnown() throws {
    let store = try makeStore(range(0, (1 << 34) - 1)), low = UInt64(UInt32.max)
    try store.insert(Node(range: range(0x1000, low), kind: .fixed))
    #expect(store.largestFreeByteCount(limit: low) == 0x1000)
    store.replace(IOVA(0x1000), with: Node(range: range(0x1000, 0x8000_0000 - 1), kind: .fixed))
    #expect(store.largestFreeByteCount(limit: low) == 0x8000_0000)
    store.replace(IOVA(0x1000), with: Node(range: range(0x4000_0000, 0x8000_0000 - 1), kind: .fixed))
    #expect(allocate(store, .init(byteCount: 0x8000_0000, limit: low)) == .success(0x8000_0000))
    #expect(store.largestFreeByteCount(limit: low) == 0x4000_0000)
    store.replace(IOVA(0x4000_0000), with: Node(range: range(0x1000, 0x8000_0000 - 1), kind: .fixed))
    #expect(store.largestFreeByteCount(limit: low) == 0x1000 && store.checkInvariants() == nil)
  }
}
