import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// The buffer arena mapped once for all.
@Suite struct PersistentTests {
  /// A map and an unmap of a buffer are no call of the kernel, whoever owns the tables; the device reaches it throughout.
  @Test(arguments: LazyTests.Tables.allCases)
  func aPairIsArithmetic(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables, .vtd, .persistent), dma = rig.dma
    let other = try dma.buffer(byteCount: 100)
    var buffer = try dma.buffer(byteCount: 5000)
    let memory = StandingRig.memory(of: buffer)
    var addresses: Set<IOVA> = []
    let before = dma.statistics
    rig.kernel.resetCounts()
    for _ in 0..<100 {
      let mapping = try dma.map(buffer, .toDevice)
      addresses.insert(mapping.address)
      let host = unsafe UInt(bitPattern: dma.translate(mapping.address, byteCount: 5000))
      #expect(host == memory)
      buffer = try mapping.unmap()
    }
    #expect(rig.calls == 0 && addresses.count == 1)
    let after = dma.statistics
    #expect(after.maps == before.maps + 100 && after.unmaps == before.unmaps + 100)
    #expect(after.systemCalls == before.systemCalls && after.invalidations == before.invalidations)
    #expect(after.persistentBytes == 256 << 10 && after.persistentBytes == after.arenaBytes)
    let second = try dma.map(other, .fromDevice), first = addresses.first!
    #expect(dma.statistics.liveMappings == 1 && dma.statistics.liveBytes == 100)
    #expect(second.address != first)
    let isReached = try (rig.writes(second.address), rig.writes(first))
    #expect(isReached == (true, true), "mapped or not")
    _ = consume second
    #expect(dma.statistics.liveMappings == 0 && dma.statistics.liveBytes == 0)
    rig.device.close()
  }

  /// A chunk is one long-lived map in capped areas; a buffer in each of several chunks lies where its memory does.
  @Test(arguments: LazyTests.Tables.allCases)
  func chunksAreMappedOnce(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables), dma = rig.dma
    let before = try dma.buffer(byteCount: 64)  // its chunk is there before the switch
    #expect(dma.statistics.persistentBytes == 0)
    try dma.switchProtection(to: .persistent)
    let areas = dma.statistics.arenaAreas
    #expect(areas == 1 && dma.statistics.persistentBytes == 256 << 10)
    var hosts: Set<UInt> = []
    func map(_ buffer: consuming DMABuffer) throws -> Mapping {
      hosts.insert(StandingRig.memory(of: buffer))
      return try dma.map(buffer, .bidirectional)
    }
    let first = try map(before)
    rig.kernel.fail(1, of: "createMemoryFile", with: .noMemory)  // no huge pages, where there are any
    let large = try map(try dma.buffer(byteCount: 40 << 20)), small = try map(try dma.buffer(byteCount: 1 << 20))
    let mappings = [first.address, large.address, small.address]
    #expect(hosts.count == 3 && Set(mappings).count == 3)
    for address in mappings {
      let host = unsafe UInt(bitPattern: dma.translate(address))
      #expect(hosts.contains(host))
      #expect(try rig.writes(address))
    }
    #expect(try rig.writes(large.address + (40 << 20 - 8)))
    #expect(dma.statistics.persistentBytes == dma.statistics.arenaBytes)
    #expect(dma.statistics.arenaAreas - areas == 3, "two for what is longer than 32 MiB")
    rig.device.close()
  }

  /// Without mappings a switch away takes everything out of reach; with one its chunk stays until that ends, and no new
  /// buffer is made of it.
  @Test(arguments: LazyTests.Tables.allCases, [Protection.strict, .lazy(.single), .bounce])
  func switchingAway(_ tables: LazyTests.Tables, _ next: Protection) throws {
    let rig = try StandingRig(tables, .vtd, .persistent), dma = rig.dma
    let pinned = { tables == .process ? dma.statistics.arenaBytes : dma.statistics.coherentArenaBytes }
    let once = try dma.map(try dma.buffer(byteCount: 64), .fromDevice), address = once.address
    var kept = try once.unmap()
    #expect(try rig.writes(address))
    try dma.switchProtection(to: next)
    #expect(dma.statistics.persistentBytes == 0 && rig.machine.kernel.census.pinnedBytes == pinned())
    #expect(try !rig.writes(address))

    try dma.switchProtection(to: .persistent)
    let live = try dma.map(kept, .fromDevice), again = live.address
    let memory = unsafe UInt(bitPattern: dma.translate(again))
    try dma.switchProtection(to: next)
    #expect(dma.statistics.persistentBytes == 256 << 10 && dma.protection == next)
    #expect(try rig.writes(again), "a mapping that is live stays so")
    let strict = try dma.buffer(byteCount: 64)
    let other = StandingRig.memory(of: strict)
    #expect(other < memory - memory % 4096 || other >= memory + 256 << 10, "not of the chunk in reach")
    let calls = rig.kernel.count(of: tables.flushCall)
    kept = try live.unmap()
    #expect(rig.kernel.count(of: tables.flushCall) == calls + 1, "the last takes the chunk with it")
    #expect(dma.statistics.persistentBytes == 0)
    #expect(try !rig.writes(again))
    _ = consume kept
    let third = try dma.buffer(byteCount: 64)
    let place = StandingRig.memory(of: third)
    #expect(place == memory, "free for new buffers")
    rig.device.close()
  }

  /// What is not a single buffer is mapped as with strict.
  @Test(arguments: LazyTests.Tables.allCases)
  func theRestIsStrict(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables, .vtd, .persistent), dma = rig.dma, pages = Pages(2)
    var list = ScatterList()
    for _ in 0..<3 { list.append(try dma.buffer(byteCount: 4096)) }
    let mapped = try dma.map(list, .bidirectional), address = mapped.address
    _ = try mapped.unmap()
    #expect(try !rig.writes(address))
    let foreign = try unsafe dma.map(unsafe: pages.all, .fromDevice), second = foreign.address
    #expect(try rig.writes(second))
    try foreign.unmap()
    #expect(try !rig.writes(second))
    let fixed = try unsafe dma.map(unsafe: pages.all, .fromDevice, at: IOVA(0x10_0000))
    #expect(fixed.address == IOVA(0x10_0000))
    try fixed.unmap()
    rig.device.close()
  }

  /// In a domain of two devices a chunk above one's mask is of no use to it: its buffers are mapped one by one.
  @Test(arguments: Interface.allCases)
  func theMaskIsKept(_ interface: Interface) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(), "0000:00:03.0": EduModel()])
    do {
      let wide = try Device("0000:00:02.0", on: machine.host, interface: interface)
      let narrow = try Device("0000:00:03.0", on: machine.host, sharing: wide.dma)
      try narrow.dma.setMask(.bits(28))
      try wide.dma.switchProtection(to: .persistent)
      let first = try wide.dma.map(try wide.dma.buffer(byteCount: 64), .toDevice)
      let calls = wide.dma.statistics.systemCalls
      #expect(first.address.rawValue >= 1 << 28)
      let second = try narrow.dma.map(try narrow.dma.buffer(byteCount: 64), .toDevice)
      #expect(second.address.rawValue < 1 << 28)
      #expect(narrow.dma.statistics.systemCalls == calls + (interface == .iommufd ? 0 : 1))
      narrow.close()
      #expect { try wide.dma.setMask(.bits(28)) } throws: { ($0 as? DMAError)?.code == .outsideMask }
      wide.close()
    }
    #expect(machine.isClean)
  }

  /// Memory that cannot be locked: the switch throws and changes nothing; and so does the buffer that takes more.
  @Test(arguments: LazyTests.Tables.kernelOwned)
  func memoryThatCannotBeLocked(_ tables: LazyTests.Tables) throws {
    var machine = SimulatedMachine.vtd
    (machine.memoryLockLimit, machine.canLockMemory) = (300 << 10, false)
    var machines: [SimulatedHost] = []
    do {
      let rig = try StandingRig(tables, machine), dma = rig.dma
      machines.append(rig.machine)
      let many = try dma.buffer(byteCount: 200 << 10), more = try dma.buffer(byteCount: 200 << 10)
      #expect { try dma.switchProtection(to: .persistent) } throws: { ($0 as? DMAError)?.code == .memoryLock }
      #expect(dma.protection == .strict && dma.statistics.persistentBytes == 0)
      _ = try dma.buffer(byteCount: 600 << 10)  // of a new chunk, which is not mapped
      #expect(rig.machine.kernel.census.pinnedBytes == 0)
      _ = try dma.map(many, .toDevice).unmap()
      _ = try dma.map(more, .toDevice).unmap()
      rig.device.close()
    }
    do {
      let second = try StandingRig(tables, machine, .persistent)
      machines.append(second.machine)
      let first = try second.dma.buffer(byteCount: 200 << 10)
      #expect { _ = try second.dma.buffer(byteCount: 200 << 10) } throws: { ($0 as? DMAError)?.code == .memoryLock }
      #expect(second.dma.statistics.persistentBytes == second.dma.statistics.arenaBytes)
      _ = try second.dma.map(first, .toDevice).unmap()
      second.device.close()
    }
    let areClean = machines.allSatisfy { $0.isClean }
    #expect(areClean)
  }

  /// The kernel will not unmap: the switch throws, the protection stays, and the next switch goes on where that stopped.
  @Test(arguments: LazyTests.Tables.allCases)
  func aSwitchAwayThatFails(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables, .vtd, .persistent), dma = rig.dma
    rig.kernel.fail(1, of: "createMemoryFile", with: .noMemory)  // no huge pages, where there are any
    let large = try dma.map(try dma.buffer(byteCount: 40 << 20), .bidirectional)
    var buffer = try large.unmap()
    rig.kernel.resetCounts()
    rig.kernel.fail(2, of: tables.flushCall, with: .inputOutput)
    #expect { try dma.switchProtection(to: .strict) } throws: { ($0 as? DMAError)?.errno == .inputOutput }
    #expect(dma.protection == .persistent && dma.statistics.persistentBytes == 40 << 20)
    _ = try dma.buffer(byteCount: 1 << 20)  // of a new chunk, which is
    #expect(dma.statistics.persistentBytes > 40 << 20)
    let mapping = try dma.map(buffer, .bidirectional)
    #expect(try rig.writes(mapping.address), "by a map of its own")
    buffer = try mapping.unmap()
    try dma.switchProtection(to: .persistent)
    rig.kernel.resetCounts()
    buffer = try dma.map(buffer, .bidirectional).unmap()
    #expect(rig.calls == 0, "whole again")
    try dma.switchProtection(to: .strict)
    #expect(dma.statistics.persistentBytes == 0 && dma.statistics.leakedBytes == 0)
    _ = consume buffer
    rig.device.close()
  }

  /// The unmap that takes a chunk with it is none of the mapping's failures; the chunk stays out of use until a drain.
  @Test(arguments: LazyTests.Tables.allCases)
  func aChunkThatDoesNotGo(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables, .vtd, .persistent), dma = rig.dma
    let live = try dma.map(try dma.buffer(byteCount: 64), .bidirectional), address = live.address
    try dma.switchProtection(to: .strict)
    rig.kernel.failFrom(1, of: tables.flushCall, with: .inputOutput)
    let buffer = try live.unmap()
    let memory = StandingRig.memory(of: buffer)
    _ = consume buffer
    #expect(dma.statistics.persistentBytes == 256 << 10 && dma.statistics.leakedBytes == 0)
    #expect { try dma.drain() } throws: { ($0 as? DMAError)?.errno == .inputOutput }
    let other = try dma.buffer(byteCount: 64)
    let place = StandingRig.memory(of: other)
    #expect(place != memory)
    rig.kernel.passAll()
    try dma.drain()
    #expect(dma.statistics.persistentBytes == 0)
    #expect(try !rig.writes(address))
    rig.device.close()
  }

  /// Mappings outlive the device, and what is unmapped then costs no call.
  @Test(arguments: LazyTests.Tables.allCases)
  func closing(_ tables: LazyTests.Tables) throws {
    let rig = try StandingRig(tables, .vtd, .persistent)
    do {
      let mapping = try rig.dma.map(try rig.dma.buffer(byteCount: 64), .toDevice)
      var second: DMABuffer? = try rig.dma.buffer(byteCount: 64)
      rig.device.close()
      let code = StandingRig.code { _ = try rig.dma.map(second.take()!, .toDevice) }
      #expect(code == .closed)
      rig.kernel.resetCounts()
      _ = try mapping.unmap()
      #expect(rig.calls == 0)
    }
  }
}
