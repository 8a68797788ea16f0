import AddressSpace
import AddressSpaceModels
import CIOMMU
import Testing

/// The whole usable space of x86, its interrupt window left out.
private let usable: IOVARanges = [range(0x1000, 0xfedf_ffff), range(0xfef0_0000, (1 << 48) - 1)]

/// On one simulated processor, unless it says otherwise.
private struct Caller: ~Copyable {
  let allocator: AddressAllocator
  var processor: UInt32 = 0

  init(_ usable: IOVARanges = usable) throws {
    allocator = try AddressAllocator(usable: usable, granule: .fourKiB, method: .locked, processors: 16)
  }

  func take(
    _ byteCount: UInt64, limit: UInt64 = .max, mayEmpty: Bool = true
  ) throws(RangeStoreFailure) -> IOVA {
    try allocator.allocate(byteCount: byteCount, limit: limit, mayEmptyCaches: mayEmpty, processor: processor)
  }

  func give(_ start: IOVA, _ byteCount: UInt64) {
    allocator.free(start, byteCount: byteCount, processor: processor)
  }

  /// So many at once, and back.
  func burst(_ count: Int, _ byteCount: UInt64) throws {
    for start in try (0..<count).map({ _ in try take(byteCount) }) { give(start, byteCount) }
  }
}

struct AddressAllocatorTests {
  @Test(arguments: [1, 0x1000, 0x1001, 0x2_0000, 0x10_0001, 0x20_0000])
  func lengthsUpTo2MiBAreCached(_ byteCount: UInt64) throws {
    let caller = try Caller()
    let start = try caller.take(byteCount)
    caller.give(start, byteCount)
    #expect(try caller.take(byteCount) == start)
    caller.give(start, byteCount)
    #expect(caller.allocator.statistics.storeAllocations == 1)
    let rounded = max(PageSize(fitting: byteCount)!.byteCount, 0x1000)
    #expect(caller.allocator.statistics.cachedByteCount == rounded)
    #expect(caller.allocator.find(containing: start)?.byteCount == rounded)
  }

  @Test func longerOnesAreNot() throws {
    let caller = try Caller()
    caller.give(try caller.take(0x20_1000), 0x20_1000)
    #expect(caller.allocator.next(from: IOVA(0)) == nil)
    #expect(caller.allocator.statistics.memoryByteCount == 0)
  }

  @Test(arguments: [(0, RangeStoreFailure.empty), (0x20_0001, .unaligned)] as [(UInt64, RangeStoreFailure)])
  func lengthsThatAreRefused(_ byteCount: UInt64, _ failure: RangeStoreFailure) throws {
    let caller = try Caller()
    #expect(throws: failure) { try caller.take(byteCount) }
  }

  @Test func noCachedAddressAboveTheLimit() throws {
    let caller = try Caller()
    let low = try caller.take(0x4000, limit: 0xffff_ffff), high = try caller.take(0x4000)
    #expect(high.rawValue > 1 << 32)
    caller.give(low, 0x4000)
    caller.give(high, 0x4000)
    // The low one lies below the high one in the magazine.
    #expect(try caller.take(0x4000, limit: low.rawValue + 0x3fff) == low)
    caller.give(low, 0x4000)
    let lower = try caller.take(0x4000, limit: low.rawValue + 0x3ffe)
    #expect(lower < low)
    #expect(throws: RangeStoreFailure.noSpace) { try caller.take(0x4000, limit: 0x3ffe) }
  }

  @Test func aProbeEmptiesNoCache() throws {
    let caller = try Caller([range(0x1000, 0x4fff), range(1 << 32, 0x1_0000_ffff)])
    let low = try (0..<4).map { _ in try caller.take(0x1000, limit: 0xffff_ffff) }
    for start in low { caller.give(start, 0x1000) }
    // Four cached pages are in the way of one of two pages.
    #expect(throws: RangeStoreFailure.noSpace) { try caller.take(0x2000, limit: 0xffff_ffff, mayEmpty: false) }
    #expect(caller.allocator.statistics.cachedCount == 4)
    #expect(try caller.take(0x2000, limit: 0xffff_ffff) == IOVA(0x2000))
    #expect(caller.allocator.statistics.cachedCount == 0)
  }

