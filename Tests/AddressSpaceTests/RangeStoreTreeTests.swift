import AddressSpace
import AddressSpaceModels
import Testing

/// Long runs that split and merge nodes at every level, in the orders that real users have.
struct RangeStoreTreeTests {
  typealias Request = RangeStore.Request

  /// In which order allocations are released.
  enum Order: CaseIterable, Sendable {
    case asAllocated, reversed, shuffled, everyOtherFirst, outsideIn

    func apply(_ starts: [IOVA]) -> [IOVA] {
      var random = SplitMix64(seed: 3)
      let indices = starts.indices
      return switch self {
      case .asAllocated: starts
      case .reversed: starts.reversed()
      case .shuffled: starts.shuffled(using: &random)
      case .everyOtherFirst:
        indices.filter { $0 % 2 == 0 }.map { starts[$0] } + indices.filter { $0 % 2 == 1 }.map { starts[$0] }
      case .outsideIn: indices.map { $0 % 2 == 0 ? starts[$0 / 2] : starts[starts.count - 1 - $0 / 2] }
      }
    }
  }

  @Test(arguments: Order.allCases, [RangeStore.Direction.topDown, .bottomUp])
  func growsAndShrinks(_ order: Order, _ direction: RangeStore.Direction) throws {
    let store = try makeStore(range(0x1000, (1 << 40) - 1))
    var starts: [IOVA] = []
    for count in 0..<3_000 {
      starts.append(try store.allocate(Request(byteCount: UInt64(1 + count % 3) << 12, direction: direction)))
      if count % 250 == 0 { try #require(store.checkInvariants() == nil) }
    }
    let full = store.footprint
    for (position, start) in order.apply(starts).enumerated() {
      let removed = store.remove(start)
      try #require(removed != nil)
      if position % 250 == 0 { try #require(store.checkInvariants() == nil) }
    }
    #expect(store.count == 0 && store.checkInvariants() == nil)
    #expect(store.largestFreeOrder() == 39)
    // What was given back is used again.
    for count in 0..<3_000 {
      _ = try store.allocate(Request(byteCount: UInt64(1 + count % 3) << 12, direction: direction))
    }
    #expect(store.footprint == full)
  }

  /// A ring of buffers, as a network driver keeps: the oldest goes, a new one comes. The store stays as
  /// small as it was.
  @Test(arguments: [1, 16, 1_024])
  func keepsARing(_ length: Int) throws {
    let store = try makeStore(range(0x1000, (1 << 48) - 1))
    var ring = try (0..<length).map { _ in try store.allocate(Request(byteCount: 0x1000)) }
    let footprint = store.footprint
    for step in 0..<4 * length + 100 {
      store.remove(ring[step % length])
      ring[step % length] = try store.allocate(Request(byteCount: 0x1000))
    }
    #expect(store.count == length && store.footprint == footprint)
    #expect(Set(ring).count == length)
    #expect(store.checkInvariants() == nil)
    // Nothing ever lay below the length of the ring.
    #expect(ring.min()! >= IOVA((1 << 48) - UInt64(length) << 12))
  }

  /// Below 4 GiB first until that is full, then above, as for a PCI device that may not drive all its
  /// bits: later probes visit no node, and what is freed below is found again.
  @Test func fillsBelow4GiBFirst() throws {
    let store = try makeStore(range(0x1000, (1 << 48) - 1))
    let low = UInt64(UInt32.max)
    var below: [IOVA] = []
    while case .success(let start) = allocate(store, Request(byteCount: 8 << 20, limit: low)) {
      below.append(IOVA(start))
    }
    #expect(below.count == 511)
    for _ in 0..<200 {
      #expect(allocate(store, Request(byteCount: 8 << 20, limit: low)) == .failure(.noSpace))
      #expect(store.visits == 0)
      #expect(try store.allocate(Request(byteCount: 8 << 20)) > IOVA(low))
    }
    store.remove(below[100])
    #expect(allocate(store, Request(byteCount: 8 << 20, limit: low)) == .success(below[100].rawValue))
    #expect(store.checkInvariants() == nil)
  }

  /// Sizes that change over time leave no range behind that a later one cannot use.
  @Test func mendsWhatWasFragmented() throws {
    let store = try makeStore(range(0, (1 << 30) - 1))
    var random = SplitMix64(seed: 11)
    for round in 0..<4 {
      var held: [IOVA] = []
      while case .success(let start) = allocate(store, Request(byteCount: UInt64(1) << UInt64(16 + round))) {
        held.append(IOVA(start))
      }
      #expect(held.count == 1 << (14 - round), "round \(round)")
      #expect(store.largestFreeByteCount() == 0)
      for start in held.shuffled(using: &random) { store.remove(start) }
      #expect(store.largestFreeByteCount() == 1 << 30)
    }
    #expect(store.checkInvariants() == nil)
  }

  /// Reservations, guards and fixed ranges are as much in the way as allocations are.
  @Test(arguments: RangeStore.Kind.allCases)
  func goesRoundEveryKind(_ kind: RangeStore.Kind) throws {
    let store = try makeStore(range(0, 0xf_ffff))
    for granule in stride(from: UInt64(0), to: 256, by: 2) {
      try store.insert(RangeStore.Node(range: range(granule << 12, granule << 12 | 0xfff), kind: kind))
    }
    for granule in stride(from: UInt64(255), to: 0, by: -2) {
      #expect(allocate(store, Request(byteCount: 0x1000)) == .success(granule << 12))
    }
    #expect(allocate(store, Request(byteCount: 0x1000)) == .failure(.noSpace))
    #expect(store.count(of: kind) >= 128 && store.count == 256)
    #expect(store.checkInvariants() == nil)
  }

  /// Enough ranges for four levels, put in and taken out at random places, so that nodes of every level
  /// split, even out and merge.
  @Test func splitsAndMergesAtEveryLevel() throws {
    let store = try makeStore(range(0, (1 << 36) - 1))
    var random = SplitMix64(seed: 5)
    let granules = (0..<8_000).map { UInt64($0) << 13 }.shuffled(using: &random)
    for (count, start) in granules.enumerated() {
      try store.insert(RangeStore.Node(range: range(start, start | 0xfff), kind: .fixed, tag: start))
      if count % 500 == 0 { try #require(store.checkInvariants() == nil) }
    }
    for (count, start) in granules.shuffled(using: &random).enumerated() {
      let removed = store.remove(IOVA(start))
      try #require(removed?.tag == start)
      // In between, some come back: the tree shrinks with turns.
      if count % 3 == 0 {
        try store.insert(RangeStore.Node(range: range(start, start | 0xfff), kind: .fixed, tag: start))
        try #require(store.remove(IOVA(start))?.tag == start)
      }
      if count % 500 == 0 { try #require(store.checkInvariants() == nil) }
    }
    #expect(store.count == 0 && store.checkInvariants() == nil)
  }

  /// A driver that changes its buffer size, as on a change of MTU: all of the old size goes, all of the
  /// new comes.
  @Test func changesItsBufferSize() throws {
    let store = try makeStore(range(0x1000, (1 << 32) - 1))
    var held: [IOVA] = []
    for byteCount in [4 << 10, 16 << 10, 64 << 10, 4 << 10, 128 << 10] as [UInt64] {
      for start in held { store.remove(start) }
      held = try (0..<1_000).map { _ in try store.allocate(Request(byteCount: byteCount)) }
      // Packed from the top, as if nothing else had ever been there.
      #expect(held.last == IOVA((1 << 32) - 1_000 * byteCount))
      #expect(store.checkInvariants() == nil)
    }
  }

  /// With the space below 4 GiB in splinters, what is taken from the top down looks at one node a level, and none of those is
  /// wholly below: they lead to the highest gap.
  @Test func whatLiesBelowIsNotLookedAt() throws {
    let store = try makeStore(range(0x1000, (1 << 48) - 1)), low: UInt64 = (1 << 32) - 1
    var held: [IOVA] = []
    for _ in 0..<20_000 { held.append(try store.allocate(Request(byteCount: 0x4000, limit: low))) }
    for index in stride(from: 0, to: held.count, by: 2) { store.remove(held[index]) }
    var size: UInt64 = 0x1000
    for count in 0..<2_000 {
      if count % 400 == 0 { size *= 4 }
      let start = try store.allocate(Request(byteCount: size, limit: .max))
      #expect(start.rawValue > low)
      #expect(store.visits <= store.levelCount)
    }
    #expect(store.levelCount > 3, "so that there is something to look at")
  }

  /// Two stores that are asked the same answer the same: nothing depends on where memory lies.
  @Test func isDeterministic() throws {
    let first = try makeStore(range(0, (1 << 32) - 1))
    let second = try makeStore(range(0, (1 << 32) - 1))
    var random = SplitMix64(seed: 9)
    var held: [UInt64] = []
    for _ in 0..<2_000 {
      let request = Request(byteCount: .random(in: 1...64, using: &random) << 12)
      let answers = (allocate(first, request), allocate(second, request))
      try #require(answers.0 == answers.1)
      if case .success(let start) = answers.0 { held.append(start) }
      if random.once(in: 3), let victim = held.indices.randomElement(using: &random) {
        let start = IOVA(held.remove(at: victim))
        #expect(first.remove(start) == second.remove(start))
      }
    }
  }

  /// Several threads, one lock: what the domain does.
  @Test func worksUnderALock() async throws {
    let shared = try SharedStore()
    await withTaskGroup(of: Void.self) { group in
      for worker in 0..<4 { group.addTask { shared.churn(seed: UInt64(worker), steps: 2_000) } }
    }
    #expect(shared.store.count == 0)
    #expect(shared.store.checkInvariants() == nil)
  }
}

/// A store and its lock, both in a `let`: no method of either mutates the handle.
private final class SharedStore: Sendable {
  let lock = SpinLock()
  let store: RangeStore

  init() throws { store = try makeStore(range(0x1000, (1 << 32) - 1)) }

  /// Allocates and releases at random, and in the end releases everything.
  func churn(seed: UInt64, steps: Int) {
    var random = SplitMix64(seed: seed)
    var held: [IOVA] = []
    for _ in 0..<steps {
      if held.count > 50 || (!held.isEmpty && random.once(in: 3)) {
        let start = held.remove(at: .random(in: held.indices, using: &random))
        let node = lock.withLock { store.remove(start) }
        precondition(node?.tag == seed, "another thread's range")
      } else {
        let request = RangeStore.Request(byteCount: .random(in: 1...8, using: &random) << 12)
        store.lock(lock, insertions: 1)
        let start = try? store.allocate(request, tag: seed)
        lock.unlock()
        if let start { held.append(start) }
      }
    }
    for start in held { lock.withLock { _ = store.remove(start) } }
  }
}
