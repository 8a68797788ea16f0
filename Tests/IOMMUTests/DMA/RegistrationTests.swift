import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// Memory of the caller's that is pinned once.
@Suite struct RegistrationTests {
  /// On tables of the process, maps of it and of parts cost no system call, and nothing is in reach but what is mapped.
  @Test func partsCostNoCall() throws {
    let rig = try StandingRig(.process), dma = rig.dma, pages = Pages(16)
    let registration = try unsafe dma.register(unsafe: pages.all)
    #expect(registration.byteCount == 16 * 4096)
    #expect(dma.statistics.registrations == 1 && dma.statistics.registeredBytes == 16 * 4096)
    #expect(rig.machine.kernel.census.pinnedBytes == 16 * 4096)
    for range in [0..<65536, 0..<4096, 61440..<65536, 8192..<20480, 0..<4096] {
      rig.kernel.resetCounts()
      let mapping = try unsafe dma.map(unsafe: pages.part(range), .bidirectional), address = mapping.address
      #expect(rig.calls == 0)
      #expect(try rig.writes(address + (range.count - 8)))
      #expect(try !rig.writes(address + range.count), "no page beside it")
      try mapping.unmap()
      #expect(rig.calls == 1 && rig.kernel.count(of: "hwptInvalidate") == 1)
      #expect(try !rig.writes(address))
    }
    var list = ScatterList()
    unsafe list.append(unsafe: pages.part(4096..<8192))
    unsafe list.append(unsafe: pages.part(16384..<32768))
    rig.kernel.resetCounts()
    _ = try dma.map(list, .toDevice).unmap()
    #expect(rig.calls == 1 && dma.statistics.implicitRegistrations == 0)
    try registration.unregister()
    #expect(dma.statistics.registrations == 0 && dma.statistics.registeredBytes == 0)
    #expect(rig.machine.kernel.census.pinnedBytes == 0)
    _ = try unsafe dma.map(unsafe: pages.part(0..<4096), .toDevice).unmap()
    #expect(dma.statistics.implicitRegistrations == 1, "found no more")
    rig.device.close()
  }

  /// What is not in one registration as a whole is not found, though its neighbours are.
  @Test func lookupsAreRangeChecked() throws {
    let rig = try StandingRig(.process), dma = rig.dma, pages = Pages(8)
    let first = try unsafe dma.register(unsafe: pages.part(4096..<8192))
    let second = try unsafe dma.register(unsafe: pages.part(8192..<16384))
    var expected: UInt64 = 0
    for (range, isFound) in [
      (0..<4096, false), (4096..<8192, true), (8192..<16384, true), (4096..<12288, false), (12288..<20480, false),
      (12288..<16384, true), (0..<8192, false), (16384..<20480, false),
    ] {
      if !isFound { expected += 1 }
      try unsafe dma.map(unsafe: pages.part(range), .toDevice).unmap()
      #expect(dma.statistics.implicitRegistrations == expected, "\(range)")
    }
    try first.unregister()
    try unsafe dma.map(unsafe: pages.part(4096..<8192), .toDevice).unmap()
    #expect(dma.statistics.implicitRegistrations == expected + 1, "not from the cache either")
    try second.unregister()
    rig.device.close()
  }

  /// Many at a time, made and ended in any order: each part is found, and only while its registration lasts.
  @Test func manyRegistrations() throws {
    let rig = try StandingRig(.container, .vtd, .persistent), dma = rig.dma, pages = Pages(64)
    var registrations: [Int: Box] = [:]
    for round in 0..<3 {
      for step in 0..<64 {
        let page = (step * 37 + round * 11) % 64
        if registrations[page] == nil {
          let memory = unsafe pages.part(page * 4096..<(page + 1) * 4096)
          registrations[page] = Box(try unsafe dma.register(unsafe: memory))
        } else if step % 3 != 0 {
          registrations[page] = nil
        }
        #expect(dma.statistics.registrations == registrations.count)
        let probe = (page * 5 + step) % 64, part = unsafe pages.part(probe * 4096 + 8..<probe * 4096 + 16)
        let code = StandingRig.code { try unsafe dma.map(unsafe: part, .toDevice).unmap() }
        #expect(code == (registrations[probe] == nil ? .unaligned : nil), "\(round) \(step)")
      }
    }
    #expect(dma.statistics.persistentBytes == UInt64(registrations.count) * 4096)
    registrations = [:]
    #expect(rig.machine.kernel.census.pinnedBytes == 0)
    rig.device.close()
  }

