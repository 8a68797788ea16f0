import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// Maps that the kernel will not unmap, memory that is freed meanwhile, and threads that come at the wrong moment.
@Suite struct MapCacheFailureTests {
  typealias Tables = LazyTests.Tables

  /// What cannot be torn down stays kept, tells so, and is used no more; it goes when the kernel agrees.
  @Test(arguments: Tables.kernelOwned)
  func whatIsRefusedIsUsedNoMore(_ tables: Tables) throws {
    try Caching.withDomain(tables) { kernel, device, machine in
      let dma = device.dma, first = try RecurringBuffer(dma), second = try RecurringBuffer(dma)
      let address = try first.use(dma), other = try second.use(dma)
      kernel.fail(1, of: tables.flushCall, with: .inputOutput)
      #expect { try dma.drain() } throws: { ($0 as? DMAError)?.errno == .inputOutput }
      #expect(dma.statistics.cachedBytes == 4096)
      #expect(try Caching.writes(address, device, machine))
      #expect(try !Caching.writes(other, device, machine))
      #expect(try first.use(dma) != address)
      #expect(dma.statistics.cacheHits == 0 && dma.statistics.cachedBytes == 2 * 4096)
      try dma.drain()
      #expect(try !Caching.writes(address, device, machine))
      #expect(dma.statistics.cachedBytes == 0 && dma.statistics.leakedBytes == 0)
    }
  }

  /// Another number of bytes than was asked for is a refusal too.
  @Test func anUnmapThatFindsNothing() throws {
    let machine = SimulatedHost(devices: [LazyTests.address: EduModel(addressBits: 64)])
    let number = try #require(try machine.host.device(PCIAddress(LazyTests.address)!).group)
    let group = try machine.kernel.open("/dev/vfio/\(number)"), container = try machine.kernel.open("/dev/vfio/vfio")
    let device = try Device(LazyTests.address, group: group, container: container, on: machine.host), dma = device.dma
    try dma.switchProtection(to: .automatic(Caching.options()))
    let buffer = try RecurringBuffer(dma), address = try buffer.use(dma)
    _ = try machine.kernel.vfioUnmap(container, flags: 0, iova: address.rawValue, byteCount: 4096)
    #expect { try dma.drain() } throws: { ($0 as? DMAError)?.code == .mismatch }
    #expect(dma.statistics.cachedBytes == 4096)
    #expect(try buffer.use(dma) != address)
    device.close()
  }

  /// Memory whose map is kept serves nobody else before it was unmapped, and nobody at all when that fails.
  @Test(arguments: Tables.kernelOwned, [false, true])
  func freedMemory(_ tables: Tables, _ fails: Bool) throws {
    try Caching.withDomain(tables, leaks: fails) { kernel, device, machine in
      let dma = device.dma, buffer = try RecurringBuffer(dma), place = buffer.place
      let address = try buffer.use(dma)
      kernel.resetCounts()
      if fails { kernel.fail(1, of: tables.flushCall, with: .inputOutput) }
      buffer.drop()
      #expect(kernel.count(of: tables.flushCall) == 1)
      #expect(try Caching.writes(address, device, machine) == fails)
      #expect(try Self.isFree(place, dma) == !fails)
      #expect(dma.statistics.leakedBytes == (fails ? 4096 : 0))
      #expect(dma.statistics.cachedBytes == (fails ? 4096 : 0))
      // The map can be torn down later on; the memory is given up.
      try dma.drain()
      #expect(try !Caching.writes(address, device, machine))
      #expect(dma.statistics.cachedBytes == 0)
      #expect(try Self.isFree(place, dma) == !fails)
    }
  }

  /// Whether memory is given out next.
  private static func isFree(_ place: UInt, _ dma: DMADomain) throws -> Bool {
    try RecurringBuffer(dma).place == place
  }

  /// A mapping that is dropped, while a map of the same memory with less access is kept: both go before the memory does.
  @Test func droppedMappings() throws {
    try Caching.withDomain(.ioas) { kernel, device, machine in
      let dma = device.dma, buffer = try RecurringBuffer(dma), place = buffer.place
      let kept = try buffer.use(dma, .toDevice)
      do {
        let mapping = try buffer.map(dma, .bidirectional)
        #expect(mapping.address != kept)
      }
      #expect(dma.statistics.cachedBytes == 0 && machine.kernel.census.pinnedBytes == 0)
      #expect(try Self.isFree(place, dma))
    }
  }

