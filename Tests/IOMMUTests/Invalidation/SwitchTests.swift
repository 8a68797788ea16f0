import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Synchronization
import Testing

/// Changing the protection at run time.
@Suite struct SwitchTests {
  private static let all: [Protection] = [
    .strict, .lazy(.perCPU), .lazy(.single), .lazy(FlushQueueOptions(.perCPU, depth: 8, timeout: .milliseconds(1))),
    .lazy(FlushQueueOptions(.single, depth: 1000, timeout: .seconds(2))), .persistent, .bounce,
    .automatic, .automatic(Caching.options()),
  ]

  private static func mapAndUnmap(_ dma: DMADomain) throws {
    _ = try dma.map(try dma.buffer(byteCount: 64), .bidirectional).unmap()
  }

  /// From each to each: the new one is what was asked for, and nothing of the old one is left.
  @Test(arguments: LazyTests.Tables.allCases)
  func fromEachToEach(_ tables: LazyTests.Tables) throws {
    try LazyTests.withDomain(tables, nil) { kernel, dma, machine in
      #expect(dma.protection == .strict)
      for old in Self.all {
        for new in Self.all {
          try dma.switchProtection(to: old)
          let buffer = try RecurringBuffer(dma)
          for _ in 0..<5 { _ = try buffer.use(dma) }
          try dma.switchProtection(to: new)
          #expect(dma.protection == new)
          #expect(dma.statistics.queuedBytes == 0 && dma.statistics.cachedBytes == 0, "the switch has flushed")
          try dma.drain()
          let before = dma.statistics
          for _ in 0..<7 { _ = try buffer.use(dma) }
          let after = dma.statistics
          // On tables of the kernel's a cheap invalidation is not put off.
          let isStrict = [.strict, .persistent, .bounce].contains(new) || (new == .automatic && tables != .process)
          let isCached = new == .automatic(Caching.options()) && tables != .process
          #expect((after.cachedBytes > 0) == isCached)
          #expect((after.queuedBytes == 0) == (isStrict || isCached) || before.flushes < after.flushes)
        }
      }
    }
  }

  /// Mappings that were made under one protection end under another as they have to, whichever it is.
  @Test(arguments: LazyTests.Tables.allCases, [Protection.strict, .lazy(.single), .persistent, .bounce])
  func mappingsOutliveTheSwitch(_ tables: LazyTests.Tables, _ old: Protection) throws {
    let rig = try StandingRig(tables), dma = rig.dma
    for new in [Protection.strict, .lazy(.perCPU), .persistent, .bounce] {
      try dma.switchProtection(to: old)
      let pages = Pages(1, filledWith: 0x11)
      let buffer = try dma.map(try dma.buffer(byteCount: 64), .bidirectional), first = buffer.address
      let foreign = try unsafe dma.map(unsafe: pages.all, .bidirectional), second = foreign.address
      var list = ScatterList()
      for _ in 0..<2 { list.append(try dma.buffer(byteCount: 4096)) }
      let mapped = try dma.map(list, .bidirectional), third = mapped.address(ofBufferAt: 1)
      let dropped = try dma.map(try dma.buffer(byteCount: 64), .bidirectional)
      // One of each waits in the queue of a lazy mode.
      try Self.mapAndUnmap(dma)
      try dma.switchProtection(to: new)
      #expect(try rig.writes(first) && rig.writes(second) && rig.writes(third), "\(new): live mappings stay")
      pages[0] = 0x22
      _ = consume dropped
      let memory = try buffer.unmap(), isBounced = old == .bounce
      try foreign.unmap()
      list = try mapped.unmap()
      #expect(pages[0] == (isBounced ? 0 : 0x22), "\(new): a copy comes back, and only a copy")
      try dma.drain()
      let statistics = dma.statistics
      #expect(statistics.liveMappings == 0 && statistics.liveBytes == 0 && statistics.queuedBytes == 0)
      #expect(statistics.maps == statistics.unmaps && statistics.leakedBytes == 0)
      #expect((statistics.persistentBytes > 0) == (new == .persistent))
      for (address, isKept) in [(first, old == .persistent), (second, false), (third, false)] {
        let isInReach = isBounced || (isKept && new == .persistent)
        #expect(try rig.writes(address) == isInReach, "\(new): \(address)")
      }
      _ = consume memory
    }
    rig.device.close()
  }

  /// The depth is the argument's, not the old queue's: 8 entries take 7, 1,000 are rounded up to 1,024.
  @Test func theDepthIsTheArguments() throws {
    try LazyTests.withDomain(.process, .single) { kernel, dma, machine in
      let patient = Duration.seconds(1000)
      for (depth, room) in [(8, 7), (1000, 1023), (2, 1)] {
        try dma.switchProtection(to: .lazy(FlushQueueOptions(.single, depth: depth, timeout: patient)))
        let before = dma.statistics.flushes
        for _ in 0..<room { try Self.mapAndUnmap(dma) }
        #expect(dma.statistics.flushes == before)
        try Self.mapAndUnmap(dma)
        #expect(dma.statistics.flushes == before + 1)
      }
    }
  }

