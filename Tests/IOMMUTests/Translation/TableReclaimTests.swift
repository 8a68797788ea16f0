import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import PageTables
import Testing

/// Tables without entries come back while a domain is open, and nobody else's go.
@Suite struct TableReclaimTests {
  static let name = "0000:00:02.0"
  static let machines = [SimulatedMachine.smmuv3Nested, .vtdNested]

  final class Live {
    private var mapping: UnsafeMapping?
    init(_ mapping: consuming UnsafeMapping) { self.mapping = consume mapping }
    func unmap() throws { if let mapping = mapping.take() { try mapping.unmap() } }
  }

  /// A device on tables of the process, and a page that was registered.
  final class Rig: CustomReflectable, @unchecked Sendable {
    let machine: SimulatedHost
    let kernel: FaultingKernel
    let device: Device
    var dma: DMADomain { device.dma }
    let page = Pages(1)
    private var registration: Registration?

    init(_ description: SimulatedMachine = .smmuv3Nested, _ protection: Protection = .strict) throws {
      machine = SimulatedHost(description, devices: [name: ScratchModel()])
      kernel = FaultingKernel(machine.kernel)
      device = try Device(name, on: Host(kernel: kernel), translation: .process)
      try device.dma.switchProtection(to: protection)
      // Addresses of the library's choice are above 4 GiB too.
      device.dma.setAddressPolicy(.full)
      registration = try unsafe device.dma.register(unsafe: page.all)
    }

    /// What fails is described by what it is made of, which nobody can do with a registration.
    var customMirror: Mirror { Mirror(self, children: [(label: String?, value: Any)]()) }

    /// The address of a page in a region that a table of pages covers, above 4 GiB.
    static func address(_ region: UInt64, page: UInt64 = 0) -> IOVA { IOVA(1 << 32 + region << 21 + page << 12) }

    func map(_ region: UInt64, page index: UInt64 = 0) throws -> Live {
      Live(try unsafe dma.map(unsafe: page.all, .bidirectional, at: Self.address(region, page: index)))
    }

    /// Maps a page in each of some regions, and unmaps it before the next.
    func wander(_ regions: Range<UInt64>) throws { for region in regions { try map(region).unmap() } }

    /// Whether a write of the device goes through.
    func reaches(_ region: UInt64, page: UInt64 = 0) -> Bool {
      machine.storm(1, from: name, at: Self.address(region, page: page).rawValue) == 0
    }

    /// Whether the table of a region is there without an entry.
    func hasEmptyTable(_ address: IOVA) -> Bool {
      let start = address.rawValue & ~(1 << 21 - 1), table = dma.processOwned as! ProcessOwnedSMMU
      return table.table.findEmptyTable(from: start, limit: 16) == .found(iova: start, byteCount: 1 << 21)
    }

    /// Calls a function before each invalidation of everything, which may drop it.
    func beforeEverything(_ body: @escaping @Sendable (inout [UInt64]) -> Void) {
      kernel.hookInvalidations(InvalidationHook { call in if call.words[0] & 0xff == 0x11 { body(&call.words) } })
    }

    /// Calls a function before the first of them.
    func beforeTheFirst(_ body: @escaping @Sendable () -> Void) {
      let isFirst = Shared(true)
      beforeEverything { _ in
        let isThis = isFirst.change { isFirst in
          defer { isFirst = false }
          return isFirst
        }
        if isThis { body() }
      }
    }

    func close() throws {
      kernel.hookInvalidations(nil)
      if let registration = registration.take() { try registration.unregister() }
      device.close()
      #expect(machine.kernel.census.pinnedBytes == 0 && machine.kernel.census.descriptors == 0)
    }
  }

  // MARK: - Memory

  /// 64 GiB of addresses, a page in every fourth 2 MiB of one GiB at a time: 32 MiB of tables, if none came back.
  @Test(arguments: [0, 1], [Protection.strict, .lazy(FlushQueueOptions(.perCPU, timeout: .seconds(1000)))])
  func addressesThatWander(_ machine: Int, _ protection: Protection) throws {
    let rig = try Rig(Self.machines[machine], protection)
    var most: UInt64 = 0
    for gibibyte in 0..<64 as Range<UInt64> {
      let live = try (0..<128).map { try rig.map(gibibyte << 9 + $0 << 2) }
      #expect(rig.reaches(gibibyte << 9 + 508))
      for mapping in live { try mapping.unmap() }
      try rig.dma.drain()
      most = max(most, rig.dma.statistics.tableBytes)
    }
    // 129 tables of a GiB, a few above and beside them, and as many again.
    #expect(most <= 2 * 140 * 4096, "\(most) bytes of tables")
    #expect(rig.dma.statistics.leakedBytes == 0)
    try rig.close()
  }