  /// While one thread tears a map down, another frees its memory: it waits until that is done.
  @Test(arguments: Tables.kernelOwned, [false, true])
  func freedWhileItIsTornDown(_ tables: Tables, _ fails: Bool) throws {
    try Caching.withDomain(tables, leaks: fails) { kernel, device, machine in
      let dma = device.dma, buffer = try RecurringBuffer(dma), place = buffer.place
      _ = try buffer.use(dma)
      let freed = Shared(false), wasFreed = Shared(false)
      kernel.interject(before: tables.flushCall) {
        inThread {
          buffer.drop()
          freed.change { $0 = true }
        }
        usleep(50_000)
        wasFreed.change { $0 = freed.value }
        #expect((try? Self.isFree(place, dma)) == false)
      }
      // Both threads are refused, or none.
      if fails { kernel.failFrom(1, of: tables.flushCall, with: .inputOutput) }
      var isRefused = false
      do { try dma.drain() } catch { isRefused = true }
      #expect(isRefused == fails)
      for _ in 0..<500 where !freed.value { usleep(10_000) }
      #expect(freed.value && !wasFreed.value)
      #expect(dma.statistics.leakedBytes == (fails ? 4096 : 0))
      kernel.passAll()
      try dma.drain()
      #expect(try Self.isFree(place, dma) == !fails)
    }
  }

  /// A drain waits for what another thread is tearing down, and tears down what came before it and nothing else.
  @Test func drainsMeet() throws {
    try Caching.withDomain(.ioas) { kernel, device, machine in
      let dma = device.dma, buffer = try RecurringBuffer(dma), late = try RecurringBuffer(dma)
      _ = try buffer.use(dma)
      let isDone = Shared(false), wasDone = Shared(true)
      kernel.interject(before: "ioasUnmap") {
        inThread {
          try? dma.drain()
          isDone.change { $0 = true }
        }
        usleep(50_000)
        wasDone.change { $0 = isDone.value }
        _ = try? late.use(dma)
      }
      try dma.drain()
      #expect(!wasDone.value && dma.statistics.cachedBytes == 4096, "the late one is kept")
      for _ in 0..<500 where !isDone.value { usleep(10_000) }
      #expect(isDone.value)
    }
  }

  /// Any call fails, under a cache that is too small: one failure breaks one operation at most, and nothing is left behind.
  @Test(arguments: Tables.kernelOwned, [Errno.noMemory, .inputOutput])
  func anyCallFails(_ tables: Tables, _ errno: Errno) throws {
    var n = 0, hasFailed = true
    while hasFailed {
      n += 1
      var failures: [String] = []
      try Caching.withDomain(tables, Caching.options(3 * 4096), leaks: true) { kernel, device, machine in
        kernel.resetCounts()
        kernel.fail(n, with: errno)
        failures = Self.live(device.dma)
        hasFailed = kernel.hasFailed
        kernel.passAll()
        try device.dma.drain()
        let statistics = device.dma.statistics
        #expect(statistics.cachedBytes == 0, "\(n)")
        if statistics.leakedBytes == 0 {
          #expect(statistics.liveMappings == 0 && machine.kernel.census.pinnedBytes == 0, "\(n)")
        }
      }
      #expect(failures.count <= 1, "\(n): \(failures)")
    }
    #expect(n > 12)
  }

  /// What a driver does with buffers that recur, as far as it goes; what failed.
  private static func live(_ dma: DMADomain) -> [String] {
    var failures: [String] = []
    func attempt(_ body: () throws -> Void) { do { try body() } catch { failures.append("\(error)") } }
    var buffers: [RecurringBuffer] = []
    for length in [64, 64, 8192, 64, 5 * 4096] {
      attempt {
        let buffer = try RecurringBuffer(dma, byteCount: length)
        _ = try buffer.use(dma)
        _ = try buffer.use(dma, .toDevice)
        buffers.append(buffer)
      }
    }
    buffers = buffers.suffix(2)
    attempt { try dma.drain() }
    return failures
  }