  /// The table grows while other threads add to it: each finds its own.
  @Test func registeredByManyThreads() async throws {
    let rig = try StandingRig(.container, .vtd, .persistent), dma = rig.dma, pages = Pages(256)
    let failures = await inThreads(4) { thread in
      var registrations: [Box] = []
      for page in thread * 64..<(thread + 1) * 64 {
        let start = page * 4096
        registrations.append(Box(try unsafe dma.register(unsafe: pages.part(start..<start + 4096))))
        // Only in mid page of what is registered.
        for earlier in thread * 64...page {
          try unsafe dma.map(unsafe: pages.part(earlier * 4096 + 8..<earlier * 4096 + 16), .toDevice).unmap()
        }
      }
    }
    #expect(failures.isEmpty, "\(failures.first ?? "")")
    #expect(dma.statistics.registrations == 0 && rig.machine.kernel.census.pinnedBytes == 0)
    rig.device.close()
  }

  /// Whoever ends one, or unmaps, looks for all that have ended: what another thread has taken out is unpinned all the same. Of
  /// memory that is registered once only, as the next end at its address would make good for this one.
  @Test(arguments: [LazyTests.Tables.process, .smmu])
  func endedUnderOthersEyes(_ tables: LazyTests.Tables) async throws {
    let rig = try StandingRig(tables), dma = rig.dma, count = 400, pages = Pages(6 * count), other = Pages(1)
    let before = rig.machine.kernel.census.pinnedBytes - dma.statistics.tableBytes
    let failures = await inThreads(6) { thread in
      for page in thread * count..<(thread + 1) * count {
        try unsafe dma.register(unsafe: pages.part(page * 4096..<(page + 1) * 4096)).unregister()
        if page % 8 == 0 { try unsafe dma.map(unsafe: other.all, .toDevice).unmap() }
      }
    }
    #expect(failures.isEmpty, "\(failures.first ?? "")")
    #expect(dma.statistics.registrations == 0)
    #expect(rig.machine.kernel.census.pinnedBytes - dma.statistics.tableBytes == before)
    let implicit = dma.statistics.implicitRegistrations
    try unsafe dma.map(unsafe: pages.part(0..<4096), .toDevice).unmap()
    #expect(dma.statistics.implicitRegistrations == implicit + 1)
    rig.device.close()
  }

  private final class Box: Sendable {
    private let registration: Registration
    init(_ registration: consuming Registration) { self.registration = registration }
  }

