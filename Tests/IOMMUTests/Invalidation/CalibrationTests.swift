import CapturedTrees
import IOMMU
import IOMMUSimulation
import Testing

/// What an invalidation costs, and what is chosen by it.
@Suite struct CalibrationTests {
  /// A device of a machine with so dear an invalidation, with the kernel in between.
  private static func withDomain(
    _ machine: SimulatedMachine, _ tables: LazyTests.Tables, leaks: Bool = false,
    _ body: (FaultingKernel, DMADomain, SimulatedHost) throws -> Void
  ) throws {
    let machine = SimulatedHost(machine, devices: [LazyTests.address: EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel)
    do {
      let device = try Device(
        LazyTests.address, on: Host(kernel: kernel), interface: tables.interface, translation: tables.choice)
      try body(kernel, device.dma, machine)
      device.close()
    }
    #expect(leaks ? machine.kernel.census.pinnedBytes == 0 : machine.isClean)
  }

  private static func machine(_ costs: CostTable) -> SimulatedMachine {
    var machine = SimulatedMachine.vtd
    machine.costs = costs
    return machine
  }

  /// On the cost tables of all machines: the timing is exact, a queue a processor up to 2 µs, a single one at 20 µs; and on
  /// tables of the kernel's, which no queue helps, nothing is put off, or maps are kept.
  @Test(arguments: CostTable.all, LazyTests.Tables.allCases)
  func everyCostTable(_ costs: CostTable, _ tables: LazyTests.Tables) throws {
    try Self.withDomain(Self.machine(costs), tables) { kernel, dma, machine in
      #expect(dma.calibration == nil)
      try dma.switchProtection(to: .automatic)
      let calibration = try #require(dma.calibration)
      // A system call and an invalidation; of the kernel's, an area and a page as well.
      let invalidation = costs.systemCall + costs.invalidation + costs.sync
      let shortest = tables == .process ? invalidation : invalidation + costs.area + costs.page
      #expect(calibration.evidence == .timings(shortest: shortest))
      let isDear = costs == .virtual20000
      #expect(calibration.isDear == isDear && calibration.topology == (isDear ? .single : .perCPU))
      let choices: [Calibration.Choice] = tables == .process ? [.lazyPerCPU, .lazySingle] : [.strict, .mapCache]
      #expect(calibration.choice == choices[isDear ? 1 : 0])
      #expect(dma.protection == .automatic)
    }
  }

  /// What is chosen is what an unmap then does.
  @Test(arguments: [CostTable.smmu300, .virtual20000], LazyTests.Tables.allCases)
  func theChoiceIsInForce(_ costs: CostTable, _ tables: LazyTests.Tables) throws {
    try Self.withDomain(Self.machine(costs), tables) { kernel, dma, machine in
      try dma.switchProtection(to: .automatic)
      var buffer = try dma.buffer(byteCount: 64)
      let before = dma.statistics
      for _ in 0..<1000 { buffer = try dma.map(buffer, .bidirectional).unmap() }
      let after = dma.statistics
      switch try #require(dma.calibration).choice {
      case .strict: #expect(after.systemCalls == before.systemCalls + 2000 && after.cachedBytes == 0)
      // By full queues, and by the timer of a slow machine.
      case .lazyPerCPU: #expect(after.flushes >= 3 && after.systemCalls < before.systemCalls + 100)
      case .lazySingle: #expect(after.flushes < 3 && after.queuedBytes > 0)
      case .mapCache: #expect(after.systemCalls < before.systemCalls + 10 && after.cachedBytes == 4096)
      }
      try dma.drain()
      #expect(dma.statistics.queuedBytes == 0 && dma.statistics.cachedBytes == 0)
      _ = consume buffer
    }
  }

  /// The page that is timed leaves nothing behind, and no device could have written it.
  @Test(arguments: LazyTests.Tables.allCases)
  func timingLeavesNothing(_ tables: LazyTests.Tables) throws {
    try Self.withDomain(.vtd, tables) { kernel, dma, machine in
      let census = machine.kernel.census
      try dma.switchProtection(to: .automatic(AutomaticOptions()))
      #expect(kernel.count(of: tables.flushCall) == Calibration.timingCount)
      #expect(kernel.count(of: tables.mapCall) == (tables == .process ? 0 : Calibration.timingCount))
      #expect(dma.statistics.systemCalls == UInt64(tables == .process ? 64 : 128))
      try dma.switchProtection(to: .strict)
      #expect(machine.kernel.census == census)
      #expect(dma.statistics.maps == 0 && dma.statistics.liveMappings == 0)
      #expect(dma.calibration?.choice != nil, "it stays to be seen")
    }
  }

