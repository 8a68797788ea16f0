import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// How long maps are kept without use, and what ends them sooner.
@Suite struct MapCacheTimeTests {
  typealias Tables = LazyTests.Tables

  /// The timer tears down what was not used, and then there is no timer.
  @Test(arguments: Tables.kernelOwned)
  func theTimer(_ tables: Tables) throws {
    try Caching.withDomain(tables, Caching.options(64 << 20, .milliseconds(20))) { kernel, device, machine in
      let dma = device.dma, buffers = try (0..<20).map { _ in try RecurringBuffer(dma) }
      for buffer in buffers { _ = try buffer.use(dma) }
      #expect(FlushTimer.isRunning(for: kernel))
      for _ in 0..<500 where dma.statistics.cachedBytes > 0 { usleep(10_000) }
      #expect(dma.statistics.cachedBytes == 0 && machine.kernel.census.pinnedBytes == 0)
      for _ in 0..<500 where FlushTimer.isRunning(for: kernel) { usleep(10_000) }
      #expect(!FlushTimer.isRunning(for: kernel), "an idle process has none")
    }
  }

  /// Each has its own time, from its last use on.
  @Test func fromTheLastUseOn() throws {
    try Caching.withDomain(.ioas, Caching.options(64 << 20, .seconds(10))) { kernel, device, machine in
      let dma = device.dma, first = try RecurringBuffer(dma), second = try RecurringBuffer(dma)
      LazyTests.withoutTimer(kernel)
      _ = try first.use(dma)
      LazyTests.awaitTimer(kernel)
      kernel.sleep(.seconds(6))
      _ = try second.use(dma)
      kernel.sleep(.seconds(6))
      let third = try RecurringBuffer(dma)
      _ = try third.use(dma)
      #expect(dma.statistics.cachedBytes == 2 * 4096 && kernel.count(of: "ioasUnmap") == 1, "the first is gone")
      _ = try second.use(dma)
      #expect(dma.statistics.cacheHits == 1)
      kernel.sleep(.seconds(6))
      _ = try second.use(dma)
      #expect(dma.statistics.cacheHits == 2, "its time began anew")
    }
  }

  /// After the process was stopped, what is overdue goes before the next operation, and is used no more.
  @Test(arguments: ["map", "unmap", "the same"])
  func whatIsOverdueGoesFirst(_ operation: String) throws {
    try Caching.withDomain(.ioas, Caching.options(64 << 20, .milliseconds(500))) { kernel, device, machine in
      LazyTests.withoutTimer(kernel)
      let dma = device.dma, buffer = try RecurringBuffer(dma), other = try RecurringBuffer(dma)
      var live: Mapping? = try other.map(dma)
      let address = try buffer.use(dma)
      LazyTests.awaitTimer(kernel)
      kernel.sleep(.seconds(3))
      #expect(try Caching.writes(address, device, machine))
      switch operation {
      case "map": buffer.take(try buffer.map(dma, .toDevice).unmap())
      case "unmap": other.take(try live.take()!.unmap())
      default: _ = try buffer.use(dma)
      }
      #expect(dma.statistics.cacheHits == 0 && kernel.count(of: "ioasUnmap") == 1)
      if operation != "the same" { #expect(try !Caching.writes(address, device, machine)) }
    }
  }

  /// Addresses that are kept are not in the way: of a space that is full, of a fixed address, of a mask that another device has.
  @Test(arguments: Tables.kernelOwned)
  func addressesAreNotInTheWay(_ tables: Tables) throws {
    try Caching.withDomain(tables) { kernel, device, machine in
      let dma = device.dma, buffers = try (0..<3).map { _ in try RecurringBuffer(dma) }
      try dma.setMask(.bits(13))  // one page: page 0 is never given out
      for buffer in buffers { #expect(try buffer.use(dma) == IOVA(0x1000)) }
      let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
      defer { unsafe page.deallocate() }
      #expect(dma.statistics.cachedBytes == 4096)
      try unsafe dma.map(unsafe: UnsafeRawBufferPointer(page), .toDevice, at: IOVA(0x1000)).unmap()
      #expect(dma.statistics.cachedBytes == 0)
    }
  }

  /// A device that reaches less may join: what is kept beyond its reach is torn down.
  @Test(arguments: Interface.allCases)
  func aDeviceThatReachesLessJoins(_ interface: Interface) throws {
    var machine = SimulatedMachine.vtd
    let second = SimulatedDevice("0000:00:03.0", EduModel(addressBits: 64))
    machine.devices = [SimulatedDevice("0000:00:02.0", EduModel(addressBits: 64)), second]
    let simulated = SimulatedHost(machine)
    do {
      let device = try Device("0000:00:02.0", on: simulated.host, interface: interface, translation: .kernel)
      try device.dma.switchProtection(to: .automatic(Caching.options()))
      let buffer = try RecurringBuffer(device.dma)
      _ = try buffer.use(device.dma)
      let other = try Device("0000:00:03.0", on: simulated.host, sharing: device.dma)
      #expect(device.dma.statistics.cachedBytes == 0)
      buffer.drop()
      other.close()
      device.close()
    }
    #expect(simulated.isClean)
  }

  /// What pins memory or takes an entry of a container makes the kernel short of both: the cache gives way to each kind of map.
  @Test(arguments: ["buffer", "unsafe", "fixed", "bulk", "list", "link", "coherent"], Tables.kernelOwned)
  func theCacheGivesWay(_ kind: String, _ tables: Tables) throws {
    try Caching.withDomain(tables) { kernel, device, machine in
      let dma = device.dma, buffer = try RecurringBuffer(dma)
      _ = try buffer.use(dma)
      let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
      defer { unsafe page.deallocate() }
      let memory = UnsafeRawBufferPointer(page)
      for errno in [Errno.noMemory, .noSpace] {
        _ = try buffer.use(dma)
        #expect(dma.statistics.cachedBytes == 4096)
        // The file is tried first where the kernel can map files, and memory goes by address on type1.
        let call = kind == "coherent" && tables == .ioas ? "ioasMapFile" : tables.mapCall
        kernel.fail(1, of: call, with: errno)
        switch kind {
        case "buffer": _ = try dma.map(try dma.buffer(byteCount: 64), .toDevice)
        case "unsafe": try unsafe dma.map(unsafe: memory, .toDevice).unmap()
        case "fixed": try unsafe dma.map(unsafe: memory, .toDevice, at: IOVA(0x10_0000)).unmap()
        case "bulk": try unsafe dma.mapBulk(unsafe: memory, .toDevice)!.unmap()
        case "list":
          var list = ScatterList()
          list.append(try dma.buffer(byteCount: 4096))
          _ = try dma.map(list, .toDevice).unmap()
        case "link":
          var reservation = try dma.reserve(byteCount: 4096)
          try reservation.link(try dma.buffer(byteCount: 64), at: 0, .toDevice)
          _ = try reservation.destroy()
        default: _ = try dma.allocate(UInt8.self, count: errno == .noMemory ? 8 << 20 : 16 << 20)
        }
        #expect(kernel.hasFailed && dma.statistics.cachedBytes == 0, "\(errno)")
        kernel.resetCounts()
      }
      // Where nothing is kept there is nothing to gain.
      kernel.fail(1, of: tables.mapCall, with: .noMemory)
      #expect(throws: DMAError.self) { try unsafe dma.map(unsafe: memory, .toDevice).unmap() }
    }
  }
}
