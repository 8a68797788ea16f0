import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Buffers that are longer than one kernel call may be, on tables that the kernel owns.
@Suite struct LargeBufferTests {
  private typealias Tables = LazyTests.Tables
  private static let area = 32 << 20
  /// Two areas and a page: three calls each way.
  private static let length = 2 * area + 4096

  private static func maps(_ rig: StandingRig, _ tables: LazyTests.Tables) -> Int {
    rig.kernel.count(of: tables.mapCall)
  }
  private static func unmaps(_ rig: StandingRig, _ tables: LazyTests.Tables) -> Int {
    rig.kernel.count(of: tables.flushCall)
  }

  private static func map(_ dma: DMADomain, _ direction: DMADirection = .bidirectional) throws -> Mapping {
    try dma.map(try dma.buffer(byteCount: length), direction)
  }

  /// Where new buffers of the same length are; they go back.
  private static func memory(_ dma: DMADomain) throws -> UInt {
    let buffer = try dma.buffer(byteCount: length)
    return StandingRig.memory(of: buffer)
  }

  /// One call an area, whole areas on the way back, and one mapping for whoever looks.
  @Test(arguments: LazyTests.Tables.kernelOwned)
  func oneCallAnArea(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables), dma = rig.dma
    let mapping = try Self.map(dma), address = mapping.address
    #expect(Self.maps(rig, tables) == 3 && rig.machine.kernel.census.areas == 3)
    let made = dma.statistics
    #expect(made.maps == 1 && made.liveMappings == 1 && made.liveBytes == UInt64(Self.length) && made.systemCalls == 3)
    for offset in [0, Self.area - 8, Self.area, Self.length - 8] { #expect(try rig.writes(address + offset)) }
    let first = unsafe dma.translate(address, byteCount: Self.length)!
    unsafe #expect(dma.translate(first, byteCount: Self.length) == address)
    let buffer = try mapping.unmap()
    #expect(Self.unmaps(rig, tables) == 3 && rig.machine.kernel.census.pinnedBytes == 0)
    let ended = dma.statistics
    #expect(ended.unmaps == 1 && ended.liveMappings == 0 && ended.liveBytes == 0 && ended.systemCalls == 6)
    for offset in [0, Self.area, Self.length - 8] { #expect(try !rig.writes(address + offset)) }
    // The address is free: the same is the best again.
    let again = try dma.map(buffer, .toDevice)
    #expect(again.address == address)
    _ = consume again
    #expect(Self.unmaps(rig, tables) == 6, "dropped")
    rig.device.close()
    #expect(rig.machine.kernel.census.areas == 0)
  }

  /// What is exactly an area long is one call, and a page more two.
  @Test(arguments: LazyTests.Tables.kernelOwned)
  func theLongestCall(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables), dma = rig.dma
    for (length, calls) in [(Self.area, 1), (Self.area + 1, 2), (2 * Self.area, 2)] {
      rig.kernel.resetCounts()
      _ = try dma.map(try dma.buffer(byteCount: length), .toDevice).unmap()
      #expect(Self.maps(rig, tables) == calls && Self.unmaps(rig, tables) == calls, "\(length)")
    }
    rig.device.close()
  }

  /// Where this process owns the tables no call is long: stores, and one invalidation.
  @Test func tablesOfThisProcess() throws {
    let rig = try StandingRig(.process), dma = rig.dma
    _ = try Self.map(dma).unmap()
    #expect(dma.statistics.invalidations == 1 && dma.statistics.implicitRegistrations == 0)
    rig.device.close()
  }

  /// In debug mode there is a gap behind it, and none inside.
  @Test(arguments: LazyTests.Tables.kernelOwned)
  func debugMode(_ tables: LazyTests.Tables) throws {
    let rig = try DebugRig(tables), dma = rig.dma
    let mapping = try Self.map(dma), end = mapping.address + Self.length
    #expect(rig.kernel.count(of: tables.mapCall) == 3)
    try rig.read(mapping.address + Self.area)
    #expect(rig.machine.faults.isEmpty)
    try rig.read(end)
    _ = dma.faults
    #expect(rig.kinds == [.overrun])
    _ = try mapping.unmap()
    #expect(rig.kernel.count(of: tables.flushCall) == 3 && dma.statistics.liveMappings == 0)
    rig.device.close()
  }

  /// Whichever area fails: those before it are taken back, the address is free, and the buffer comes back or is freed.
  @Test(arguments: LazyTests.Tables.kernelOwned, [1, 2, 3])
  func aMapThatFails(_ tables: LazyTests.Tables, _ number: Int) throws {
    for tries in [false, true] { try Self.failMap(tables, number, tries: tries) }
  }

