import IOMMU
import IOMMUSimulation
import Testing

/// What the clock charges: sums of the table's parts, to the nanosecond.
@Suite struct CostTableTests {
  /// What an action is charged, in nanoseconds.
  private func charged(_ machine: SimulatedHost, _ action: () throws -> Void) rethrows -> UInt64 {
    let before = machine.chargedTime
    try action()
    let (seconds, attoseconds) = (machine.chargedTime - before).components
    return UInt64(seconds) * 1_000_000_000 + UInt64(attoseconds / 1_000_000_000)
  }

  private func machine(_ costs: CostTable?, _ base: SimulatedMachine = .vtd) -> SimulatedHost {
    var machine = base
    machine.costs = costs
    return SimulatedHost(machine, devices: [IOMMUFDRig.address: EduModel(addressBits: 64)])
  }

  @Test func names() {
    #expect(CostTable.all.map(\.name) == ["vtd-2000", "vtd-800", "smmu-300", "smmu-800", "virtual-20000"])
    for table in CostTable.all {
      #expect(CostTable.named(table.name) == table)
      #expect(table.name.hasSuffix("-\(table.invalidation + table.sync)"), "the name is the round trip")
    }
    #expect(CostTable.named("vtd") == nil)
  }

  @Test(arguments: CostTable.all)
  func aStrictUnmapOfTheProcess(_ costs: CostTable) throws {
    let machine = machine(costs)
    let device = try Device(IOMMUFDRig.address, on: machine.host, translation: .process)
    var held: DMABuffer? = try device.dma.buffer(byteCount: 4096)
    var mapping: Mapping?
    let mapped = try charged(machine) { mapping = try device.dma.map(held.take()!, .toDevice) }
    #expect(mapped == 0)
    let unmapped = try charged(machine) { _ = try mapping.take()!.unmap() }
    #expect(unmapped == costs.systemCall + costs.invalidation + costs.sync)
    device.close()
  }

  @Test(arguments: Interface.allCases, CostTable.all)
  func aMapAndAnUnmapOfTheKernel(_ interface: Interface, _ costs: CostTable) throws {
    let machine = machine(costs)
    let device = try Device(IOMMUFDRig.address, on: machine.host, interface: interface, translation: .kernel)
    var held: DMABuffer? = try device.dma.buffer(byteCount: 3 * 4096)
    var mapping: Mapping?
    let mapped = try charged(machine) { mapping = try device.dma.map(held.take()!, .toDevice) }
    #expect(mapped == costs.systemCall + costs.area + 3 * costs.page)
    let unmapped = try charged(machine) { _ = try mapping.take()!.unmap() }
    #expect(unmapped == costs.systemCall + costs.area + 3 * costs.page + costs.invalidation + costs.sync)
    device.close()
  }

  /// Caching mode flushes on map as well.
  @Test func cachingMode() throws {
    let machine = machine(nil, .vtdCaching), costs = CostTable.virtual20000
    let device = try Device(IOMMUFDRig.address, on: machine.host, translation: .kernel)
    var held: DMABuffer? = try device.dma.buffer(byteCount: 4096)
    let mapped = try charged(machine) { _ = try device.dma.map(held.take()!, .toDevice) }
    #expect(mapped == 2 * (costs.systemCall + costs.area + costs.page + 20_000))
    device.close()
  }

  @Test func theTableThatFits() throws {
    for (base, costs) in [(SimulatedMachine.vtd, CostTable.vtd800), (.smmuv3, .smmu300), (.vtdCaching, .virtual20000)] {
      let machine = machine(nil, base)
      let device = try Device(IOMMUFDRig.address, on: machine.host, translation: .process)
      var mapping: Mapping? = try device.dma.map(try device.dma.buffer(byteCount: 1), .toDevice)
      let unmapped = try charged(machine) { _ = try mapping.take()!.unmap() }
      #expect(unmapped == costs.systemCall + costs.invalidation + costs.sync, "\(costs.name)")
      device.close()
    }
  }

  /// The machine's clock has moved on by what was charged, and a call that fails is charged too.
  @Test func theClockMoves() throws {
    var slow = CostTable("slow", roundTrip: 1000)
    slow.systemCall = 1_000_000_000_000
    let machine = machine(slow), kernel = machine.kernel
    let before = kernel.now(), systemCalls = machine.counters.systemCalls
    #expect(throws: Errno.badDescriptor) { try kernel.ioasAllocate(-1) }
    #expect(kernel.now() - before >= 1_000_000_000_000)
    #expect(machine.counters.systemCalls == systemCalls + 1)
    #expect(machine.chargedTime == .seconds(1000))
  }
}