  /// A switch that cannot be: what was kept is gone or refused, and maps are kept as before.
  @Test(arguments: Tables.kernelOwned)
  func aSwitchThatFailsKeepsTheCache(_ tables: Tables) throws {
    try Caching.withDomain(tables) { kernel, device, machine in
      let dma = device.dma, buffer = try RecurringBuffer(dma)
      _ = try buffer.use(dma)
      kernel.fail(1, of: tables.flushCall, with: .inputOutput)
      #expect(throws: DMAError.self) { try dma.switchProtection(to: .strict) }
      #expect(dma.protection == .automatic(Caching.options()) && dma.statistics.cachedBytes == 4096)
      for _ in 0..<3 { _ = try buffer.use(dma) }
      #expect(dma.statistics.cacheHits == 2)
      kernel.fail(1, of: "mapMemory", with: .noMemory)
      #expect { try dma.switchProtection(to: .automatic(Caching.options(1 << 20))) } throws: {
        ($0 as? DMAError)?.code == .outOfMemory
      }
      #expect(dma.statistics.cachedBytes == 2 * 4096, "nothing was touched")
      try dma.switchProtection(to: .strict)
      #expect(dma.statistics.cachedBytes == 0)
    }
  }

  /// Closing costs one invalidation, whatever is kept; buffers may be dropped afterwards.
  @Test(arguments: Tables.kernelOwned)
  func closing(_ tables: Tables) throws {
    try Caching.withDomain(tables) { kernel, device, machine in
      let dma = device.dma, buffers = try (0..<50).map { _ in try RecurringBuffer(dma) }
      for buffer in buffers { _ = try buffer.use(dma) }
      let before = machine.counters.invalidations
      device.close()
      #expect(machine.counters.invalidations == before + 1 && dma.statistics.cachedBytes == 0)
      #expect(throws: DMAError.self) { _ = try buffers[0].use(dma) }
      for buffer in buffers[1...] { buffer.drop() }
      try dma.drain()
      #expect(dma.statistics.leakedBytes == 0)
    }
  }

  /// In a fork nothing of the parent's cache is used or torn down; the parent goes on.
  @Test func forks() async {
    await #expect(processExitsWith: .success) {
      for tables in LazyTests.Tables.kernelOwned { try MapCacheFailureTests.forkAndUse(tables) }
    }
  }

  static func forkAndUse(_ tables: Tables) throws {
    let machine = SimulatedHost(devices: [LazyTests.address: EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel)
    var device: Device? = try Device(
      LazyTests.address, on: Host(kernel: kernel), interface: tables.interface, translation: .kernel)
    try device!.dma.switchProtection(to: .automatic(Caching.options()))
    // The timer is asleep: its thread may hold a lock of this kernel's when the process forks, which nobody in the fork would open.
    LazyTests.withoutTimer(kernel)
    defer { kernel.letGo() }
    let kept = try RecurringBuffer(device!.dma), dropped = try RecurringBuffer(device!.dma)
    let live = try RecurringBuffer(device!.dma)
    let address = try kept.use(device!.dma)
    _ = try dropped.use(device!.dma)
    var mapping: Mapping? = try live.map(device!.dma)
    LazyTests.awaitTimer(kernel)
    kernel.resetCounts()
    let child = fork()
    if child == 0 {
      var codes: [DMAError.Code?] = []
      do { _ = try kept.use(device!.dma) } catch { codes.append((error as? DMAError)?.code) }
      do { live.take(try mapping.take()!.unmap()) } catch { codes.append(error.code) }
      do { try device!.dma.drain() } catch { codes.append(error.code) }
      do { try device!.dma.switchProtection(to: .strict) } catch { codes.append(error.code) }
      if device!.dma.calibration != nil || device!.dma.protection != .strict { _exit(50) }
      dropped.drop()
      device = nil
      let isRefused = codes == [.forked, .forked, .forked, .forked]
      _exit(!isRefused ? 60 : ForkTests.harmful.contains { kernel.count(of: $0) > 0 } ? 99 : 0)
    }
    var status: Int32 = -1
    _ = unsafe waitpid(child, &status, 0)
    try #require(status == 0, "the child ended with \(status >> 8), signal \(status & 127)")
    try #require(try kept.use(device!.dma) == address)
    try #require(device!.dma.statistics.cacheHits == 1)
    live.take(try mapping.take()!.unmap())
    device!.close()
  }

  /// Threads map and unmap buffers of their own in a cache that is too small, while others drain and switch.
  @Test(arguments: Tables.kernelOwned)
  func threads(_ tables: Tables) async throws {
    let machine = SimulatedHost(devices: [LazyTests.address: EduModel(addressBits: 64)])
    try await Self.load(machine, tables)
    // The timer's thread may hold the last reference for a moment.
    for _ in 0..<500 where !machine.isClean { usleep(10_000) }
    #expect(machine.isClean, "\(machine.kernel.census)")
  }

  private static func load(_ machine: SimulatedHost, _ tables: Tables) async throws {
    let device = try Device(
      LazyTests.address, on: machine.host, interface: tables.interface, translation: .kernel)
    let dma = device.dma, options = Caching.options(20 * 4096, .milliseconds(5))
    try dma.switchProtection(to: .automatic(options))
    let left = Shared(3)
    let failures = await inThreads(4) { number in
      if number == 3 {
        while left.value > 0 {
          try dma.drain()
          usleep(2_000)
          try dma.switchProtection(to: .strict)
          try dma.switchProtection(to: .automatic(options))
          usleep(20_000)
        }
        return
      }
      defer { left.change { $0 -= 1 } }
      let buffers = try (0..<10).map { try RecurringBuffer(dma, byteCount: 4096 * (1 + $0 % 3)) }
      for round in 0..<1500 {
        let buffer = buffers[(round * 7) % 10]
        let mapping = try buffer.map(dma, round % 5 == 0 ? .toDevice : .bidirectional)
        unsafe #expect(UInt(bitPattern: dma.translate(mapping.address)) == buffer.place)
        buffer.take(try mapping.unmap())
        if round % 50 == 0 { _ = try RecurringBuffer(dma).use(dma) }
      }
    }
    #expect(failures == [])
    try dma.drain()
    let statistics = dma.statistics
    #expect(statistics.maps == statistics.unmaps && statistics.cacheHits > 0)
    #expect(statistics.cachedBytes == 0 && statistics.queuedBytes == 0 && statistics.leakedBytes == 0)
    #expect(machine.kernel.census.pinnedBytes == 0)
    device.close()
  }
}
