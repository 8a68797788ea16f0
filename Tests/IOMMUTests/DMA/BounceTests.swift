import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Copies in the place of maps.
@Suite struct BounceTests {
  /// The device has a copy, and never the memory: what it writes arrives with the unmap, and in one way only.
  @Test(arguments: LazyTests.Tables.allCases)
  func memoryOfTheCallers(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables, .vtd, .bounce), dma = rig.dma, pages = Pages(2, filledWith: 0x11)
    // The arena has its first chunk; from then on nothing is a call.
    _ = try unsafe dma.map(unsafe: pages.all, .toDevice)
    let (before, calls) = (dma.statistics, rig.calls)
    let out = try unsafe dma.map(unsafe: pages.all, .toDevice)
    #expect(out.byteCount == 8192 && dma.statistics.bouncedBytes == before.bouncedBytes + 8192)
    unsafe #expect(dma.translate(pages.all.baseAddress!) == nil, "the memory itself is not mapped")
    #expect(try rig.reads(out.address + 4000, 64))  // the device has 64 times 0x11 now
    #expect(try rig.writes(out.address + 4000, 64), "it can write to the copy, which is for naught")
    pages[4000] = 0x22
    try out.unmap()
    #expect(pages[4000] == 0x22 && dma.statistics.bouncedBytes == before.bouncedBytes + 8192)

    pages[100] = 0x77
    let back = try unsafe dma.map(unsafe: pages.all, .fromDevice)
    #expect(dma.statistics.bouncedBytes == before.bouncedBytes + 8192, "it is not shown what it only writes")
    #expect(try rig.writes(back.address + 100, 64))
    #expect(pages[100] == 0x77 && dma.statistics.liveMappings == 1, "not yet")
    try back.unmap()
    #expect(pages.bytes(100..<164) == [UInt8](repeating: 0x11, count: 64))
    #expect(pages.bytes(0..<100) == [UInt8](repeating: 0, count: 100), "what it left alone is zeros")
    #expect(dma.statistics.bouncedBytes == before.bouncedBytes + 2 * 8192)

