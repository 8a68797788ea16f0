import AddressSpace
import CIOMMU
import IOMMU
import IOMMUSimulation
import Testing

/// Lazy modes on page tables of the process: an unmap clears its entry, a flush invalidates everything once.
@Suite struct ProcessOwnedLazyTests {
  private typealias Rig = ProcessOwnedTests.Rig

  private static func lazy(_ topology: FlushQueueOptions.Topology, depth: Int? = nil) -> Protection {
    .lazy(FlushQueueOptions(topology, depth: depth, timeout: LazyTests.patient))
  }

  /// The window: what the IOTLB holds is served until the flush, and nothing else.
  @Test(arguments: FlushQueueOptions.Topology.allCases)
  func theCacheServesUntilTheFlush(_ topology: FlushQueueOptions.Topology) throws {
    let rig = try Rig(), dma = rig.device.dma
    try dma.switchProtection(to: Self.lazy(topology))
    let mapping = try dma.map(try dma.buffer(byteCount: 8192), .bidirectional), address = mapping.address
    #expect(try rig.writes(address))
    rig.kernel.resetCounts()
    let before = dma.statistics
    _ = try mapping.unmap()
    #expect(["hwptInvalidate", "ioasMap", "ioasUnmap"].allSatisfy { rig.kernel.count(of: $0) == 0 })
    #expect(dma.statistics.systemCalls == before.systemCalls && dma.statistics.invalidations == 0)
    #expect(try rig.writes(address), "the cache serves it")
    #expect(try !rig.writes(address + 4096), "the entry is gone, and this page never was in the cache")
    try dma.drain()
    #expect(try !rig.writes(address))
    #expect(rig.kernel.count(of: "hwptInvalidate") == 1 && dma.statistics.flushes == 1)
    #expect(dma.statistics.invalidations == 1 && dma.statistics.systemCalls == before.systemCalls + 1)
    rig.device.close()
  }

  /// The entry is cleared before the range is queued, and numbered: in between, a flush could begin and end.
  @Test func whatIsQueuedIsCleared() throws {
    let rig = try Rig(), dma = rig.device.dma
    try dma.switchProtection(to: Self.lazy(.single))
    let mapping = try dma.map(try dma.buffer(byteCount: 64), .bidirectional), address = mapping.address
    let isReached = Shared<Bool?>(nil)
    // The first entry of a queue has the timer armed, right after it was queued.
    rig.kernel.interject(before: "createEvent") { isReached.change { $0 = try? rig.writes(address) } }
    _ = try mapping.unmap()
    #expect(isReached.value == false)
    rig.device.close()
  }

  /// A mapping that the IOTLB knows, and a queue that has no room.
  private static func fill(_ rig: borrowing Rig) throws -> Mapping {
    let dma = rig.device.dma
    try dma.switchProtection(to: lazy(.single, depth: 2))
    let cached = try dma.map(try dma.buffer(byteCount: 64), .bidirectional)
    #expect(try rig.writes(cached.address))
    _ = try LazyTests.mapAndUnmap(dma)
    return cached
  }

  /// While another thread flushes, which may take as long as that thread does not run, a full queue is flushed beside it:
  /// that flush began later, and covers more.
  @Test func besideAFlush() throws {
    let rig = try Rig(), dma = rig.device.dma, cached = try Self.fill(rig), address = cached.address
    let outcome = Shared<[UInt64]>([])
    let slot = Slot(cached)
    rig.kernel.interject(before: "hwptInvalidate") {
      do { _ = try slot.take().unmap() } catch { Issue.record("\(error)") }
      outcome.change { $0 = [dma.statistics.invalidations, dma.statistics.queuedBytes] }
    }
    _ = try LazyTests.mapAndUnmap(dma)
    #expect(outcome.value == [1, 8192], "this range waits, and that of who flushes; what was queued is free")
    #expect(dma.statistics.invalidations == 3 && dma.statistics.flushes == 3, "one as the queue was full again")
    #expect(try !rig.writes(address))
    #expect(dma.statistics.queuedBytes == 4096)
    try dma.drain()
    #expect(dma.statistics.queuedBytes == 0)
    rig.device.close()
  }

  /// Of many threads that find the ring of their processor full, while the one that flushes it does not run, not each flushes.
  @Test func manyThreadsShareAFlush() async throws {
    let rig = try Rig(), dma = rig.device.dma, threads = 16, pairs = 2000
    try dma.switchProtection(to: Self.lazy(.perCPU, depth: 64))
    let failures = await inThreads(threads) { _ in
      // Where another set of processors is allowed, they share fewer rings anyway than they are.
      _ = ci_pin_to_cpu(0)
      var buffer = try dma.buffer(byteCount: 4096)
      for _ in 0..<pairs { buffer = try dma.map(buffer, .fromDevice).unmap() }
    }
    #expect(failures == [])
    let full = UInt64(threads * pairs / 63), flushes = dma.statistics.flushes
    #expect(flushes >= full && flushes <= 2 * full, "\(flushes) of a ring that was full \(full) times")
    rig.device.close()
  }

