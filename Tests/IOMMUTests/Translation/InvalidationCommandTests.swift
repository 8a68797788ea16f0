import AddressSpace
import IOMMU
import IOMMUSimulation
import Synchronization
import Testing

/// Which commands an SMMUv3 or a VT-d gets, from the process and from the kernel, counted by the simulated one.
@Suite struct InvalidationCommandTests {
  private static let first = "0000:00:02.0", second = "0000:00:03.0"

  private static func host(
    _ hardware: NestedHardware = .smmuv3, _ change: (inout SimulatedMachine) -> Void = { _ in }
  ) -> SimulatedHost {
    var machine = hardware.machine
    change(&machine)
    return SimulatedHost(machine, devices: [first: ScratchModel(), second: ScratchModel()])
  }

  /// 4 MiB that begin on a boundary of 2 MiB, for as long as a test runs.
  private static func withMemory(_ body: (UnsafeRawBufferPointer) throws -> Void) rethrows {
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 4 << 20, alignment: 2 << 20)
    defer { unsafe memory.deallocate() }
    try unsafe body(UnsafeRawBufferPointer(memory))
  }

  private final class Box {
    private var mapping: UnsafeMapping?
    let address: IOVA
    init(_ mapping: consuming UnsafeMapping) {
      address = mapping.address
      self.mapping = consume mapping
    }
    func unmap() throws { if let mapping = mapping.take() { try mapping.unmap() } }
  }

  /// Leaves of several sizes, far apart: in a lazy mode nobody keeps track of them.
  @Test(arguments: NestedHardware.allCases) func lazyUnmapsTrackNothing(_ hardware: NestedHardware) throws {
    let machine = Self.host(hardware), device = try Device(Self.first, on: machine.host, translation: .process)
    let dma = device.dma
    try unsafe Self.withMemory { memory in
      let registration = try unsafe dma.register(unsafe: memory)
      try dma.switchProtection(to: .lazy(FlushQueueOptions(.single, timeout: .seconds(1000))))
      let maps = try (0..<200).map { index in
        let part = unsafe UnsafeRawBufferPointer(rebasing: memory[..<[4096, 65_536, 2 << 20, 4 << 20][index % 4]])
        return Box(try unsafe dma.map(unsafe: part, .bidirectional))
      }
      let before = hardware.counts(machine), calls = dma.statistics.systemCalls
      for map in maps { try map.unmap() }
      #expect(hardware.counts(machine) == before)
      #expect(dma.statistics.gatheredRanges == 0 && dma.statistics.invalidations == 0)
      #expect(dma.statistics.systemCalls == calls && dma.statistics.queuedBytes == 50 * (4096 + 65_536 + 6 << 20))
      try dma.drain()
      let after = hardware.counts(machine)
      #expect(after.process - before.process == .init(invalidations: 1, ofTags: 1, syncs: 1))
      #expect(after.kernel == before.kernel && dma.statistics.gatheredRanges == 0)
      // In strict mode they are kept track of.
      try dma.switchProtection(to: .strict)
      try unsafe dma.map(unsafe: memory, .bidirectional).unmap()
      #expect(dma.statistics.gatheredRanges > 0)
      try registration.unregister()
    }
    device.close()
  }

  /// While another thread goes to and fro between the modes, an unmap is invalidated or waits for a flush, whichever it takes
  /// it for: what a device still reaches afterwards is gone with the next drain.
  @Test(arguments: NestedHardware.allCases) func theModeIsReadOnce(_ hardware: NestedHardware) throws {
    let machine = Self.host(hardware), device = try Device(Self.first, on: machine.host, translation: .process)
    let dma = device.dma, isDone = Atomic<Bool>(false), roles = Atomic<Int>(0)
    let reached = Mutex<(lazily: Int, still: Int, failures: [String])>((0, 0, []))
    let unmaps = Atomic<Int>(0)
    @Sendable func isReached(_ address: IOVA) -> Bool { machine.storm(1, from: Self.first, at: address.rawValue) == 0 }
    @Sendable func toggle() throws {
      while !isDone.load(ordering: .acquiring) {
        try dma.switchProtection(to: .lazy(FlushQueueOptions(.perCPU, timeout: .seconds(1000))))
        try dma.switchProtection(to: .strict)
      }
    }
    @Sendable func unmap() throws {
      defer { isDone.store(true, ordering: .releasing) }
      // On a busy machine the other thread may be done with the lazy mode each time that this one gets to run.
      for turn in 0..<100_000 {
        if turn >= 2000, reached.withLock({ $0.lazily > 0 }) { return }
        let mapping = try dma.map(try dma.buffer(byteCount: 4096), .bidirectional), address = mapping.address
        guard isReached(address) else {
          reached.withLock { $0.failures.append("\(address) is mapped and not reached") }
          return
        }
        _ = try mapping.unmap()
        unmaps.wrappingAdd(1, ordering: .relaxed)
        guard isReached(address) else { continue }
        try dma.drain()
        let isStale = isReached(address)
        reached.withLock { ($0.lazily, $0.still) = ($0.lazily + 1, $0.still + (isStale ? 1 : 0)) }
      }
    }
    WorkerThreads.run(2) {
      do {
        if roles.wrappingAdd(1, ordering: .relaxed).oldValue == 0 { try unmap() } else { try toggle() }
      } catch { reached.withLock { $0.failures.append("\(error)") } }
    }
    let (lazily, still, failures) = reached.withLock { $0 }
    #expect(failures == [] && still == 0)
    #expect(lazily > 0, "no unmap waited")
    try dma.drain()
    let count = UInt64(unmaps.load(ordering: .relaxed))
    #expect(dma.statistics.queuedBytes == 0 && dma.statistics.unmaps == count && dma.statistics.leakedBytes == 0)
    device.close()
  }

  /// Without range commands one a block, and everything where a round has no room; never one a page.
  @Test(arguments: [(63, 63, 0), (64, 0, 1)] as [(UInt64, Int, Int)], [false, true])
  func blocks(_ counts: (blocks: UInt64, byAddress: Int, byASID: Int), isHidden: Bool) throws {
    let machine = Self.host(.smmuv3) { $0.smmu.hasRangeInvalidation = isHidden }
    let kernel = FaultingKernel(machine.kernel)
    if isHidden { kernel.hideRangeInvalidation() }
    let device = try Device(Self.first, on: Host(kernel: kernel), translation: .process), dma = device.dma
    try unsafe Self.withMemory { memory in
      let registration = try unsafe dma.register(unsafe: memory), tables = dma.processOwned!
      let host = UInt64(UInt(bitPattern: memory.baseAddress!)), start: UInt64 = 0x4000_0000
      for index in 0..<counts.blocks {
        try tables.map(iova: start + index << 21, address: host, byteCount: 2 << 20, access: .readWrite)
      }
      #expect(machine.storm(1, from: Self.first, at: start + (counts.blocks - 1) << 21) == 0)
      let before = machine.smmuCounters()
      #expect(try tables.unmap(iova: start, byteCount: counts.blocks << 21) == counts.blocks << 21)
      let after = machine.smmuCounters()
      #expect(after.process[.invalidateAddress] - before.process[.invalidateAddress] == counts.byAddress)
      #expect(after.process[.invalidateASID] - before.process[.invalidateASID] == counts.byASID)
      #expect(after.process.syncs - before.process.syncs == 1)
      #expect(machine.storm(1, from: Self.first, at: start + (counts.blocks - 1) << 21) == 1)
      try registration.unregister()
    }
    device.close()
  }

  /// Ranges where they cost less than walking the tables again, everything where they do not: by what commands take on this
  /// hardware, and by what the domain was told of it.
  @Test(
    arguments: [
      (20, nil, 63, 63), (2000, nil, 17, 17), (2000, nil, 18, 0), (2000, nil, 63, 0), (20, true, 4, 4),
      (20, true, 5, 0),
      (20, true, 63, 0), (20, false, 63, 63), (12_000, nil, 4, 0), (12_000, false, 4, 4), (12_000, false, 5, 0),
    ] as [(UInt64, Bool?, UInt64, Int)])
  func blocksByCost(_ command: UInt64, _ isDear: Bool?, _ blocks: UInt64, _ byAddress: Int) throws {
    let machine = Self.host {
      ($0.smmu.hasRangeInvalidation, $0.costs) = (false, .smmu300)
      $0.costs!.invalidation = command
    }
    let device = try Device(Self.first, on: machine.host, translation: .process), dma = device.dma
    if let isDear {
      var options = AutomaticOptions()
      options.isInvalidationDear = isDear
      try dma.switchProtection(to: .automatic(options))
      try dma.switchProtection(to: .strict)
    }
    try unsafe Self.withMemory { memory in
      let registration = try unsafe dma.register(unsafe: memory), tables = dma.processOwned!
      let host = UInt64(UInt(bitPattern: memory.baseAddress!)), start: UInt64 = 0x4000_0000
      for index in 0..<blocks {
        try tables.map(iova: start + index << 21, address: host, byteCount: 2 << 20, access: .readWrite)
      }
      let before = machine.smmuCounters().process
      #expect(try tables.unmap(iova: start, byteCount: blocks << 21) == blocks << 21)
      let after = machine.smmuCounters().process
      #expect(after[.invalidateAddress] - before[.invalidateAddress] == byAddress)
      #expect(after[.invalidateASID] - before[.invalidateASID] == (byAddress == 0 ? 1 : 0))
      #expect(after.syncs - before.syncs == 1)
      try registration.unregister()
    }
    device.close()
  }

  /// A domain that was opened while others flooded the queue takes their time for usual; one that is calibrated after the flood notices the
  /// next.
  @Test(arguments: [false, true]) func openedInACrowd(isCalibrated: Bool) throws {
    let machine = Self.host { $0.smmu.hasRangeInvalidation = false }
    machine.crowdCommandQueue(15)
    let device = try Device(Self.first, on: machine.host, translation: .process), dma = device.dma
    let budget = try #require(dma.processOwned?.budget)
    machine.crowdCommandQueue(0)
    if isCalibrated {
      try dma.switchProtection(to: .automatic)
      #expect(dma.calibration?.evidence == .timings(shortest: 310 + 300))
      try dma.switchProtection(to: .strict)
    }
    machine.crowdCommandQueue(15)
    for _ in 0..<20 { _ = try dma.map(try dma.buffer(byteCount: 4096), .bidirectional).unmap() }
    #expect(budget.limit == (isCalibrated ? 1 : 63))
    device.close()
  }

  /// Closing costs the process nothing however much is mapped; the kernel flushes the tag when the last device leaves. A tag that
  /// another device goes on using is flushed once: by the process, but on VT-d by the kernel, with each device that leaves.
  @Test(arguments: NestedHardware.allCases, [(false, 100_000), (true, 1000)])
  func closing(_ hardware: NestedHardware, _ maps: (isShared: Bool, count: Int)) throws {
    let machine = Self.host(hardware), (isShared, count) = maps
    let none = NestedHardware.Sent(invalidations: 0, ofTags: 0, syncs: 0)
    do {
      let first = try Device(Self.first, on: machine.host, translation: .process)
      let second = isShared ? try Device(Self.second, on: machine.host, sharing: first.dma) : nil, dma = first.dma
      try unsafe Self.withMemory { memory in
        let registration = try unsafe dma.register(unsafe: memory)
        let page = unsafe UnsafeRawBufferPointer(rebasing: memory[..<4096])
        var maps = try (0..<count).map { _ in Box(try unsafe dma.map(unsafe: page, .bidirectional)) }
        let before = hardware.counts(machine)
        first.close()
        let after = hardware.counts(machine), kernel = after.kernel - before.kernel
        let isProcess = isShared && hardware == .smmuv3, flushes = isProcess ? 0 : 1
        #expect(after.process - before.process == (isProcess ? .init(invalidations: 1, ofTags: 1, syncs: 1) : none))
        #expect(kernel.invalidations == flushes && kernel.ofTags == flushes)
        if let second {
          #expect(machine.storm(1, from: Self.second, at: maps.last!.address.rawValue) == 0, "the other goes on")
          second.close()
        }
        maps.removeAll()
        _ = consume registration
        let last = hardware.counts(machine), all = isShared && hardware == .vtd ? 2 : 1
        #expect((last.kernel - before.kernel).invalidations == all, "and nothing after it")
        #expect(last.process == after.process)
      }
    }
    #expect(machine.isClean)
  }

  /// What registering costs while a device is attached is the kernel's: for each area that goes, what is cached of stage 2 there
  /// and all of stage 1, on VT-d both by one descriptor. Neighbours that are registered as one area are one.
  @Test(arguments: NestedHardware.allCases, [(64, 1), (1, 64)])
  func registrations(_ hardware: NestedHardware, _ areas: (count: Int, pages: Int)) throws {
    let (count, pages) = areas, machine = Self.host(hardware)
    let device = try Device(Self.first, on: machine.host, translation: .process)
    try unsafe Self.withMemory { memory in
      let before = hardware.counts(machine)
      for index in 0..<count {
        let start = index * 8192
        let part = unsafe UnsafeRawBufferPointer(rebasing: memory[start..<start + pages * 4096])
        try unsafe device.dma.register(unsafe: part).unregister()
      }
      let after = hardware.counts(machine), (each, tags) = hardware == .smmuv3 ? (2, 1) : (1, 0)
      let sent = NestedHardware.Sent(invalidations: each * count, ofTags: tags * count, syncs: each * count)
      #expect(after.kernel - before.kernel == sent)
      #expect(after.process == before.process)
    }
    device.close()
  }
}