  /// A sign saves the timing.
  @Test(arguments: LazyTests.Tables.allCases)
  func cachingModeIsASign(_ tables: LazyTests.Tables) throws {
    var machine = SimulatedMachine.vtdCaching
    machine.costs = .smmu300
    try Self.withDomain(machine, tables) { kernel, dma, machine in
      try dma.switchProtection(to: .automatic)
      #expect(dma.calibration?.evidence == .cachingMode(unit: "dmar0"))
      #expect(dma.calibration?.choice == (tables == .process ? .lazySingle : .mapCache))
      #expect(kernel.count(of: tables.flushCall) == 0 && kernel.count(of: tables.mapCall) == 0)
    }
  }

  /// Those who know better are believed, at once.
  @Test(arguments: LazyTests.Tables.allCases)
  func whatIsToldCounts(_ tables: LazyTests.Tables) throws {
    try Self.withDomain(Self.machine(.virtual20000), tables) { kernel, dma, machine in
      try dma.switchProtection(to: .automatic)
      #expect(dma.calibration?.isDear == true)
      kernel.resetCounts()
      var options = AutomaticOptions()
      options.isInvalidationDear = false
      try dma.switchProtection(to: .automatic(options))
      #expect(dma.calibration?.evidence == .told)
      #expect(dma.calibration?.choice == (tables == .process ? .lazyPerCPU : .strict))
      #expect(kernel.count(of: tables.flushCall) == 0)
    }
  }

  /// What was found holds for a minute: a machine at the threshold does not go to and fro.
  @Test(arguments: LazyTests.Tables.allCases)
  func onceAMinute(_ tables: LazyTests.Tables) throws {
    try Self.withDomain(.vtd, tables) { kernel, dma, machine in
      try dma.switchProtection(to: .automatic)
      for _ in 0..<5 {
        kernel.sleep(.seconds(10))
        try dma.switchProtection(to: .strict)
        try dma.switchProtection(to: .automatic)
      }
      #expect(kernel.count(of: tables.flushCall) == Calibration.timingCount)
      kernel.sleep(.seconds(11))
      try dma.switchProtection(to: .automatic)
      #expect(kernel.count(of: tables.flushCall) == 2 * Calibration.timingCount)
    }
  }

  /// Any call of a switch fails: the protection stays, and nothing is left behind.
  @Test(arguments: LazyTests.Tables.allCases, [CostTable.vtd800, .virtual20000])
  func anyCallFails(_ tables: LazyTests.Tables, _ costs: CostTable) throws {
    try Self.withDomain(Self.machine(costs), tables, leaks: true) { kernel, dma, machine in
      let census = machine.kernel.census
      var n = 0, refused = 0
      while true {
        n += 1
        let leaked = dma.statistics.leakedBytes
        kernel.sleep(.seconds(61))
        kernel.resetCounts()
        kernel.fail(n, with: .inputOutput)
        do throws(DMAError) {
          try dma.switchProtection(to: .automatic)
          #expect(dma.protection == .automatic, "\(n) a sign that cannot be read is none")
        } catch {
          refused += 1
          #expect(error.errno == .inputOutput && error.device == LazyTests.address, "\(n) \(error)")
          #expect(dma.protection == .strict && dma.statistics.queuedBytes == 0, "\(n)")
        }
        let hasFailed = kernel.hasFailed
        kernel.passAll()
        if kernel.failedName == tables.flushCall, tables != .process {
          #expect(dma.statistics.leakedBytes == leaked + 4096, "\(n) a page that the device may still reach")
        } else {
          #expect(dma.statistics.leakedBytes == leaked, "\(n)")
        }
        try dma.switchProtection(to: .strict)
        if !hasFailed { break }
      }
      #expect(refused >= Calibration.timingCount)
      if tables == .process { #expect(machine.kernel.census == census) }
    }
  }

  /// Certain signs, from files.
  @Test func signs() {
    func sign(_ change: (inout TreeBuilder) -> Void) -> Calibration.Evidence? {
      var builder = TreeBuilder()
      change(&builder)
      return Calibration.Evidence.sign(on: TreeKernel(builder.tree))
    }
    let plain = ["intel-iommu/cap": "d2008c222f0606", "intel-iommu/ecap": "f0f4a"]
    #expect(sign { $0.add(unit: "dmar0", plain) } == nil)
    #expect(sign { _ in } == nil)
    let caching = ["intel-iommu/cap": "d2008c222f0686"]
    let found = sign {
      $0.add(unit: "dmar0", plain)
      $0.add(unit: "dmar1", caching)
    }
    #expect(found == .cachingMode(unit: "dmar1"))
    #expect(sign { $0.add(unit: "0000:00:01.0") } == .virtioIOMMU(unit: "0000:00:01.0"))
    let processor = "processor\t: 0\nflags\t\t: fpu vme hypervisor lm\n"
    #expect(sign { $0.tree["/proc/cpuinfo"] = processor } == .hypervisor)
    #expect(sign { $0.tree["/proc/cpuinfo"] = "model name\t: hypervisor\nflags\t\t: fpu vme lm\n" } == nil)
    #expect(sign { $0.tree["/proc/cpuinfo"] = "Features\t: fp asimd\n" } == nil, "another architecture")
  }
}