  /// Without memory for the queue, or with a depth that makes no sense, everything stays as it was.
  @Test(arguments: all)
  func aSwitchThatCannotBeChangesNothing(_ old: Protection) throws {
    try LazyTests.withDomain(.process, nil) { kernel, dma, machine in
      try dma.switchProtection(to: old)
      kernel.fail(1, of: "mapMemory", with: .noMemory)
      #expect { try dma.switchProtection(to: .lazy(.single)) } throws: { ($0 as? DMAError)?.code == .outOfMemory }
      kernel.passAll()
      for depth in [-1, 0, 1, 1 << 40] {
        #expect { try dma.switchProtection(to: .lazy(FlushQueueOptions(.perCPU, depth: depth))) } throws: {
          ($0 as? DMAError)?.code == .invalidArgument
        }
      }
      #expect(dma.protection == old)
      try Self.mapAndUnmap(dma)
    }
  }

  /// The flush before the switch is refused: the old queue goes on.
  @Test(arguments: LazyTests.Tables.allCases)
  func aFlushThatFailsKeepsTheOldMode(_ tables: LazyTests.Tables) throws {
    let old = Protection.lazy(FlushQueueOptions(.single, depth: 64, timeout: .seconds(1000)))
    try LazyTests.withDomain(tables, nil) { kernel, dma, machine in
      try dma.switchProtection(to: old)
      try Self.mapAndUnmap(dma)
      kernel.fail(1, of: tables.flushCall, with: .inputOutput)
      #expect(throws: DMAError.self) { try dma.switchProtection(to: .strict) }
      kernel.passAll()
      #expect(dma.protection == old && dma.statistics.queuedBytes == 4096)
      try Self.mapAndUnmap(dma)
      #expect(dma.statistics.queuedBytes == 8192, "still lazy")
      try dma.switchProtection(to: .strict)
      #expect(dma.statistics.queuedBytes == 0)
    }
  }

  @Test func closedDomainsDoNotSwitch() throws {
    let machine = SimulatedHost(devices: [LazyTests.address: EduModel()])
    do {
      let device = try Device(LazyTests.address, on: machine.host)
      try device.dma.switchProtection(to: .lazy(.perCPU))
      try Self.mapAndUnmap(device.dma)
      device.close()
      #expect { try device.dma.switchProtection(to: .strict) } throws: { ($0 as? DMAError)?.code == .closed }
      try device.dma.drain()
      #expect(device.dma.statistics.queuedBytes == 0)
    }
    #expect(machine.isClean)
  }

  /// Opening a queue of 2²⁰ entries touches none of their pages.
  @Test func aLargeQueueTakesNoMemoryBeforeItIsUsed() throws {
    try LazyTests.withDomain(.process, nil) { kernel, dma, machine in
      func faults() -> Int {
        var usage = rusage()
        unsafe getrusage(1, &usage)  // RUSAGE_THREAD, which needs _GNU_SOURCE
        return usage.ru_minflt
      }
      let before = faults()
      try dma.switchProtection(to: .lazy(FlushQueueOptions(.single, depth: 1 << 20)))
      #expect(faults() - before < 1000)
    }
  }

  /// Threads map and unmap while the protection changes all the time: nothing is lost, nothing is given out twice.
  @Test(arguments: LazyTests.Tables.allCases)
  func switchingUnderLoad(_ tables: LazyTests.Tables) async throws {
    let machine = SimulatedHost(devices: [LazyTests.address: EduModel(addressBits: 64)])
    try await Self.load(machine, tables)
    #expect(machine.isClean)
  }

  private static func mapList(_ dma: DMADomain) throws {
    var list = ScatterList()
    for _ in 0..<4 { list.append(try dma.buffer(byteCount: 4096)) }
    let mapped = try dma.map(list, .bidirectional)
    list = try mapped.unmap()
    _ = list.removeLast()
  }

  private static func load(_ machine: SimulatedHost, _ tables: LazyTests.Tables) async throws {
    let device = try Device(
      LazyTests.address, on: machine.host, interface: tables.interface, translation: tables.choice)
    let dma = device.dma
    let isDone = Atomic<Bool>(false)
    let failures = await inThreads(4) { number in
      if number == 3 {
        defer { isDone.store(true, ordering: .relaxed) }
        for index in 0..<60 {
          try dma.switchProtection(to: all[index % all.count])
          usleep(2_000)
        }
      }
      while !isDone.load(ordering: .relaxed) {
        var buffer = try dma.buffer(byteCount: 4096 * (number + 1))
        buffer.store(UInt64(number), at: 0)
        let mapping = try dma.map(buffer, .bidirectional)
        #expect(unsafe dma.translate(mapping.address)?.load(as: UInt64.self) == UInt64(number))
        if number == 1 { _ = consume mapping } else { _ = try mapping.unmap() }
        if number == 2 { try mapList(dma) }
      }
    }
    #expect(failures == [])
    try dma.switchProtection(to: .strict)
    let statistics = dma.statistics
    #expect(statistics.maps == statistics.unmaps && statistics.maps > 100)
    #expect(statistics.queuedBytes == 0 && statistics.leakedBytes == 0 && statistics.liveBytes == 0)
    // Tables of the process have the arena registered.
    let pinned = tables == .process ? statistics.arenaBytes : statistics.coherentArenaBytes
    #expect(machine.kernel.census.pinnedBytes == pinned && statistics.persistentBytes == 0)
    device.close()
  }
}