  /// One after the other they need no more than the first few tables, and an invalidation of everything now and then.
  @Test(arguments: [0, 1]) func oneAfterTheOther(_ machine: Int) throws {
    let rig = try Rig(Self.machines[machine]), before = rig.dma.statistics
    try rig.wander(0..<3000)
    let after = rig.dma.statistics
    #expect(after.tableBytes == before.tableBytes)
    #expect(after.invalidations - before.invalidations < 3000 + 3000 / 4)
    try rig.close()
  }

  /// What stays mapped keeps its table, and where few are empty the pool grows.
  @Test func whatIsLiveStays() throws {
    let rig = try Rig()
    var live: [Live] = []
    for region in 0..<600 as Range<UInt64> {
      let mapping = try rig.map(region)
      if region % 40 == 0 { try mapping.unmap() } else { live.append(mapping) }
    }
    #expect(rig.dma.statistics.tableBytes >= 580 * 4096)
    #expect((0..<600).allSatisfy { rig.reaches($0) == ($0 % 40 != 0) })
    for mapping in live { try mapping.unmap() }
    try rig.close()
  }

  /// A branch of the tree goes too, once all below it went.
  @Test func upperTables() throws {
    let rig = try Rig(), table = rig.dma.processOwned as! ProcessOwnedSMMU
    // Each in a GiB of its own, and in 512 GiB of its own: three tables each, or two.
    for index in 1..<400 as Range<UInt64> { try rig.map(index << 9).unmap() }
    for index in 1..<60 as Range<UInt64> { try rig.map(index << 18).unmap() }
    #expect(rig.dma.statistics.tableBytes <= 128 << 10)
    #expect(table.table.tableCount <= 32)
    try rig.close()
  }

  // MARK: - Whose region it is

  /// A cached address is somebody's: the next map may have it at any moment.
  @Test func cachedAddresses() throws {
    let rig = try Rig(), dma = rig.dma
    let mapping = try unsafe dma.map(unsafe: rig.page.all, .bidirectional), address = mapping.address
    try mapping.unmap()
    try #require(address.rawValue >= TableReclaimTests.Rig.address(0).rawValue)
    try rig.wander(0..<200)
    #expect(rig.hasEmptyTable(address))
    try dma.setMask(.bits(64))  // empties the caches
    try rig.wander(0..<200)
    #expect(!rig.hasEmptyTable(address))
    let again = try unsafe dma.map(unsafe: rig.page.all, .bidirectional)
    #expect(again.address == address && rig.machine.storm(1, from: Self.name, at: address.rawValue) == 0)
    try again.unmap()
    try rig.close()
  }

