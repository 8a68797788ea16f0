import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// Unmaps that wait for a flush, whoever owns the page tables.
@Suite struct LazyTests {
  static let address = "0000:00:02.0"
  /// A timeout that no test waits for.
  static let patient = Duration.seconds(1000)

  /// Whose the page tables are, and how they are reached.
  enum Tables {
    case process, ioas, container
    /// Of the process too, in a hardware's format: the short way is taken there.
    case smmu

    static let allCases: [Tables] = [.process, .ioas, .container]
    static let every = allCases + [.smmu]
    var machine: SimulatedMachine { self == .smmu ? .smmuv3Nested : .vtd }

    var interface: Interface { self == .container ? .type1 : .iommufd }
    static let kernelOwned: [Tables] = [.ioas, .container]
    var choice: TranslationChoice { self == .process || self == .smmu ? .process : .kernel }
    /// The call that a map makes of memory that is not registered.
    var mapCall: String { self == .container ? "vfioMap" : "ioasMap" }
    /// The call that a flush makes.
    var flushCall: String {
      switch self {
      case .process, .smmu: "hwptInvalidate"
      case .ioas: "ioasUnmap"
      case .container: "vfioUnmap"
      }
    }
  }

  /// A domain in a lazy mode; the machine is clean afterwards, but for memory that is leaked.
  static func withDomain(
    _ tables: Tables, _ options: FlushQueueOptions?, leaks: Bool = false,
    _ body: (FaultingKernel, DMADomain, SimulatedHost) throws -> Void
  ) throws {
    let machine = SimulatedHost(tables.machine, devices: [address: EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel)
    do {
      let device = try Device(
        address, on: Host(kernel: kernel), interface: tables.interface, translation: tables.choice)
      defer { kernel.letGo() }
      if let options { try device.dma.switchProtection(to: .lazy(options)) }
      try body(kernel, device.dma, machine)
      device.close()
    }
    #expect(leaks ? machine.kernel.census.pinnedBytes == 0 : machine.isClean)
  }

  static func mapAndUnmap(_ dma: DMADomain) throws -> IOVA {
    let mapping = try dma.map(try dma.buffer(byteCount: 64), .bidirectional)
    let address = mapping.address
    _ = try mapping.unmap()
    return address
  }

  /// An unmap makes no system call, and its address is not given out again before the flush.
  @Test(arguments: Tables.every, FlushQueueOptions.Topology.allCases)
  func addressesWaitForTheFlush(_ tables: Tables, _ topology: FlushQueueOptions.Topology) throws {
    try Self.withDomain(tables, FlushQueueOptions(topology, depth: 64, timeout: Self.patient)) {
      kernel, dma, machine in
      kernel.resetCounts()
      var seen: Set<IOVA> = []
      for _ in 0..<63 { seen.insert(try Self.mapAndUnmap(dma)) }
      #expect(seen.count == 63, "no address twice")
      #expect(kernel.count(of: tables.flushCall) == 0)
      #expect(dma.statistics.queuedBytes == 63 * 4096 && dma.statistics.liveMappings == 0)
      unsafe #expect(dma.translate(seen.first!) == nil, "it is not mapped any more for the driver")
      try dma.drain()
      #expect(kernel.count(of: tables.flushCall) == 1, "one contiguous run, one call, and one invalidation")
      #expect(dma.statistics.queuedBytes == 0 && dma.statistics.flushes == 1)
      #expect(seen.contains(try Self.mapAndUnmap(dma)), "free again")
    }
  }

  /// Of a ring's entries one stays unused, as the kernel's; the full ring is flushed by whoever comes next.
  @Test func aFullRingIsFlushed() throws {
    try Self.withDomain(.process, FlushQueueOptions(.single, depth: 256, timeout: Self.patient)) {
      kernel, dma, machine in
      for number in 1...1020 {
        _ = try Self.mapAndUnmap(dma)
        #expect(dma.statistics.flushes == UInt64((number - 1) / 255))
      }
    }
  }

  /// Memory of the caller's stays pinned for the device until the flush.
  @Test(arguments: Tables.every)
  func memoryStaysPinnedUntilTheFlush(_ tables: Tables) throws {
    try Self.withDomain(tables, FlushQueueOptions(.perCPU, timeout: Self.patient)) { kernel, dma, machine in
      let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 8192, alignment: 4096)
      defer { unsafe page.deallocate() }
      let before = machine.kernel.census.pinnedBytes
      try unsafe dma.map(unsafe: UnsafeRawBufferPointer(page), .toDevice).unmap()
      #expect(machine.kernel.census.pinnedBytes == before + 8192)
      try dma.drain()
      #expect(machine.kernel.census.pinnedBytes == before)
    }
  }

