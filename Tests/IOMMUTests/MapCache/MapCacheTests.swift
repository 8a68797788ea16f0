import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Maps that outlive their unmap, on page tables of the kernel's.
@Suite struct MapCacheTests {
  typealias Tables = LazyTests.Tables

  /// Of a length that has a record, and of one that the store knows.
  @Test(arguments: Tables.kernelOwned, [5000, 3 << 20 - 5000])
  func aBufferIsMappedOnce(_ tables: Tables, _ byteCount: Int) throws {
    try Caching.withDomain(tables) { kernel, device, machine in
      let dma = device.dma, buffer = try RecurringBuffer(dma, byteCount: byteCount)
      kernel.resetCounts()
      var seen: Set<IOVA> = []
      for _ in 0..<100 { seen.insert(try buffer.use(dma)) }
      #expect(seen.count == 1)
      #expect(kernel.count(of: tables.mapCall) == 1 && kernel.count(of: tables.flushCall) == 0)
      #expect(machine.counters.invalidations == 0)
      var expected = DMAStatistics()
      (expected.maps, expected.unmaps, expected.systemCalls) = (100, 100, 1)
      (expected.cacheHits, expected.cacheMisses) = (99, 1)
      expected.cachedBytes = byteCount == 5000 ? 8192 : 3 << 20 - 4096
      expected.arenaBytes = dma.statistics.arenaBytes
      #expect(dma.statistics == expected)
      try dma.drain()
      #expect(kernel.count(of: tables.flushCall) == 1 && machine.counters.invalidations == 1)
      #expect(dma.statistics.cachedBytes == 0 && dma.statistics.systemCalls == 2)
      #expect(machine.kernel.census.pinnedBytes == 0)
      try Caching.mapPage(dma, at: seen.first!)
      _ = try buffer.use(dma)
      #expect(dma.statistics.cacheMisses == 2)
    }
  }

  /// The window: the device reaches what is kept, and nothing after a drain. The driver's own view ends with the unmap. Of
  /// lengths that have a record, also rounded up, and of one that the store knows.
  @Test(arguments: Tables.kernelOwned, [64, 3 * 4096, 3 << 20])
  func theWindow(_ tables: Tables, _ byteCount: Int) throws {
    try Caching.withDomain(tables) { kernel, device, machine in
      let dma = device.dma, buffer = try RecurringBuffer(dma, byteCount: byteCount), memory = buffer.place
      let pages = (byteCount + 4095) / 4096 * 4096
      let pointer = unsafe UnsafeRawPointer(bitPattern: memory)!
      // What is found of it in both directions, from the first byte to the last, and what is counted.
      func isFound(_ address: IOVA) -> Bool {
        let found = unsafe dma.translate(address, byteCount: pages)
        let back = unsafe dma.translate(pointer, byteCount: pages)
        unsafe #expect(dma.translate(address, byteCount: pages + 1) == nil)
        let statistics = dma.statistics
        let isLive = statistics.liveMappings == 1 && statistics.liveBytes == UInt64(pages)
        #expect(isLive || statistics.liveMappings == 0 && statistics.liveBytes == 0)
        #expect(statistics.cachedBytes == (isLive ? 0 : UInt64(pages)))
        #expect((UInt(bitPattern: found) == memory) == isLive && (back == address) == isLive)
        return isLive
      }
      var address: IOVA?
      for _ in 0..<3 {
        let mapping = try buffer.map(dma), start = mapping.address
        #expect(start == address ?? start)
        address = start
        #expect(isFound(start))
        buffer.take(try mapping.unmap())
        #expect(!isFound(start))
        #expect(try Caching.writes(start, device, machine))
      }
      let other = try RecurringBuffer(dma, byteCount: byteCount), another = try other.use(dma)
      #expect(another != address, "the address is taken")
      try dma.drain()
      #expect(try !Caching.writes(address!, device, machine))
      for free in [address!, another] { try Caching.mapPage(dma, at: free) }
    }
  }