  /// One that fails beside another is counted as any that fails; the range is taken out of reach by itself.
  @Test func besideAFlushInVain() throws {
    let rig = try Rig(), dma = rig.device.dma, cached = try Self.fill(rig), address = cached.address
    let slot = Slot(cached)
    rig.kernel.interject(before: "hwptInvalidate") {
      do { _ = try slot.take().unmap() } catch { Issue.record("\(error)") }
    }
    rig.kernel.fail(1, of: "hwptInvalidate", with: .inputOutput)
    try dma.drain()
    #expect(rig.kernel.hasFailed)
    #expect(dma.statistics.failedFlushes == 1 && dma.statistics.flushes == 1)
    #expect(try !rig.writes(address))
    rig.device.close()
  }

  /// A flush whose invalidation fails frees nothing; neither does one on the spot, whose memory is given up.
  @Test func failedInvalidations() throws {
    let rig = try Rig(), dma = rig.device.dma
    try dma.switchProtection(to: Self.lazy(.single, depth: 2))
    let first = try LazyTests.mapAndUnmap(dma)
    rig.kernel.failFrom(1, of: "hwptInvalidate", with: .inputOutput)
    #expect { try dma.drain() } throws: { ($0 as? DMAError)?.errno == .inputOutput }
    let mapping = try dma.map(try dma.buffer(byteCount: 64), .bidirectional), second = mapping.address
    do throws(DMAError) {
      _ = try mapping.unmap()
      Issue.record("unmapped")
    } catch { #expect(error.errno == .inputOutput) }
    #expect(dma.statistics.leakedBytes == 4096 && dma.statistics.queuedBytes == 4096)
    rig.kernel.passAll()
    for _ in 0..<4 { #expect(try LazyTests.mapAndUnmap(dma) != second, "given up") }
    try dma.drain()
    #expect(try LazyTests.mapAndUnmap(dma) == first, "free after a flush that went through")
    rig.device.close()
  }

  /// A flush that is reported and not done shows as what the device still reaches.
  @Test func aSwallowedFlushShows() throws {
    let rig = try Rig(), dma = rig.device.dma
    try dma.switchProtection(to: Self.lazy(.perCPU))
    rig.kernel.swallowInvalidation(1)
    let mapping = try dma.map(try dma.buffer(byteCount: 64), .bidirectional), address = mapping.address
    #expect(try rig.writes(address))
    _ = try mapping.unmap()
    try dma.drain()
    #expect(try rig.writes(address))
    rig.device.close()
  }
}

/// How many invalidations maps and unmaps take, on the simulated IOMMU's own count.
@Suite struct InvalidationCountTests {
  /// Invalidations of the process, of the kernel, and those that the statistics tell.
  private struct Count: Equatable { let process: Int, kernel: Int, told: Int }

  /// Maps and unmaps one buffer so many times.
  private static func count(
    _ operations: Int, _ translation: TranslationChoice, _ protection: Protection, draining: Bool = true
  ) throws -> Count {
    let machine = SimulatedHost(devices: [LazyTests.address: EduModel(addressBits: 64)])
    let device = try Device(LazyTests.address, on: machine.host, translation: translation), dma = device.dma
    try dma.switchProtection(to: protection)
    var buffer = try dma.buffer(byteCount: 64)
    let before = machine.counters
    for _ in 0..<operations { buffer = try dma.map(buffer, .bidirectional).unmap() }
    if draining { try dma.drain() }
    let after = machine.counters
    #expect(after.processSyncs - before.processSyncs == after.processInvalidations - before.processInvalidations)
    let told = Int(dma.statistics.invalidations)
    device.close()
    return Count(
      process: after.processInvalidations - before.processInvalidations,
      kernel: after.invalidations - before.invalidations, told: told)
  }

  private static func lazy(_ topology: FlushQueueOptions.Topology) -> Protection {
    .lazy(FlushQueueOptions(topology, timeout: LazyTests.patient))
  }

  @Test func strictTakesOneEach() throws {
    #expect(try Self.count(1000, .process, .strict) == Count(process: 1000, kernel: 0, told: 1000))
    #expect(try Self.count(1000, .kernel, .strict) == Count(process: 0, kernel: 1000, told: 0))
  }

  /// 256 entries a processor, of which 255 are used: at most one in 250.
  @Test func perCPU() throws {
    let count = try Self.count(10_000, .process, Self.lazy(.perCPU))
    #expect(count.process > 0 && count.process <= 10_000 / 250, "\(count.process)")
    #expect(count == Count(process: count.process, kernel: 0, told: count.process))
  }

  /// 32,768 entries for all: at most one in 30,000.
  @Test func single() throws {
    let count = try Self.count(100_000, .process, Self.lazy(.single), draining: false)
    #expect(count == Count(process: 3, kernel: 0, told: 3))
  }

  /// On tables that the kernel owns nothing is saved: it invalidates area by area.
  @Test(arguments: FlushQueueOptions.Topology.allCases)
  func kernelOwned(_ topology: FlushQueueOptions.Topology) throws {
    #expect(try Self.count(2000, .kernel, Self.lazy(topology)) == Count(process: 0, kernel: 2000, told: 0))
  }
}

/// A mapping that another closure takes.
private final class Slot: @unchecked Sendable {
  private var mapping: Mapping?
  init(_ mapping: consuming Mapping) { self.mapping = consume mapping }
  func take() -> Mapping { mapping.take()! }
}