  /// What is unmapped while a flush is under way waits for the next: that flush may have begun before.
  @Test(arguments: Tables.every)
  func theNextFlushIsForWhatComesDuringOne(_ tables: Tables) throws {
    try Self.withDomain(tables, FlushQueueOptions(.single, timeout: Self.patient)) { kernel, dma, machine in
      _ = try Self.mapAndUnmap(dma)
      kernel.interject(before: tables.flushCall) { _ = try? Self.mapAndUnmap(dma) }
      try dma.drain()
      #expect(dma.statistics.unmaps == 2 && dma.statistics.queuedBytes == 4096 && dma.statistics.flushes == 1)
      try dma.drain()
      #expect(dma.statistics.queuedBytes == 0 && dma.statistics.flushes == 2)
    }
  }

  /// The timer flushes when the time is up, and then there is no timer.
  @Test func theTimerFlushes() throws {
    try Self.withDomain(.process, FlushQueueOptions(.perCPU, timeout: .milliseconds(10))) { kernel, dma, machine in
      _ = try Self.mapAndUnmap(dma)
      #expect(FlushTimer.isRunning(for: kernel))
      for _ in 0..<500 where dma.statistics.queuedBytes > 0 { usleep(10_000) }
      let statistics = dma.statistics
      #expect(statistics.queuedBytes == 0 && statistics.flushes == 1)
      #expect(statistics.longestWindowNanoseconds >= 10_000_000)
      for _ in 0..<500 where FlushTimer.isRunning(for: kernel) { usleep(10_000) }
      #expect(!FlushTimer.isRunning(for: kernel), "an idle process has none")
    }
  }

  /// Under load full rings are flushed all the time, and the timer has nothing to do: it looks again when what waits now
  /// is due.
  @Test func theTimerLeavesYoungEntries() throws {
    try Self.withDomain(.process, FlushQueueOptions(.single, depth: 4, timeout: .seconds(10))) { kernel, dma, machine in
      _ = try Self.mapAndUnmap(dma)
      kernel.sleep(.seconds(6))
      for _ in 0..<3 { _ = try Self.mapAndUnmap(dma) }
      #expect(dma.statistics.flushes == 1 && dma.statistics.queuedBytes == 4096, "the full ring")
      kernel.sleep(.seconds(5))  // the timer of the first entry
      usleep(200_000)
      #expect(dma.statistics.flushes == 1 && dma.statistics.queuedBytes == 4096)
      kernel.sleep(.seconds(6))
      for _ in 0..<500 where dma.statistics.queuedBytes > 0 { usleep(10_000) }
      #expect(dma.statistics.flushes == 2 && dma.statistics.queuedBytes == 0)
    }
  }

  /// After the process was stopped, whatever is overdue goes before the next operation; the statistics tell how long.
  @Test(arguments: ["map", "unmap", "map(list)", "unmap(list)", "link"])
  func overdueEntriesGoFirst(_ operation: String) throws {
    try Self.withDomain(.process, FlushQueueOptions(.single, timeout: .milliseconds(500))) { kernel, dma, machine in
      Self.withoutTimer(kernel)
      let later = try dma.map(try dma.buffer(byteCount: 64), .toDevice)
      let buffer = try dma.buffer(byteCount: 64)
      var list = ScatterList()
      list.append(try dma.buffer(byteCount: 64))
      let laterList = try dma.map(list, .toDevice)
      var reservation = try dma.reserve(byteCount: 4096)
      _ = try Self.mapAndUnmap(dma)
      Self.awaitTimer(kernel)
      kernel.sleep(.seconds(3))  // the clock jumps
      #expect(dma.statistics.flushes == 0)
      switch operation {
      case "map":
        let mapping = try dma.map(buffer, .toDevice)
        #expect(dma.statistics.flushes == 1 && dma.statistics.queuedBytes == 0)
        _ = try mapping.unmap()
      case "map(list)":
        var list = ScatterList()
        list.append(buffer)
        let mapped = try dma.map(list, .toDevice)
        #expect(dma.statistics.flushes == 1 && dma.statistics.queuedBytes == 0)
        _ = try mapped.unmap()
      case "link":
        try reservation.link(buffer, at: 0, .toDevice)
        #expect(dma.statistics.flushes == 1 && dma.statistics.queuedBytes == 0)
      case "unmap":
        _ = try later.unmap()
        #expect(dma.statistics.flushes == 1 && dma.statistics.queuedBytes == 4096, "that of its own waits")
      default:
        _ = try laterList.unmap()
        #expect(dma.statistics.flushes == 1 && dma.statistics.queuedBytes == 4096, "that of its own waits")
      }
      #expect(dma.statistics.longestWindowNanoseconds >= 2_990_000_000)
    }
  }