  private static func failMap(_ tables: LazyTests.Tables, _ number: Int, tries: Bool) throws {
    let rig = try StandingRig(tables), dma = rig.dma
    let first = try Self.map(dma), address = first.address
    _ = consume first
    let memory = try Self.memory(dma)
    rig.kernel.resetCounts()
    let before = dma.statistics
    rig.kernel.fail(number, of: tables.mapCall, with: .noMemory)
    var error: DMAError?
    if tries {
      guard case .failed(let buffer, let reason) = dma.tryMap(try dma.buffer(byteCount: Self.length), .toDevice) else {
        Issue.record("mapped")
        return
      }
      #expect(buffer.byteCount == Self.length)
      error = reason
    } else {
      do throws(DMAError) { _ = try dma.map(try dma.buffer(byteCount: Self.length), .toDevice) } catch let reason {
        error = reason
      }
    }
    #expect(error?.errno == .noMemory && error?.byteCount == UInt64(Self.length))
    #expect(Self.unmaps(rig, tables) == number - 1 && rig.machine.kernel.census.pinnedBytes == 0)
    let after = dma.statistics
    #expect(after.failedMaps == before.failedMaps + 1 && after.maps == before.maps && after.leakedBytes == 0)
    #expect(after.systemCalls == before.systemCalls + UInt64(2 * number - 1))
    #expect(after.liveMappings == 0 && after.liveBytes == 0)
    #expect(try Self.memory(dma) == memory, "the memory is free")
    let again = try Self.map(dma)
    #expect(again.address == address, "and the address")
    _ = consume again
    rig.device.close()
    #expect(rig.machine.kernel.census.areas == 0)
  }

  /// A map fails, and the areas before it cannot be taken back: neither their addresses nor the memory are used again, also
  /// where the buffer comes back.
  @Test(arguments: LazyTests.Tables.kernelOwned, ["map", "tryMap", "mapped again", "lazily"])
  func whatCannotBeTakenBack(_ tables: LazyTests.Tables, _ way: String) throws {
    let rig = try StandingRig(tables), dma = rig.dma
    if way == "lazily" { try dma.switchProtection(to: .lazy(FlushQueueOptions(.single, timeout: LazyTests.patient))) }
    let buffer = try dma.buffer(byteCount: Self.length), memory = StandingRig.memory(of: buffer)
    rig.kernel.fail(2, of: tables.mapCall, with: .noMemory)
    rig.kernel.interject(before: tables.flushCall) { [kernel = rig.kernel] in
      kernel.fail(1, of: tables.flushCall, with: .inputOutput)
    }
    var error: DMAError?
    if way == "map" {
      do throws(DMAError) { _ = try dma.map(buffer, .bidirectional) } catch let reason { error = reason }
    } else {
      guard case .failed(let back, let reason) = dma.tryMap(buffer, .bidirectional) else {
        Issue.record("mapped")
        return
      }
      error = reason
      if way == "tryMap" {
        _ = consume back
      } else {
        // It may be used on, and mapped; its memory goes nowhere for all that.
        _ = try dma.map(back, .toDevice)
        try dma.drain()
      }
    }
    #expect(error?.errno == .noMemory && error?.detail?.contains("could not be unmapped") == true)
    #expect(dma.statistics.leakedBytes == UInt64(Self.length) && dma.statistics.liveMappings == 0)
    #expect(dma.statistics.systemCalls >= 3)
    var kept: [UInt] = []
    for _ in 0..<3 { kept.append(try Self.memory(dma)) }
    #expect(!kept.contains(memory))
    let other = try Self.map(dma), start = unsafe UInt(bitPattern: dma.translate(other.address))
    #expect(start != memory)
    _ = consume other
    rig.device.close()
    #expect(rig.machine.kernel.census.pinnedBytes == 0)
  }

  /// An unmap that fails half way gives the whole buffer up, once.
  @Test(arguments: LazyTests.Tables.kernelOwned, [1, 2, 3])
  func anUnmapThatFails(_ tables: LazyTests.Tables, _ number: Int) throws {
    let rig = try StandingRig(tables), dma = rig.dma
    let mapping = try Self.map(dma), address = mapping.address
    let memory = unsafe UInt(bitPattern: dma.translate(address))
    rig.kernel.fail(number, of: tables.flushCall, with: .inputOutput)
    do throws(DMAError) {
      _ = try mapping.unmap()
      Issue.record("unmapped")
    } catch { #expect(error.errno == .inputOutput && error.remedy != nil) }
    #expect(Self.unmaps(rig, tables) == number && dma.statistics.systemCalls == UInt64(3 + number))
    #expect(dma.statistics.leakedBytes == UInt64(Self.length) && dma.statistics.unmaps == 0)
    let next = try Self.map(dma)
    #expect(next.address != address)
    unsafe #expect(UInt(bitPattern: dma.translate(next.address)) != memory)
    _ = consume next
    rig.device.close()
  }
}