  /// So is one that waits for a flush, or that is reserved with nothing mapped.
  @Test func waitingAndReserved() throws {
    let rig = try Rig(.smmuv3Nested, .lazy(FlushQueueOptions(.single, timeout: .seconds(1000)))), dma = rig.dma
    try rig.map(500).unmap()
    var reservation = try dma.reserve(byteCount: 2 << 20)
    try reservation.link(try dma.buffer(byteCount: 4096), at: 0, .bidirectional)
    var linked = try reservation.sync()
    let address = linked.address
    _ = try linked.unlink(0..<4096)
    reservation = linked.reopen()
    // In pieces that leave the queue as it is: live ones need the tables.
    let live = try (0..<200).map { try rig.map($0) }
    #expect(rig.hasEmptyTable(Rig.address(500)) && rig.hasEmptyTable(address))
    #expect(throws: DMAError.self, "reserved") {
      try unsafe dma.map(unsafe: rig.page.all, .toDevice, at: address).unmap()
    }
    for mapping in live { try mapping.unmap() }
    try dma.drain()
    try rig.wander(1000..<1400)
    #expect(!rig.hasEmptyTable(Rig.address(500)) && rig.hasEmptyTable(address))
    _ = try reservation.destroy()
    try rig.close()
  }

  /// A region looks taken while its table is being taken back: who wants an address there waits.
  @Test func anAddressInBetween() throws {
    let rig = try Rig(), outcome = Shared<Bool?>(nil)
    try rig.map(500).unmap()
    rig.beforeTheFirst {
      inThread {
        let mapping = try? rig.map(500, page: 7), hasReached = mapping != nil && rig.reaches(500, page: 7)
        try? mapping?.unmap()
        outcome.change { $0 = hasReached }
      }
      usleep(100_000)
    }
    let live = try (0..<20).map { try rig.map($0) }
    for _ in 0..<500 where outcome.value == nil { usleep(10_000) }
    #expect(outcome.value == true)
    for mapping in live { try mapping.unmap() }
    try rig.close()
  }

  // MARK: - What hardware knows

  /// A device that went through a table finds nothing by it when another region has it, unless the invalidation was lost.
  @Test(arguments: [false, true]) func waysAreForgotten(_ isLost: Bool) throws {
    let rig = try Rig()
    let first = try rig.map(500)
    #expect(rig.reaches(500))
    try first.unmap()
    #expect(!rig.reaches(500))
    if isLost { rig.beforeEverything { $0 = [] } }
    var live: [Live] = [], hasReached = false
    for region in 0..<30 as Range<UInt64> {
      live.append(try rig.map(region))
      if rig.reaches(500) { hasReached = true }
    }
    #expect(hasReached == isLost)
    for mapping in live { try mapping.unmap() }
    try rig.close()
  }

  /// No table is used again before the invalidation is complete: another thread waits for it. One that is shows.
  @Test(arguments: [false, true]) func tablesWait(_ isCareless: Bool) throws {
    let rig = try Rig(), table = rig.dma.processOwned as! ProcessOwnedSMMU
    let other = Shared<Bool?>(nil), hasReached = Shared<Bool?>(nil)
    let first = try rig.map(500)
    #expect(rig.reaches(500))
    try first.unmap()
    table.reusesTablesEarly = isCareless
    rig.beforeTheFirst {
      inThread {
        let mapping = try? rig.map(400)
        other.change { $0 = mapping != nil }
        usleep(300_000)
        try? mapping?.unmap()
        other.change { $0 = nil }
      }
      for _ in 0..<20 where other.value == nil { usleep(10_000) }
      hasReached.change { $0 = rig.reaches(500) }
    }
    let live = try (0..<20).map { try rig.map($0) }
    #expect(hasReached.value == isCareless)
    for _ in 0..<500 where other.value != nil { usleep(10_000) }
    for mapping in live { try mapping.unmap() }
    try rig.close()
  }

  // MARK: - When calls fail

  /// Any one call fails: what was asked for fails, or nothing does, and all goes on.
  @Test(arguments: [0, 1]) func everyCall(_ machine: Int) throws {
    for n in 1...400 {
      let rig = try Rig(Self.machines[machine])
      rig.kernel.resetCounts()
      rig.kernel.fail(n, except: ["waitReadable", "takeEvent"], with: .inputOutput)
      for region in 0..<60 as Range<UInt64> { try? rig.map(region).unmap() }
      let hasFailed = rig.kernel.hasFailed
      rig.kernel.passAll()
      #expect(rig.dma.statistics.leakedBytes == 0)
      let live = try (0..<60).map { try rig.map($0) }
      #expect((0..<60).allSatisfy { rig.reaches($0) }, "\(n)")
      for mapping in live { try mapping.unmap() }
      try rig.close()
      if !hasFailed { return }
    }
    Issue.record("it takes more calls than that")
  }

  /// As long as nothing can be invalidated nobody gets an address where hardware may know of a table; maps elsewhere go on.
  @Test func noInvalidation() throws {
    let rig = try Rig()
    try rig.wander(500..<508)
    rig.kernel.failFrom(1, of: "hwptInvalidate", with: .inputOutput)
    var live = try (0..<10).map { try rig.map($0) }
    #expect(rig.kernel.hasFailed)
    #expect(throws: DMAError.self) { try rig.map(503, page: 1) }
    rig.kernel.passAll()
    live += try (500..<508).map { try rig.map($0, page: 1) }
    #expect((500..<508).allSatisfy { rig.reaches($0, page: 1) && !rig.reaches($0) })
    for mapping in live { try mapping.unmap() }
    try rig.close()
  }

  /// Where no more memory may be pinned, the tables that there are go round.
  @Test func noMoreMemory() throws {
    let rig = try Rig(), before = rig.dma.statistics.tableBytes
    rig.kernel.failFrom(1, of: "ioasMap", with: .noMemory)
    try rig.wander(0..<300)
    var live: [Live] = []
    while let mapping = try? rig.map(1000 + UInt64(live.count)) { live.append(mapping) }
    #expect(rig.kernel.hasFailed && live.count >= 5)
    // All but the one that has the context descriptor.
    let table = rig.dma.processOwned as! ProcessOwnedSMMU
    #expect(table.table.tableCount == Int(before) / 4096 - 1)
    // One that goes makes room for one more.
    for index in live.indices {
      try live[index].unmap()
      live[index] = try rig.map(900 + UInt64(index))
    }
    rig.kernel.passAll()
    #expect(rig.dma.statistics.tableBytes == before)
    for mapping in live { try mapping.unmap() }
    try rig.close()
  }

  /// A block that cannot take the place of an empty table, as the invalidation fails: pages there go by that table, which hardware
  /// knows, and the block comes when invalidations do.
  @Test(arguments: [0, 1]) func aBlockInItsPlace(_ machine: Int) throws {
    let rig = try Rig(Self.machines[machine]), region: UInt64 = 4, length = 2 << 20
    let base = unsafe try rig.kernel.mapMemory(byteCount: length, descriptor: -1, offset: 0)
    defer { unsafe rig.kernel.unmapMemory(base, byteCount: length) }
    let block = unsafe UnsafeRawBufferPointer(start: base, count: length)
    let registration = try unsafe rig.dma.register(unsafe: block)
    for page in 0..<3 as Range<UInt64> {
      let live = try rig.map(region, page: page)
      #expect(rig.reaches(region, page: page))
      try live.unmap()
    }
    rig.kernel.failFrom(1, of: "hwptInvalidate", with: .inputOutput)
    do throws(DMAError) {
      _ = try unsafe rig.dma.map(unsafe: block, .bidirectional, at: Rig.address(region))
      Issue.record("mapped")
    } catch { #expect(error.errno == .inputOutput) }
    rig.kernel.passAll()
    #expect(rig.dma.statistics.leakedBytes == 0 && rig.dma.statistics.failedMaps == 1)
    for page in 0..<4 as Range<UInt64> {
      let live = try rig.map(region, page: page)
      #expect(rig.reaches(region, page: page), "page \(page)")
      try live.unmap()
      #expect(!rig.reaches(region, page: page))
    }
    let mapping = try unsafe rig.dma.map(unsafe: block, .bidirectional, at: Rig.address(region))
    #expect(rig.reaches(region) && rig.reaches(region, page: 511))
    try mapping.unmap()
    #expect(!rig.reaches(region) && !rig.reaches(region, page: 511))
    try registration.unregister()
    try rig.close()
  }

  // MARK: - At once

  /// Threads that wander through the same regions, each at pages of its own.
  @Test(arguments: [0, 1]) func allAtOnce(_ machine: Int) async throws {
    let rig = try Rig(Self.machines[machine])
    let failures = await inThreads(4) { thread in
      for round in 0..<200 as Range<UInt64> {
        let region = (round * 7 + UInt64(thread) * 3) % 500
        let mapping = try rig.map(region, page: UInt64(thread))
        if round % 8 == 0, !rig.reaches(region, page: UInt64(thread)) { throw Errno.inputOutput }
        if thread == 0 { _ = try unsafe rig.dma.map(unsafe: rig.page.all, .toDevice).unmap() }
        try mapping.unmap()
      }
    }
    #expect(failures == [])
    #expect(rig.dma.statistics.tableBytes <= 256 << 10)
    #expect(rig.dma.statistics.leakedBytes == 0 && rig.dma.statistics.liveMappings == 0)
    try rig.close()
  }
}