  /// Where the kernel owns the tables the registration is the map: with the protection that says so, and no other.
  @Test(arguments: LazyTests.Tables.kernelOwned)
  func onTablesOfTheKernel(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables), dma = rig.dma, pages = Pages(4, filledWith: 0x11)
    for protection in [Protection.strict, .lazy(.perCPU), .bounce] {
      try dma.switchProtection(to: protection)
      let code = StandingRig.code { _ = try unsafe dma.register(unsafe: pages.all) }
      #expect(code == .notSupported && dma.statistics.registrations == 0)
    }
    try dma.switchProtection(to: .persistent)
    let registration = try unsafe dma.register(unsafe: pages.all)
    #expect(dma.statistics.persistentBytes == 16384 && rig.machine.kernel.census.pinnedBytes == 16384)
    let before = dma.statistics
    rig.kernel.resetCounts()
    for range in [0..<16384, 4096..<8192, 100..<164, 16383..<16384] {
      let mapping = try unsafe dma.map(unsafe: pages.part(range), .fromDevice)
      let host = unsafe UInt(bitPattern: dma.translate(mapping.address, byteCount: range.count))
      #expect(host == UInt(pages.address) + UInt(range.lowerBound))
      try mapping.unmap()
    }
    guard let bulk = try unsafe dma.mapBulk(unsafe: pages.all, .toDevice) else { throw Unexpected() }
    let isLeft = try bulk.unmapBulk() != nil
    #expect(
      !isLeft && rig.calls == 0 && dma.statistics.maps == before.maps + 5 && dma.statistics.liveBytes == 0)
    let mapping = try unsafe dma.map(unsafe: pages.part(0..<4096), .toDevice)
    #expect(try rig.writes(mapping.address + 8192), "all of it is in reach, as is said")
    try mapping.unmap()
    // Another protection takes it out of reach; it has its use again later.
    try dma.switchProtection(to: .strict)
    #expect(dma.statistics.persistentBytes == 0 && rig.machine.kernel.census.pinnedBytes == 0)
    let code = StandingRig.code { _ = try unsafe dma.map(unsafe: pages.part(100..<164), .toDevice) }
    #expect(code == .unaligned && dma.statistics.registrations == 1)
    try dma.switchProtection(to: .persistent)
    rig.kernel.resetCounts()
    try unsafe dma.map(unsafe: pages.part(100..<164), .toDevice).unmap()
    #expect(rig.calls == 0)
    try registration.unregister()
    #expect(rig.machine.kernel.census.pinnedBytes == 0 && dma.statistics.persistentBytes == 0)
    rig.device.close()
  }

  @Test(arguments: LazyTests.Tables.allCases)
  func refusals(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables, .vtd, .persistent), dma = rig.dma, pages = Pages(8)
    let pinned = rig.machine.kernel.census.pinnedBytes
    func register(_ range: Range<Int>) -> DMAError? {
      do throws(DMAError) { _ = try unsafe dma.register(unsafe: pages.part(range)) } catch { return error }
      return nil
    }
    for range in [1..<4096, 0..<4095, 8..<16] { #expect(register(range)?.code == .unaligned) }
    #expect(register(8..<16)?.remedy == "Use buffer(byteCount:), or align the memory", "it does not widen")
    #expect(register(0..<0)?.code == .empty)
    let none = unsafe UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: 1 << 20), count: 4096)
    let noMemory = StandingRig.code { _ = try unsafe dma.register(unsafe: none) }
    #expect(noMemory == .badMemory)
    for (start, count) in [(4096, 1 << 40), (UInt.max - 8191, 4096), (1 << 20, Int.max - 4095), (1, Int.max)] {
      let hostile = unsafe UnsafeRawBufferPointer(start: UnsafeRawPointer(bitPattern: start), count: count)
      let code = StandingRig.code { _ = try unsafe dma.register(unsafe: hostile) }
      #expect(code != nil, "\(start) \(count)")
    }
    let kept = try unsafe dma.register(unsafe: pages.part(8192..<16384))
    for range in [8192..<16384, 8192..<12288, 0..<32768, 4096..<12288, 12288..<20480] {
      let error = register(range)
      #expect(error?.code == .overlap && error?.device != nil)
      #expect(error?.detail?.contains("\(IOVA(pages.address + 8192))") == true, "\(String(describing: error))")
    }
    #expect(register(4096..<8192) == nil && register(16384..<20480) == nil, "neighbours are none")
    let buffer = try dma.buffer(byteCount: 4096)
    let start = unsafe UnsafeRawPointer(bitPattern: StandingRig.memory(of: buffer))
    let overlap = StandingRig.code {
      _ = try unsafe dma.register(unsafe: UnsafeRawBufferPointer(start: start, count: 4096))
    }
    #expect(overlap == .overlap, "the library's own")
    try kept.unregister()
    #expect(dma.statistics.registrations == 0)
    _ = consume buffer
    try dma.switchProtection(to: .strict)
    #expect(rig.machine.kernel.census.pinnedBytes == pinned + (tables == .process ? dma.statistics.arenaBytes : 0))
    rig.device.close()
    #expect(register(0..<4096)?.code == (tables == .process ? .closed : .notSupported))
  }

  @Test(arguments: LazyTests.Tables.allCases)
  func overTheLimit(_ tables: LazyTests.Tables) throws {
    var machine = SimulatedMachine.vtd
    (machine.memoryLockLimit, machine.canLockMemory) = (64 << 10, false)
    let rig = try StandingRig(tables, machine, .persistent), dma = rig.dma, pages = Pages(32)
    do throws(DMAError) {
      _ = try unsafe dma.register(unsafe: pages.all)
      Issue.record("registered")
    } catch {
      #expect(error.code == .memoryLock && error.remedy?.contains("RLIMIT_MEMLOCK") == true && error.device != nil)
    }
    #expect(dma.statistics.registrations == 0 && rig.machine.kernel.census.pinnedBytes == 0)
    _ = try unsafe dma.register(unsafe: pages.part(0..<16384))
    #expect(rig.machine.kernel.census.pinnedBytes == 0)
    rig.device.close()
  }

  /// Dropped while mappings inside are live: found no more, and gone with the last of them.
  @Test(arguments: LazyTests.Tables.allCases, [Protection.strict, .lazy(.single), .persistent])
  func droppedWithMappingsInside(_ tables: LazyTests.Tables, _ protection: Protection) throws {
    if tables != .process, protection != .persistent { return }
    let rig = try StandingRig(tables, .vtd, protection), dma = rig.dma, pages = Pages(8)
    var registration: Registration? = try unsafe dma.register(unsafe: pages.all)
    let first = try unsafe dma.map(unsafe: pages.part(0..<4096), .fromDevice)
    let second = try unsafe dma.map(unsafe: pages.part(8192..<12288), .fromDevice), address = second.address
    try registration.take()!.unregister()
    #expect(dma.statistics.registrations == 1 && dma.statistics.registeredBytes == 32768)
    let code = StandingRig.code { _ = try unsafe dma.register(unsafe: pages.part(4096..<8192)) }
    #expect(code == .overlap, "it is still there")
    #expect(try rig.writes(address))
    try first.unmap()
    #expect(try rig.writes(address) && dma.statistics.registrations == 1)
    let implicit = dma.statistics.implicitRegistrations
    try unsafe dma.map(unsafe: pages.part(16384..<20480), .toDevice).unmap()
    if tables == .process { #expect(dma.statistics.implicitRegistrations == implicit + 1) }
    try second.unmap()
    #expect(dma.statistics.registrations == 0 && dma.statistics.registeredBytes == 0)
    try dma.drain()
    #expect(rig.machine.kernel.census.pinnedBytes == 0)
    #expect(try !rig.writes(address))
    rig.device.close()
  }

  /// Lists and reservations hold a registration too, and end it with the next call that looks.
  @Test func droppedWithAListInside() throws {
    let rig = try StandingRig(.process), dma = rig.dma, pages = Pages(8)
    var registration: Registration? = try unsafe dma.register(unsafe: pages.all)
    var list = ScatterList()
    unsafe list.append(unsafe: pages.part(4096..<8192))
    let mapped = try dma.map(list, .fromDevice), address = mapped.address
    var reservation = try dma.reserve(byteCount: 8192)
    try unsafe reservation.link(unsafe: pages.part(8192..<12288), at: 4096, .fromDevice)
    let linked = try reservation.sync(), second = linked.address + 4096
    registration = nil
    #expect(try rig.writes(address) && rig.writes(second))
    _ = try mapped.unmap()
    try dma.drain()
    #expect(dma.statistics.registrations == 1)
    #expect(try rig.writes(second))
    _ = try linked.destroy()
    try dma.drain()
    #expect(dma.statistics.registrations == 0 && rig.machine.kernel.census.pinnedBytes == 0)
    _ = registration
    rig.device.close()
  }

  /// Closing ends registrations; their values go afterwards without a call.
  @Test(arguments: LazyTests.Tables.allCases)
  func closing(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables, .vtd, .persistent), dma = rig.dma, pages = Pages(8)
    let registration = try unsafe dma.register(unsafe: pages.part(0..<16384))
    let other = try unsafe dma.register(unsafe: pages.part(16384..<32768))
    let mapping = try unsafe dma.map(unsafe: pages.part(0..<4096), .toDevice)
    rig.device.close()
    #expect(rig.machine.kernel.census.pinnedBytes == 0)
    rig.kernel.resetCounts()
    try registration.unregister()
    _ = consume other
    try mapping.unmap()
    #expect(rig.calls == 0 && dma.statistics.registrations == 0)
  }

  /// The kernel will not: the error says so, and a later drain tries again.
  @Test(arguments: LazyTests.Tables.kernelOwned)
  func anEndThatFails(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables, .vtd, .persistent), dma = rig.dma, pages = Pages(2)
    let registration = try unsafe dma.register(unsafe: pages.all)
    rig.kernel.fail(1, of: tables.flushCall, with: .inputOutput)
    do throws(DMAError) {
      try registration.unregister()
      Issue.record("unregistered")
    } catch { #expect(error.errno == .inputOutput && error.device != nil && error.operation == "unregister") }
    #expect(dma.statistics.registrations == 1)
    // A drain says that it is still there.
    rig.kernel.fail(1, of: tables.flushCall, with: .inputOutput)
    #expect(StandingRig.code { try dma.drain() } == .system)
    #expect(dma.statistics.registrations == 1)
    try dma.drain()
    #expect(dma.statistics.registrations == 0 && rig.machine.kernel.census.pinnedBytes == 0)
    rig.device.close()
  }

  /// Where the process owns the tables as well; then the memory can be registered again.
  @Test(arguments: [SimulatedMachine.vtd, .smmuv3Nested])
  func anUnpinningThatFails(_ machine: SimulatedMachine) throws {
    let rig = try StandingRig(.process, machine), dma = rig.dma, pages = Pages(4)
    let before = rig.machine.kernel.census.pinnedBytes
    let registration = try unsafe dma.register(unsafe: pages.all)
    rig.kernel.fail(1, of: "ioasUnmap", with: .inputOutput)
    do throws(DMAError) {
      try registration.unregister()
      Issue.record("unregistered")
    } catch { #expect(error.errno == .inputOutput && error.operation == "unregister") }
    #expect(dma.statistics.registrations == 1 && rig.machine.kernel.census.pinnedBytes == before + 16384)
    // A drain says that it is still there; no map finds it, and what ends then tries again.
    rig.kernel.fail(1, of: "ioasUnmap", with: .inputOutput)
    #expect(StandingRig.code { try dma.drain() } == .system)
    #expect(dma.statistics.registrations == 1 && rig.machine.kernel.census.pinnedBytes == before + 16384)
    try unsafe dma.map(unsafe: pages.part(0..<4096), .toDevice).unmap()
    #expect(dma.statistics.implicitRegistrations == 1)
    try dma.drain()
    #expect(dma.statistics.registrations == 0 && rig.machine.kernel.census.pinnedBytes == before)
    let second = try unsafe dma.register(unsafe: pages.all)
    let mapping = try unsafe dma.map(unsafe: pages.part(4096..<8192), .fromDevice), address = mapping.address
    #expect(try rig.writes(address) && dma.statistics.implicitRegistrations == 1)
    try mapping.unmap()
    try second.unregister()
    #expect(rig.machine.kernel.census.pinnedBytes == before)
    rig.device.close()
  }

  /// An invalidation that fails keeps the memory pinned: what is cached may lead there.
  @Test func aFlushThatFailsKeepsIt() throws {
    let patient = Protection.lazy(FlushQueueOptions(.single, timeout: LazyTests.patient))
    let rig = try StandingRig(.process, .vtd, patient), dma = rig.dma, pages = Pages(2)
    var registration: Registration? = try unsafe dma.register(unsafe: pages.all)
    try unsafe dma.map(unsafe: pages.all, .fromDevice).unmap()
    rig.kernel.fail(1, of: "hwptInvalidate", with: .inputOutput)
    let code = StandingRig.code { try registration.take()!.unregister() }
    #expect(code == .system && rig.machine.kernel.census.pinnedBytes == 8192)
    try dma.drain()
    #expect(rig.machine.kernel.census.pinnedBytes == 0 && dma.statistics.registrations == 0)
    rig.device.close()
  }

  @Test func aForkIsRefused() async {
    await #expect(processExitsWith: .success) {
      let rig = try StandingRig(.ioas, .vtd, .persistent), pages = Pages(2)
      var registration: Registration? = try unsafe rig.dma.register(unsafe: pages.part(0..<4096))
      let second = try unsafe rig.dma.register(unsafe: pages.part(4096..<8192))
      var mapping: Mapping? = try rig.dma.map(try rig.dma.buffer(byteCount: 64), .toDevice)
      rig.kernel.resetCounts()
      let child = fork()
      if child == 0 {
        let codes = [
          StandingRig.code { _ = try unsafe rig.dma.register(unsafe: pages.all) },
          StandingRig.code { try registration.take()!.unregister() },
          StandingRig.code { _ = try unsafe rig.dma.map(unsafe: pages.all, .toDevice) },
          StandingRig.code { _ = try mapping.take()!.unmap() },
        ]
        _ = consume second
        _exit(codes.allSatisfy { $0 == .forked } && rig.kernel.callCount == 0 ? 0 : 1)
      }
      var status: Int32 = -1
      _ = unsafe waitpid(child, &status, 0)
      try #require(status == 0)
      try #require(rig.dma.statistics.registrations == 2 && rig.dma.statistics.liveMappings == 1)
      rig.device.close()
    }
  }

  private struct Unexpected: Error {}
}