  @Test func emptyingReachesAllProcessorsAndTheDepot() throws {
    var caller = try Caller([range(0x1000, 0x100_0fff)])
    let starts = try (0..<4096).map { _ in try caller.take(0x1000) }
    for (index, start) in starts.enumerated() {
      caller.processor = index < 2000 ? 0 : 1
      caller.give(start, 0x1000)
    }
    #expect(caller.allocator.statistics.cachedCount > 3000)
    #expect(try caller.take(0x80_0000) == IOVA(0x80_0000))
    #expect(caller.allocator.statistics.cachedCount == 0)
    #expect(caller.allocator.checkInvariants() == nil)
  }

  @Test func cachedRangesMakeWayForFixedOnes() throws {
    let caller = try Caller()
    let start = try caller.take(0x1000)
    caller.give(start, 0x1000)
    let wanted = IOVARange(start: start, byteCount: 0x1000)!
    try caller.allocator.insert(.init(range: wanted, kind: .fixed))
    #expect(throws: RangeStoreFailure.occupied(wanted)) { try caller.allocator.reserve(wanted) }
    #expect(try caller.take(0x1000) < start)
  }

  @Test func addressesGoFromProcessorToProcessorByTheDepot() throws {
    var caller = try Caller()
    for _ in 0..<50 {
      caller.processor = 0
      let starts = try (0..<1000).map { _ in try caller.take(0x1000) }
      caller.processor = 1
      for start in starts { caller.give(start, 0x1000) }
    }
    let figures = caller.allocator.statistics
    #expect(figures.liveCount == 0)
    // Whoever frees keeps two magazines to himself.
    #expect(figures.storeAllocations <= 1000 + 2 * 126 + 4 * 126)
  }
}

// MARK: - What is held

struct AllocatorHoldingTests {
  /// What is cached, on many processors, against what lives.
  @Test func theDepotIsBounded() throws {
    var caller = try Caller()
    var random = SplitMix64(seed: 1)
    var live: [(start: IOVA, byteCount: UInt64)] = []
    for step in 0..<60_000 {
      caller.processor = .random(in: 0..<16, using: &random)
      if live.count < 8192 || random.once(in: 2) {
        let byteCount = 0x1000 * UInt64.random(in: 1...64, using: &random)
        live.append((try caller.take(byteCount), byteCount))
      } else {
        let index = Int.random(in: 0..<live.count, using: &random)
        live.swapAt(index, live.count - 1)
        let (start, byteCount) = live.removeLast()
        caller.give(start, byteCount)
      }
      if live.count >= 8192 && step % 1000 == 0 {
        let figures = caller.allocator.statistics
        #expect(Double(figures.liveByteCount + figures.cachedByteCount) <= 1.3 * Double(figures.liveByteCount))
      }
    }
    // Then all goes. Small magazines may stay, 7.4 MiB for each processor, and what is freely held.
    for (start, byteCount) in live { caller.give(start, byteCount) }
    #expect(caller.allocator.statistics.cachedByteCount <= (16 * 8 + 16) << 20)
  }

  @Test func anIdleDomainKeepsLittle() throws {
    var caller = try Caller()
    #expect(caller.allocator.statistics.memoryByteCount == 0)
    for processor in 0..<UInt32(16) {
      caller.processor = processor
      for order in 0..<10 { try caller.burst(2, 0x1000 << UInt64(order)) }
    }
    #expect(caller.allocator.statistics.memoryByteCount <= 4096 * 16)
  }

  @Test func magazinesGrowWithTheExchange() throws {
    let caller = try Caller()
    try caller.burst(20, 0x1000)
    let before = caller.allocator.statistics.memoryByteCount
    for _ in 0..<4 { try caller.burst(1000, 0x1000) }
    #expect(caller.allocator.statistics.memoryByteCount >= before + 2 * 1024)
    let asked = caller.allocator.statistics.storeAllocations
    try caller.burst(1000, 0x1000)
    #expect(caller.allocator.statistics.storeAllocations == asked)
  }

  @Test(arguments: 0...12)
  func withoutMemoryNothingIsLost(_ requests: Int) throws {
    let caller = try Caller()
    caller.allocator.limitMemory(toRequests: requests)
    for _ in 0..<3 { for order in [0, 3, 9] { try caller.burst(200, 0x1000 << UInt64(order)) } }
    #expect(caller.allocator.statistics.liveCount == 0)
    #expect((caller.allocator.statistics.memoryByteCount == 0) == (requests == 0))
    caller.allocator.emptyCaches()
    #expect(caller.allocator.next(from: IOVA(0)) == nil)
    #expect(caller.allocator.checkInvariants() == nil)
  }
}

// MARK: - Worst cases