  /// The window is that of the range that waited longest, also where the first flush failed and more was queued meanwhile.
  @Test(arguments: Tables.every)
  func theLongestWindowIsTold(_ tables: Tables) throws {
    try Self.withDomain(tables, FlushQueueOptions(.single, timeout: Self.patient)) { kernel, dma, machine in
      _ = try Self.mapAndUnmap(dma)
      kernel.sleep(.seconds(2))
      kernel.interject(before: tables.flushCall) { _ = try? Self.mapAndUnmap(dma) }
      // The second call too, which an SMMU's tables make when the first fails.
      kernel.failFrom(1, of: tables.flushCall, with: .inputOutput)
      #expect(throws: DMAError.self) { try dma.drain() }
      kernel.passAll()
      kernel.sleep(.seconds(2))
      try dma.drain()
      #expect(3_990_000_000..<5_000_000_000 ~= dma.statistics.longestWindowNanoseconds)
      _ = try Self.mapAndUnmap(dma)
      try dma.drain()
      #expect(dma.statistics.flushes == 2)
      #expect(dma.statistics.longestWindowNanoseconds < 5_000_000_000)
    }
  }

  /// As good as stopped: the timer's thread will sleep for good.
  static func withoutTimer(_ kernel: FaultingKernel) {
    // The thread that watches for events sleeps by the same call, and is not meant.
    for _ in 0..<1000 where kernel.count(of: "waitReadable") == 0 { usleep(1000) }
    kernel.hold("waitReadable")
  }

  /// Returns when the timer that was armed sleeps.
  static func awaitTimer(_ kernel: FaultingKernel) {
    for _ in 0..<5000 where kernel.heldCount == 0 { usleep(1000) }
    #expect(kernel.heldCount > 0)
  }

  /// What was queued before a flush is not overdue after it: the clock's jump flushes nothing twice.
  @Test func whatWasFlushedIsNotOverdue() throws {
    try Self.withDomain(.process, FlushQueueOptions(.single, timeout: .milliseconds(500))) { kernel, dma, machine in
      Self.withoutTimer(kernel)
      _ = try Self.mapAndUnmap(dma)
      try dma.drain()
      kernel.sleep(.seconds(3))
      for _ in 0..<3 { _ = try Self.mapAndUnmap(dma) }
      #expect(dma.statistics.flushes == 1 && dma.statistics.queuedBytes == 3 * 4096)
    }
  }

  /// Domains that end while their timer is due: the thread that flushes may hold the last reference.
  @Test func domainsEndUnderTheTimer() throws {
    let machine = SimulatedHost(devices: [Self.address: EduModel(addressBits: 64)])
    for round in 0..<200 {
      let device = try Device(Self.address, on: machine.host)
      try device.dma.switchProtection(to: .lazy(FlushQueueOptions(.single, depth: 8, timeout: .microseconds(round))))
      _ = try Self.mapAndUnmap(device.dma)
      usleep(UInt32(round % 50) * 4)
    }
    for _ in 0..<500 where !machine.isClean { usleep(10_000) }
    #expect(machine.isClean)
  }

  /// Where addresses that wait are all that is in the way, they are flushed: a fixed one, and a space that is full.
  @Test(arguments: Tables.every)
  func whatWaitsIsNotInTheWay(_ tables: Tables) throws {
    try Self.withDomain(tables, FlushQueueOptions(.single, timeout: Self.patient)) { kernel, dma, machine in
      let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
      defer { unsafe page.deallocate() }
      let memory = UnsafeRawBufferPointer(page)
      for _ in 0..<2 { try unsafe dma.map(unsafe: memory, .toDevice, at: IOVA(0x10_0000)).unmap() }
      #expect(dma.statistics.flushes == 1)
      try dma.setMask(.bits(13))  // one page: page 0 is never given out
      for _ in 0..<3 { #expect(try Self.mapAndUnmap(dma) == IOVA(0x1000)) }
      #expect(dma.statistics.flushes == 3)
      try dma.setMask(.bits(22))
      let large = UnsafeMutableRawBufferPointer.allocate(byteCount: (1 << 22) - 4096, alignment: 4096)
      defer { unsafe large.deallocate() }
      try unsafe dma.map(unsafe: UnsafeRawBufferPointer(large), .toDevice, at: IOVA(0x1000)).unmap()
      #expect(try dma.allocate(UInt64.self, count: 8).count == 8, "nor in that of the coherent arena")
      #expect(dma.statistics.flushes == 5, "one for the fixed address, one for the arena")
    }
  }

  /// What can never succeed flushes nothing.
  @Test func wrongArgumentsDoNotFlush() throws {
    try Self.withDomain(.process, FlushQueueOptions(.single, timeout: Self.patient)) { kernel, dma, machine in
      _ = try Self.mapAndUnmap(dma)
      let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
      defer { unsafe page.deallocate() }
      try dma.setMask(.bits(32))
      for address in [1 << 33, 0xFEE0_0000, 12] as [UInt64] {
        #expect(throws: DMAError.self) {
          try unsafe dma.map(unsafe: UnsafeRawBufferPointer(page), .toDevice, at: IOVA(address)).unmap()
        }
      }
      #expect(dma.statistics.flushes == 0)
    }
  }
}