  /// A device that does with a map what it does not allow: the fault has the mapping's name, that has it or had it.
  @Test func whatFaultsAreTold() throws {
    try Caching.withDomain(.ioas) { kernel, device, machine in
      let dma = device.dma, buffer = try RecurringBuffer(dma, byteCount: 8192)
      var ranges: Set<IOVARange> = []
      func fault(_ address: IOVA, _ isLive: Bool) throws {
        let range = IOVARange(start: address, byteCount: 8192)!
        ranges.insert(range)
        #expect(try !Caching.writes(address + 4096, device, machine))
        #expect(dma.faults.faults.last?.mapping == Fault.Mapping(range: range, isLive: isLive))
      }
      for _ in 0..<2 {
        let mapping = try buffer.map(dma, .toDevice), address = mapping.address
        try fault(address, true)
        buffer.take(try mapping.unmap())
        try fault(address, false)
      }
      #expect(ranges.count == 1)
    }
  }

  /// A map serves what asks for no more than it allows.
  @Test(arguments: Tables.kernelOwned)
  func access(_ tables: Tables) throws {
    try Caching.withDomain(tables) { kernel, device, machine in
      let dma = device.dma, buffer = try RecurringBuffer(dma)
      let first = try buffer.use(dma, .toDevice)
      #expect(try buffer.use(dma, .toDevice) == first)
      #expect(try !Caching.writes(first, device, machine))
      let second = try buffer.use(dma, .bidirectional)
      #expect(second != first && dma.statistics.cacheMisses == 2)
      // Both are kept. What was found with more access than was asked for keeps it for the next.
      for direction in [DMADirection.fromDevice, .bidirectional, .fromDevice, .bidirectional] {
        #expect(try buffer.use(dma, direction) == second)
      }
      #expect(dma.statistics.cacheMisses == 2 && dma.statistics.cachedBytes == 8192)
      // Both go before the memory does.
      buffer.drop()
      #expect(dma.statistics.cachedBytes == 0 && machine.kernel.census.pinnedBytes == 0)
    }
  }

  /// A map above what the address policy tries first, or above a mask that was set since, is not found.
  @Test func addressesBelowTheLimit() throws {
    try Caching.withDomain(.ioas) { kernel, device, machine in
      let dma = device.dma, buffer = try RecurringBuffer(dma)
      dma.setAddressPolicy(.full)
      #expect(try buffer.use(dma).rawValue > 1 << 40)
      dma.setAddressPolicy(.sacFirst)
      #expect(try buffer.use(dma).rawValue < 1 << 32)
      try dma.setMask(.bits(20))
      let low = try buffer.use(dma)
      #expect(low.rawValue < 1 << 20 && dma.statistics.cacheMisses == 3)
      #expect(try buffer.use(dma) == low)
      #expect(dma.statistics.addressPolicyTrips == 0)
      // A device that gets high addresses gets no others: one that cannot drive their bits fails with the first.
      try dma.setMask(.bits(64))
      dma.setAddressPolicy(.full)
      #expect(try buffer.use(dma).rawValue > 1 << 40)
      #expect(dma.statistics.cacheHits == 2 && dma.statistics.cacheMisses == 3)
    }
  }

  /// What was not used for longest goes first, where room is short.
  @Test(arguments: Tables.kernelOwned)
  func leastRecentlyUsedGoesFirst(_ tables: Tables) throws {
    try Caching.withDomain(tables, Caching.options(3 * 4096)) { kernel, device, machine in
      let dma = device.dma, buffers = try (0..<4).map { _ in try RecurringBuffer(dma) }
      for buffer in buffers[..<3] { _ = try buffer.use(dma) }
      _ = try buffers[0].use(dma)
      #expect(dma.statistics.cacheHits == 1 && dma.statistics.cachedBytes == 3 * 4096)
      _ = try buffers[3].use(dma)  // the second has to go
      #expect(dma.statistics.cachedBytes == 3 * 4096 && kernel.count(of: tables.flushCall) == 1)
      for index in [2, 0, 3] { _ = try buffers[index].use(dma) }
      #expect(dma.statistics.cacheHits == 4 && dma.statistics.cacheMisses == 4)
      _ = try buffers[1].use(dma)
      #expect(dma.statistics.cacheMisses == 5, "the second was gone, and the third is now")
      // A longer one takes the place of two; what is longer than all of it is not kept, and nobody goes for it.
      let two = try RecurringBuffer(dma, byteCount: 8192), four = try RecurringBuffer(dma, byteCount: 4 * 4096)
      _ = try two.use(dma)
      let calls = kernel.count(of: tables.flushCall)
      _ = try four.use(dma)
      #expect(dma.statistics.cachedBytes == 3 * 4096 && kernel.count(of: tables.flushCall) == calls + 1)
      _ = try two.use(dma)
      #expect(dma.statistics.cacheHits == 5)
    }
  }