    pages[0] = 0x33
    let both = try unsafe dma.map(unsafe: pages.all, .bidirectional)
    #expect(try rig.writes(both.address + 8, 8))
    try both.unmap()
    #expect(pages[0] == 0x33 && pages[8] == 0x11)
    #expect(rig.calls == calls && dma.statistics.systemCalls == before.systemCalls)
    #expect(dma.statistics.maps == before.maps + 3 && dma.statistics.unmaps == before.unmaps + 3)
    #expect(dma.statistics.liveMappings == 0 && dma.statistics.liveBytes == 0)
    rig.device.close()
  }

  /// Owned buffers as well; a mapping that is dropped copies nothing to memory that nobody has any more.
  @Test(arguments: LazyTests.Tables.allCases)
  func buffers(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables, .vtd, .bounce), dma = rig.dma
    var buffer = try dma.buffer(byteCount: 100)
    buffer.store(UInt64(0x1234_5678), at: 8)
    let out = try dma.map(buffer, .toDevice)
    #expect(try rig.reads(out.address + 8))
    buffer = try out.unmap()
    buffer.store(UInt64(0), at: 8)
    let back = try dma.map(buffer, .fromDevice), address = back.address
    #expect(try rig.writes(address + 16))
    buffer = try back.unmap()
    let received = buffer.load(at: 16, as: UInt64.self)
    #expect(received == 0x1234_5678)
    let copied = dma.statistics.bouncedBytes
    #expect(copied == 200)
    let dropped = try dma.map(buffer, .fromDevice)
    _ = consume dropped
    #expect(dma.statistics.bouncedBytes == copied && dma.statistics.liveMappings == 0)
    rig.device.close()
  }

  /// Part of a page is refused or widened elsewhere; here it is copied, and no byte beside it.
  @Test(arguments: [(0, 1), (8, 64), (63, 66), (100, 4096), (4095, 2), (1, 8191)])
  func partsOfPages(_ start: Int, _ count: Int) throws {
    let rig = try StandingRig(.ioas), dma = rig.dma, pages = Pages(2, filledWith: 0x55)
    let memory = unsafe pages.part(start..<start + count)
    #expect { _ = try unsafe dma.map(unsafe: memory, .toDevice) } throws: { ($0 as? DMAError)?.code == .unaligned }
    try dma.switchProtection(to: .bounce)
    let fill = try unsafe dma.map(unsafe: pages.part(0..<256), .toDevice)
    #expect(try rig.reads(fill.address, 64))
    try fill.unmap()
    for index in 0..<8192 { pages[index] = 0x66 }
    let mapping = try unsafe dma.map(unsafe: memory, .bidirectional)
    #expect(mapping.byteCount == count && dma.statistics.liveBytes == UInt64(count))
    #expect(try rig.writes(mapping.address, min(count, 64)))
    try mapping.unmap()
    for index in 0..<8192 {
      let isWritten = index >= start && index < start + min(count, 64)
      if pages[index] != (isWritten ? 0x55 : 0x66) { Issue.record("byte \(index): \(pages[index])") }
    }
    rig.device.close()
  }

  /// A part is handed over while it stays mapped, and only that part.
  @Test func partsAreSynced() throws {
    let rig = try StandingRig(.ioas, .vtd, .bounce), dma = rig.dma, pages = Pages(1, filledWith: 0x11)
    let mapping = try unsafe dma.map(unsafe: pages.all, .bidirectional)
    let copied = dma.statistics.bouncedBytes
    for index in 0..<64 { pages[index] = 0x22 }
    mapping.sync(for: .device, 0..<32)
    #expect(try rig.reads(mapping.address, 64) && rig.writes(mapping.address + 128, 64))
    mapping.sync(for: .cpu, 128..<176)
    #expect(pages.bytes(128..<160) == [UInt8](repeating: 0x22, count: 32))
    #expect(pages.bytes(160..<192) == [UInt8](repeating: 0x11, count: 32), "the other half was not synced, either way")
    #expect(dma.statistics.bouncedBytes == copied + 32 + 48)
    mapping.sync(for: .cpu)
    #expect(pages[0] == 0x22 && pages[40] == 0x11, "the copy's, all of it")
    try mapping.unmap()
    // What the direction does not say is not done.
    let out = try unsafe dma.map(unsafe: pages.all, .toDevice)
    let before = dma.statistics.bouncedBytes
    out.sync(for: .cpu)
    #expect(dma.statistics.bouncedBytes == before)
    try out.unmap()
    rig.device.close()
  }

  /// The closure's span is the buffer's memory, before and after which a part is copied.
  @Test(arguments: [Protection.bounce, .strict, .persistent])
  func buffersAreSynced(_ protection: Protection) throws {
    let rig = try StandingRig(.ioas, .vtd, protection), dma = rig.dma
    var buffer = try dma.buffer(byteCount: 128)
    for index in 0..<16 { buffer.store(UInt64(index), at: index * 8) }
    var mapping = try dma.map(buffer, .bidirectional)
    #expect(try rig.reads(mapping.address + 64, 16) && rig.writes(mapping.address, 16))
    mapping.sync(for: .cpu, 0..<8) { span in
      #expect(span.byteCount == 8)
      let found = unsafe span.unsafeLoad(as: UInt64.self)
      #expect(found == 8)
      span.storeBytes(of: UInt64(99), as: UInt64.self)
    }
    #expect(try rig.reads(mapping.address, 16) && rig.writes(mapping.address + 96, 16))
    let again = try mapping.unmap()
    let (first, second) = (again.load(at: 96, as: UInt64.self), again.load(at: 104, as: UInt64.self))
    #expect(first == 99 && second == 9)
    rig.device.close()
  }

  /// A list is copied as it is laid out: segments, gaps, and parts that are no whole pages.
  @Test(arguments: LazyTests.Tables.allCases)
  func lists(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables, .vtd, .bounce), dma = rig.dma, pages = Pages(2, filledWith: 0x77)
    try dma.setConstraints(DMAConstraints(boundary: PageSize(shift: 13)))
    var list = ScatterList()
    list.append(try dma.buffer(byteCount: 4096))
    unsafe list.append(unsafe: pages.part(16..<8000))
    list.append(try dma.buffer(byteCount: 64))
    list.withBuffer(at: 0) { $0.store(UInt64(0xabcd), at: 0) }
    let mapped = try dma.map(list, .bidirectional)
    #expect(mapped.address.rawValue % 8192 == 0 && dma.statistics.liveMappings == 3)
    for segment in mapped.segments {
      #expect(segment.address.rawValue >> 13 == (segment.address.rawValue + UInt64(segment.byteCount - 1)) >> 13)
    }
    #expect(mapped.address(ofBufferAt: 1).rawValue % 4096 == 16)
    #expect(try rig.reads(mapped.address(ofBufferAt: 0)))
    #expect(try rig.writes(mapped.address(ofBufferAt: 1) + 7976) && rig.writes(mapped.address(ofBufferAt: 2) + 8))
    #expect(pages[7992] == 0x77)
    list = try mapped.unmap()
    #expect(pages[7992] == 0xcd && pages[7993] == 0xab && pages[16] == 0x77 && pages[15] == 0x77)
    let last = list.withBuffer(at: 2) { $0.load(at: 8, as: UInt64.self) }
    #expect(last == 0xabcd && dma.statistics.liveMappings == 0 && dma.statistics.maps == 3)
    #expect(dma.statistics.bouncedBytes == 2 * (4096 + 7984 + 64))
    // Dropped: memory of the caller's has what the device wrote all the same; what it only writes is not shown.
    let second = try dma.map(list, .fromDevice)
    #expect(try rig.writes(second.address(ofBufferAt: 1)))
    _ = consume second
    #expect(pages[16] == 0xcd && pages[7000] == 0)
    rig.device.close()
  }

  /// A list that is shorter than the boundary crosses none, wherever in the arena its copy lies.
  @Test func shortListsCrossNoBoundary() throws {
    let rig = try StandingRig(.ioas, .vtd, .bounce), dma = rig.dma
    try dma.setConstraints(DMAConstraints(boundary: PageSize(shift: 14)))
    var lists: [ListBox] = []
    for _ in 0..<8 {
      var list = ScatterList()
      for _ in 0..<3 { list.append(try dma.buffer(byteCount: 4096)) }
      let mapped = try dma.map(list, .bidirectional)
      for segment in mapped.segments {
        #expect(segment.address.rawValue >> 14 == (segment.address.rawValue + UInt64(segment.byteCount - 1)) >> 14)
      }
      lists.append(ListBox(mapped))
    }
    lists = []
    rig.device.close()
  }

  private final class ListBox: Sendable {
    private let list: MappedList
    init(_ list: consuming MappedList) { self.list = list }
  }

  /// What can only be mapped in its place is refused, and nothing of it is mapped.
  @Test func whatCannotBeCopied() throws {
    let rig = try StandingRig(.ioas, .vtd, .bounce), dma = rig.dma, pages = Pages(1)
    let areas = rig.machine.kernel.census.areas
    for isBulk in [false, true] {
      #expect {
        if isBulk {
          _ = try unsafe dma.mapBulk(unsafe: pages.all, .toDevice, at: IOVA(0x10_0000))
        } else {
          _ = try unsafe dma.map(unsafe: pages.all, .toDevice, at: IOVA(0x10_0000))
        }
      } throws: { ($0 as? DMAError)?.code == .notSupported }
    }
    var reservation = try dma.reserve(byteCount: 8192)
    let refusals = [
      StandingRig.code { try unsafe reservation.link(unsafe: pages.all, at: 0, .toDevice) },
      StandingRig.code { try reservation.link(try dma.buffer(byteCount: 64), at: 0, .toDevice) },
    ]
    #expect(refusals == [.notSupported, .notSupported])
    #expect(rig.machine.kernel.census.areas == areas)
    // Much memory is one copy, which nobody can stop.
    let many = Pages(100, filledWith: 0x42)
    let bulk = try unsafe dma.mapBulk(unsafe: many.all, .bidirectional, threads: 3, isCancelled: { true })
    guard let bulk else { throw Unexpected() }
    let isLeft = try bulk.unmapBulk(isCancelled: { true }) != nil
    #expect(!isLeft)
    rig.device.close()
  }

  /// No memory for a copy: the error is complete, and the buffer comes back.
  @Test(arguments: LazyTests.Tables.kernelOwned)
  func noRoom(_ tables: LazyTests.Tables) throws {
    var machine = SimulatedMachine.vtd
    (machine.memoryLockLimit, machine.canLockMemory) = (300 << 10, false)
    let rig = try StandingRig(tables, machine, .bounce), dma = rig.dma
    var given: DMABuffer?
    switch dma.tryMap(try dma.buffer(byteCount: 1 << 20), .toDevice) {
    case .mapped: throw Unexpected()
    case .failed(let back, let error):
      #expect(error.code == .memoryLock && error.device != nil && error.remedy != nil)
      given = consume back
    }
    let code = StandingRig.code { _ = try dma.map(given.take()!, .toDevice) }
    #expect(code == .memoryLock)
    let pages = Pages(100)
    #expect { _ = try unsafe dma.map(unsafe: pages.all, .toDevice) } throws: { ($0 as? DMAError)?.code == .memoryLock }
    #expect(dma.statistics.failedMaps == 3 && dma.statistics.liveMappings == 0)
    _ = try dma.map(try dma.buffer(byteCount: 4096), .toDevice).unmap()
    rig.device.close()
    #expect { _ = try unsafe dma.map(unsafe: pages.all, .toDevice) } throws: { ($0 as? DMAError)?.code == .closed }
  }

  private struct Unexpected: Error {}
}
