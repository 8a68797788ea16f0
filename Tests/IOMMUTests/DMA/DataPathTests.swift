import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Small mappings, whose addresses are cached by processor and whose records need no lock.
@Suite struct DataPathTests {
  private static let addresses = ["0000:00:02.0", "0000:00:03.0"]

  private func withDomain(
    _ tables: LazyTests.Tables = .ioas, lazy: Bool = false, _ body: (DMADomain, SimulatedHost) throws -> Void
  ) throws {
    try LazyTests.withDomain(tables, lazy ? FlushQueueOptions(.perCPU, timeout: LazyTests.patient) : nil) {
      _, dma, machine in try body(dma, machine)
    }
  }

  /// Memory of the test's own, whole pages.
  private static func withPages(_ count: Int, _ body: (UnsafeRawBufferPointer) throws -> Void) rethrows {
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: count * 4096, alignment: 4096)
    defer { unsafe memory.deallocate() }
    try unsafe body(UnsafeRawBufferPointer(memory))
  }

  /// A length is rounded up for its address, and for nothing else.
  @Test func theRestOfARangeIsNotMapped() throws {
    try withDomain { dma, _ in
      for pages in [1, 2, 3, 5, 300, 512] {
        let mapping = try dma.map(try dma.buffer(byteCount: pages * 4096 - 7), .toDevice)
        let start = mapping.address, end = start + pages * 4096
        #expect(start.rawValue & (PageSize(fitting: UInt64(pages) * 4096)!.byteCount - 1) == 0)
        let base = unsafe dma.translate(start, byteCount: pages * 4096)!
        unsafe #expect(dma.translate(end - 1) == base + (pages * 4096 - 1))
        unsafe #expect(dma.translate(end) == nil && dma.translate(end - 1, byteCount: 2) == nil)
        unsafe #expect(dma.translate(start - 1, byteCount: 2) == nil)
        #expect(dma.statistics.liveBytes == UInt64(pages) * 4096 && dma.statistics.liveMappings == 1)
        _ = try mapping.unmap()
        unsafe #expect(dma.translate(start) == nil)
        #expect(dma.statistics.liveBytes == 0 && dma.statistics.liveMappings == 0)
      }
    }
  }

  /// What is cached is in nobody's way: a fixed address, a lower mask, a device that can reach less.
  @Test(arguments: [false, true])
  func cachedAddressesMakeRoom(_ isLazy: Bool) throws {
    try withDomain(.process, lazy: isLazy) { dma, _ in
      dma.setAddressPolicy(.full)
      let address = try LazyTests.mapAndUnmap(dma)
      try unsafe Self.withPages(1) { page in
        let mapping = try unsafe dma.map(unsafe: page, .toDevice, at: address)
        #expect(mapping.address == address)
        try mapping.unmap()
        #expect(try LazyTests.mapAndUnmap(dma).rawValue > 1 << 47)
        try dma.setMask(.bits(30))
        let low = try unsafe dma.map(unsafe: page, .toDevice)
        let error = #expect(throws: DMAError.self) { try dma.setMask(.bits(29)) }
        #expect(error?.code == .outsideMask && error?.address == low.address.rawValue && error?.byteCount == 4096)
        try low.unmap()
        try dma.setMask(.bits(29))
        #expect(try LazyTests.mapAndUnmap(dma).rawValue == 1 << 29 - 4096)
      }
      try dma.setMask(.bits(40))
      #expect(try LazyTests.mapAndUnmap(dma).rawValue == 1 << 40 - 4096, "the highest of the new mask")
    }
  }

  /// The error names what is mapped, not what its address was rounded up to; all of a full space counts as mapped.
  @Test func aFixedAddressThatIsMapped() throws {
    try withDomain { dma, _ in
      try dma.setMask(.bits(14))  // three pages: page 0 is never given out
      let mapping = try dma.map(try dma.buffer(byteCount: 1), .toDevice), other = try LazyTests.mapAndUnmap(dma)
      try unsafe Self.withPages(1) { page in
        let error = #expect(throws: DMAError.self) {
          _ = try unsafe dma.map(unsafe: page, .toDevice, at: mapping.address)
        }
        #expect(error?.code == .overlap && error?.detail?.contains("\(mapping.address)") == true)
        let fixed = try unsafe dma.map(unsafe: page, .toDevice, at: other)
        unsafe #expect(dma.translate(other) == UnsafeMutableRawPointer(mutating: page.baseAddress))
        try fixed.unmap()
      }
      _ = try mapping.unmap()
    }
  }

  /// Memory for a record runs out: the map fails, typed, and leaves nothing behind; the buffer comes back.
  @Test(arguments: LazyTests.Tables.allCases, [false, true])
  func noMemoryForARecord(_ tables: LazyTests.Tables, _ isLazy: Bool) throws {
    try withDomain(tables, lazy: isLazy) { dma, machine in
      for nodes in 0..<3 {
        dma.limitRecords(toNodes: nodes == 0 ? 0 : 1)
        switch dma.tryMap(try dma.buffer(byteCount: 64), .toDevice) {
        case .mapped: Issue.record("there was no memory")
        case .failed(_, let error): #expect(error.code == .outOfMemory && error.device == LazyTests.address)
        }
      }
      var expected = DMAStatistics()
      (expected.failedMaps, expected.arenaBytes) = (3, dma.statistics.arenaBytes)
      let statistics = dma.statistics
      (expected.systemCalls, expected.maps) = (statistics.systemCalls, 0)
      #expect(statistics == expected)
      dma.limitRecords(toNodes: .max)
      #expect(try LazyTests.mapAndUnmap(dma).rawValue == 1 << 32 - 4096, "the first address is still to be had")
    }
  }

  /// Parts of one area that were mapped in one go can be unmapped by areas.
  @Test func unmapBulkOfASmallMapping() throws {
    try withDomain { dma, _ in
      try unsafe Self.withPages(3) { pages in
        let mapping = try unsafe dma.map(unsafe: pages, .toDevice), address = mapping.address
        guard let rest = try mapping.unmapBulk(isCancelled: { true }) else {
          Issue.record("it went to the end")
          return
        }
        #expect(rest.byteCount == 3 * 4096 && dma.statistics.liveBytes == 3 * 4096)
        unsafe #expect(dma.translate(address) != nil)
        guard try rest.unmapBulk() == nil else {
          Issue.record("something is left")
          return
        }
        unsafe #expect(dma.translate(address) == nil)
        #expect(dma.statistics.liveBytes == 0 && dma.statistics.unmaps == 1)
        let again = try unsafe dma.map(unsafe: pages, .toDevice)
        #expect(again.address == address, "free again")
        try again.unmap()
      }
    }
  }

  /// Each thread finds what it has mapped, in both directions, and no longer after the unmap; all ends even.
  @Test(arguments: LazyTests.Tables.allCases, [false, true])
  func threadsFindTheirOwn(_ tables: LazyTests.Tables, _ isLazy: Bool) async throws {
    let machine = SimulatedHost(devices: [Self.addresses[0]: EduModel(addressBits: 64)])
    let device = try Device(
      Self.addresses[0], on: machine.host, interface: tables.interface, translation: tables.choice)
    let dma = device.dma
    if isLazy { try dma.switchProtection(to: .lazy(FlushQueueOptions(.perCPU, depth: 32, timeout: .milliseconds(1)))) }
    let failures = await inThreads(4) { thread in
      for round in 0..<300 {
        let byteCount = 4096 << ((round + thread) % 4)
        let buffer = try dma.buffer(byteCount: byteCount), start = TranslateTests.start(buffer)
        let mapping = try dma.map(buffer, .toDevice), address = mapping.address
        let interior = (round * 977) % byteCount
        let pointer = unsafe UnsafeRawPointer(bitPattern: start)!
        try check(unsafe dma.translate(address + interior) == UnsafeMutableRawPointer(mutating: pointer + interior))
        // The first question comes while others map.
        if round > 100 { try check(unsafe dma.translate(pointer + interior) == address + interior) }
        try check(dma.statistics.liveMappings >= 1)
        let back = try mapping.unmap()
        if round > 100 { try check(unsafe dma.translate(pointer) == nil) }
        _ = consume back
      }
    }
    #expect(failures.isEmpty)
    try dma.drain()
    let statistics = dma.statistics
    #expect(statistics.maps == 1200 && statistics.unmaps == 1200 && statistics.failedMaps == 0)
    #expect(statistics.liveMappings == 0 && statistics.liveBytes == 0 && statistics.queuedBytes == 0)
    device.close()
  }

  /// The device is closed while threads map and unmap lazily: each is told, and what they counted comes out even.
  @Test(arguments: LazyTests.Tables.allCases)
  func closingUnderLazyHands(_ tables: LazyTests.Tables) async throws {
    for round in 0..<10 {
      let machine = SimulatedHost(devices: [Self.addresses[0]: EduModel(addressBits: 64)])
      let device = try Device(
        Self.addresses[0], on: machine.host, interface: tables.interface, translation: tables.choice)
      let dma = device.dma
      try dma.switchProtection(to: .lazy(FlushQueueOptions(.perCPU, depth: 16, timeout: .milliseconds(1))))
      let failures = await inThreads(4) { thread in
        if thread == 3 {
          for _ in 0..<round * 20 { _ = try dma.map(try dma.buffer(byteCount: 4096), .toDevice).unmap() }
          return device.close()
        }
        do throws(DMAError) {
          while true { _ = try dma.map(try dma.buffer(byteCount: 4096), .toDevice).unmap() }
        } catch { if error.code != .closed { throw error } }
      }
      #expect(failures.isEmpty)
      let statistics = dma.statistics
      #expect(statistics.liveMappings == 0 && statistics.liveBytes == 0 && statistics.leakedBytes == 0)
      #expect(machine.kernel.census.pinnedBytes == 0)
    }
  }
}

private struct WrongAnswer: Error {}

private func check(_ isRight: Bool) throws { if !isRight { throw WrongAnswer() } }