  /// Room for a long buffer is made by at most 16 calls, so that no unmap takes much longer than another.
  @Test func makingRoomIsBounded() throws {
    try Caching.withDomain(.ioas, Caching.options(40 * 4096)) { kernel, device, machine in
      let dma = device.dma, buffers = try (0..<40).map { _ in try RecurringBuffer(dma) }
      for buffer in buffers { _ = try buffer.use(dma) }
      let long = try RecurringBuffer(dma, byteCount: 30 * 4096)
      kernel.resetCounts()
      _ = try long.use(dma)
      #expect(kernel.count(of: "ioasUnmap") == 17, "16 for room, which is not enough, and its own")
      #expect(dma.statistics.cachedBytes == 24 * 4096)
      _ = try long.use(dma)
      #expect(dma.statistics.cachedBytes == 40 * 4096, "now it was: 30 pages, and the 10 used last")
      _ = try buffers[30].use(dma)
      #expect(dma.statistics.cacheHits == 1)
    }
  }

  /// Lists, links and memory of the caller's are unmapped at once, and so is a mapping that is dropped.
  @Test(arguments: Tables.kernelOwned)
  func whatIsNotKept(_ tables: Tables) throws {
    try Caching.withDomain(tables) { kernel, device, machine in
      let dma = device.dma
      let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
      defer { unsafe page.deallocate() }
      try unsafe dma.map(unsafe: UnsafeRawBufferPointer(page), .toDevice).unmap()
      var list = ScatterList()
      for _ in 0..<3 { list.append(try dma.buffer(byteCount: 4096)) }
      _ = try dma.map(list, .toDevice).unmap()
      var reservation = try dma.reserve(byteCount: 4096)
      try reservation.link(try dma.buffer(byteCount: 64), at: 0, .toDevice)
      _ = try reservation.destroy()
      do { _ = try dma.map(try dma.buffer(byteCount: 64), .toDevice) }
      #expect(dma.statistics.cachedBytes == 0 && machine.kernel.census.pinnedBytes == 0)
      #expect(dma.statistics.maps == dma.statistics.unmaps && dma.statistics.cacheHits == 0)
    }
  }

  /// What was mapped before the switch is kept after it, with the access that it has.
  @Test func mappedBeforeTheSwitch() throws {
    try Caching.withDomain(.ioas) { kernel, device, machine in
      let dma = device.dma, buffer = try RecurringBuffer(dma)
      try dma.switchProtection(to: .strict)
      let mapping = try buffer.map(dma, .toDevice), address = mapping.address
      try dma.switchProtection(to: .automatic(Caching.options()))
      buffer.take(try mapping.unmap())
      #expect(try buffer.use(dma, .toDevice) == address)
      #expect(try buffer.use(dma, .bidirectional) != address)
    }
  }

  /// Nothing is kept in no bytes; a negative length is refused.
  @Test func lengths() throws {
    try Caching.withDomain(.ioas, Caching.options(0)) { kernel, device, machine in
      let dma = device.dma, buffer = try RecurringBuffer(dma)
      for _ in 0..<3 { _ = try buffer.use(dma) }
      #expect(dma.statistics.cachedBytes == 0 && kernel.count(of: "ioasUnmap") == 3)
      #expect { try dma.switchProtection(to: .automatic(Caching.options(-1))) } throws: {
        ($0 as? DMAError)?.code == .invalidArgument
      }
      #expect(dma.protection == .automatic(Caching.options(0)))
    }
  }
}
