import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// How much one call of a flush unmaps, on tables that the kernel owns.
@Suite struct FlushRunTests {
  private static let area = 32 << 20, length = 2 * area + 4096
  private static let lazy = Protection.lazy(FlushQueueOptions(.single, depth: 2048, timeout: LazyTests.patient))

  /// Maps memory at addresses without a gap between them, and unmaps all of it lazily.
  private static func queue(_ rig: StandingRig, _ pageCounts: [Int]) throws {
    let pages = Pages(pageCounts.max()!)
    var address = IOVA(0x1000_0000)
    for count in pageCounts {
      let part = unsafe pages.part(0..<count * 4096)
      try unsafe rig.dma.map(unsafe: part, .toDevice, at: address).unmap()
      address = address + count * 4096
    }
    rig.kernel.resetCounts()
  }

  /// A run is an area's worth at most; ranges that fit together go together.
  @Test(arguments: LazyTests.Tables.kernelOwned)
  func anAreasWorth(_ tables: LazyTests.Tables) throws {
    let whole = 8192
    for (pageCounts, calls) in [
      ([whole / 2, whole / 2], 1), ([whole / 2, whole / 2, 1], 2), ([whole / 2, whole / 2 + 1], 2),
      ([whole, whole], 2), ([1, whole, 1], 3),
    ] {
      let rig = try StandingRig(tables, .vtd, Self.lazy), dma = rig.dma
      try Self.queue(rig, pageCounts)
      let before = dma.statistics.systemCalls
      try dma.drain()
      #expect(rig.kernel.count(of: tables.flushCall) == calls, "\(pageCounts)")
      #expect(dma.statistics.systemCalls == before + UInt64(calls) && dma.statistics.flushes == 1)
      #expect(dma.statistics.queuedBytes == 0 && rig.machine.kernel.census.pinnedBytes == 0)
      rig.device.close()
    }
  }

  /// Nor are there so many ranges that their invalidations take long.
  @Test(arguments: LazyTests.Tables.kernelOwned)
  func soManyRanges(_ tables: LazyTests.Tables) throws {
    for (count, calls) in [(256, 1), (257, 2), (1000, 4)] {
      let rig = try StandingRig(tables, .vtd, Self.lazy)
      try Self.queue(rig, Array(repeating: 1, count: count))
      try rig.dma.drain()
      #expect(rig.kernel.count(of: tables.flushCall) == calls, "\(count)")
      #expect(rig.machine.kernel.census.pinnedBytes == 0)
      rig.device.close()
    }
  }

  /// A buffer of several areas waits as one, and its flush is a call for each.
  @Test(arguments: LazyTests.Tables.kernelOwned, [false, true])
  func aLargeBuffer(_ tables: LazyTests.Tables, _ dropsMapping: Bool) throws {
    let rig = try StandingRig(tables, .vtd, Self.lazy), dma = rig.dma
    let buffer = try dma.buffer(byteCount: Self.length), memory = StandingRig.memory(of: buffer)
    let mapping = try dma.map(buffer, .bidirectional), address = mapping.address
    rig.kernel.resetCounts()
    if dropsMapping { _ = consume mapping } else { _ = try mapping.unmap() }
    #expect(rig.kernel.count(of: tables.flushCall) == 0 && dma.statistics.queuedBytes == UInt64(Self.length))
    #expect(try rig.writes(address + Self.area))
    try dma.drain()
    #expect(rig.kernel.count(of: tables.flushCall) == 3 && dma.statistics.queuedBytes == 0)
    #expect(rig.machine.kernel.census.pinnedBytes == 0)
    for offset in [0, Self.area, Self.length - 8] { #expect(try !rig.writes(address + offset)) }
    let again = try dma.buffer(byteCount: Self.length)
    #expect(StandingRig.memory(of: again) == memory)
    _ = consume again
    rig.device.close()
    #expect(rig.machine.kernel.census.areas == 0)
  }

  /// A flush that fails half way goes on with the next: nothing is unmapped twice, and nothing left out.
  @Test(arguments: LazyTests.Tables.kernelOwned, [1, 2, 3])
  func aFlushThatFailsHalfWay(_ tables: LazyTests.Tables, _ number: Int) throws {
    for isCached in [false, true] { try Self.failFlush(tables, number, isCached: isCached) }
  }

  private static func failFlush(_ tables: LazyTests.Tables, _ number: Int, isCached: Bool) throws {
    let rig = try StandingRig(tables, .vtd, isCached ? .automatic(Caching.options(1 << 30)) : Self.lazy), dma = rig.dma
    let mapping = try dma.map(try dma.buffer(byteCount: Self.length), .bidirectional), address = mapping.address
    let buffer = try mapping.unmap()
    rig.kernel.resetCounts()
    let before = dma.statistics.systemCalls
    rig.kernel.fail(number, of: tables.flushCall, with: .inputOutput)
    #expect(throws: DMAError.self) { try dma.drain() }
    #expect(rig.kernel.count(of: tables.flushCall) == number)
    #expect(try rig.writes(address + Self.length - 8), "it is still within reach")
    #expect(dma.statistics.queuedBytes + dma.statistics.cachedBytes == UInt64(Self.length))
    try dma.drain()
    #expect(rig.kernel.count(of: tables.flushCall) == 4, "each area once, and that which failed once more")
    #expect(dma.statistics.systemCalls == before + 4)
    #expect(dma.statistics.queuedBytes == 0 && dma.statistics.cachedBytes == 0 && dma.statistics.leakedBytes == 0)
    #expect(rig.machine.kernel.census.pinnedBytes == 0)
    _ = consume buffer
    rig.device.close()
    #expect(rig.machine.kernel.census.areas == 0)
  }

  /// No room in the ring, and no flush to be had: the range is unmapped on the spot, area by area.
  @Test(arguments: LazyTests.Tables.kernelOwned, [0, 1, 3])
  func onTheSpot(_ tables: LazyTests.Tables, _ failing: Int) throws {
    let options = FlushQueueOptions(.single, depth: 2, timeout: LazyTests.patient)
    let rig = try StandingRig(tables, .vtd, .lazy(options)), dma = rig.dma
    _ = try LazyTests.mapAndUnmap(dma)
    let mapping = try dma.map(try dma.buffer(byteCount: Self.length), .bidirectional)
    rig.kernel.resetCounts()
    let before = dma.statistics.systemCalls
    rig.kernel.interject(before: tables.flushCall) { [kernel = rig.kernel] in
      kernel.fail(1, of: tables.flushCall, with: .inputOutput)
      guard failing > 0 else { return }
      kernel.interject(before: tables.flushCall) { kernel.fail(failing, of: tables.flushCall, with: .inputOutput) }
    }
    do throws(DMAError) {
      _ = try mapping.unmap()
      #expect(failing == 0)
    } catch { #expect(failing > 0 && error.errno == .inputOutput) }
    let calls = failing == 0 ? 4 : 1 + failing
    #expect(rig.kernel.count(of: tables.flushCall) == calls && dma.statistics.systemCalls == before + UInt64(calls))
    #expect(dma.statistics.leakedBytes == UInt64(failing == 0 ? 0 : Self.length))
    #expect(dma.statistics.queuedBytes == 4096, "what was there before")
    rig.device.close()
  }
}