struct AllocatorWorstCaseTests {
  /// A probe below 4 GiB that must fail looks at no node of the tree, also right after a release there.
  @Test func aProbeThatMustFailLooksAtNothing() throws {
    let caller = try Caller()
    // 64 KiB each in all of the space below 4 GiB, then every other one goes.
    var starts: [IOVA] = []
    while let start = try? caller.take(0x10000, limit: 0xffff_ffff, mayEmpty: false) { starts.append(start) }
    for (index, start) in starts.enumerated() where index % 2 == 0 { caller.give(start, 0x10000) }
    caller.allocator.emptyCaches()
    let order = caller.allocator.largestFreeOrder(limit: 0xffff_ffff)
    for start in starts.indices.filter({ $0 % 2 == 1 }).prefix(100).map({ starts[$0] }) {
      #expect(throws: RangeStoreFailure.noSpace) { try caller.take(0x40000, limit: 0xffff_ffff, mayEmpty: false) }
      #expect(caller.allocator.statistics.visits == 0)
      // Its neighbours stay, but one: nothing of 256 KiB comes of it.
      if start == starts[1] { caller.allocator.remove(start) }
    }
    #expect(order == 16)
    #expect(caller.allocator.largestFreeOrder(limit: 0xffff_ffff) == 17)
    #expect(caller.allocator.largestFreeOrder(lowest: 1 << 32) == 47)
  }
}

// MARK: - Restartable sequences

@Suite(.enabled(if: SlotMethod.best == .restartable))
struct RestartableTests {
  /// On the processor where it was freed, and from the magazine, which the count of the store's allocations tells.
  @Test func pairsStayInTheMagazine() throws {
    Worker {
      guard ci_pin_to_cpu(ci_cpu()) == 0,
        let allocator = try? AddressAllocator(usable: usable, granule: .fourKiB, method: .restartable)
      else {
        Issue.record("no allocator")
        return
      }
      for _ in 0..<100_000 {
        guard let start = try? allocator.allocate(byteCount: 0x1000) else { break }
        allocator.free(start, byteCount: 0x1000)
      }
      #expect(allocator.statistics.storeAllocations == 1)
      #expect(allocator.statistics.cachedCount == 1)
    }.join()
  }

  @Test func anotherProcessorsSlotIsLeftAlone() {
    Worker {
      _ = ci_pin_to_cpu(ci_cpu())
      unsafe withSlot([7, 8], capacity: 3) { loaded, magazine in
        let (here, there) = (ci_cpu(), ci_cpu() + 1)
        #expect(unsafe ci_rseq_pop(loaded, there, .max) == .max)
        #expect(unsafe ci_rseq_push(loaded, there, 9) == 0)
        #expect(unsafe ci_rseq_swap(loaded, there, magazine, loaded) == 0)
        #expect(unsafe ci_rseq_push(loaded, here, 9) == 1)
        #expect(unsafe ci_rseq_push(loaded, here, 10) == 0, "it is full")
        #expect(unsafe ci_rseq_pop(loaded, here, 8) == UInt64.max, "9 is above")
        let popped = (0..<4).map { _ in unsafe ci_rseq_pop(loaded, here, 9) }
        #expect(popped == [9, 8, 7, UInt64.max])
        #expect(unsafe ci_rseq_swap(loaded, here, loaded, loaded) == 0, "something else is there")
        #expect(unsafe ci_rseq_swap(loaded, here, magazine, loaded) == 1)
        #expect(unsafe loaded.load(as: UnsafeMutableRawPointer.self) == loaded)
      }
    }.join()
  }
}

/// Calls a function with a place where a magazine of some addresses is loaded, and that magazine.
private func withSlot(
  _ addresses: [UInt64], capacity: Int, _ body: (UnsafeMutableRawPointer, UnsafeMutableRawPointer) -> Void
) {
  let size = unsafe MemoryLayout<ci_magazine>.size
  let memory = UnsafeMutableRawPointer.allocate(byteCount: size + 8 * capacity, alignment: 16)
  defer { unsafe memory.deallocate() }
  unsafe memory.storeBytes(
    of: ci_magazine(count: UInt32(addresses.count), capacity: UInt32(capacity), next: nil), as: ci_magazine.self)
  for (index, address) in addresses.enumerated() {
    unsafe memory.storeBytes(of: address, toByteOffset: size + 8 * index, as: UInt64.self)
  }
  unsafe withUnsafeTemporaryAllocation(byteCount: 8, alignment: 8) { place in
    unsafe place.baseAddress!.storeBytes(of: memory, as: UnsafeMutableRawPointer.self)
    unsafe body(place.baseAddress!, memory)
  }
}
