import IOMMU
import IOMMUSimulation
import Testing

/// How many invalidations each action costs: the table of §9.3.
@Suite struct InvalidationTests {
  struct Case: Sendable, CustomTestStringConvertible {
    let action: String
    let smmu: Int, smmuType1: Int, vtd: Int
    var testDescription: String { action }
  }

  /// Runs on iommufd: 64 maps of a page each, then an action; what the action cost.
  func cost(
    _ machine: SimulatedMachine, pagesPerMap: UInt64 = 1, maps: UInt64 = 64, at start: UInt64 = 0x20_0000,
    _ action: (IOMMUFDRig) throws -> Void
  ) throws -> (invalidations: Int, flushesOnMap: Int) {
    let rig = try IOMMUFDRig(machine)
    let memory = try Memory(rig.kernel, byteCount: Int(pagesPerMap * 4096))
    for index in 0..<maps {
      _ = try rig.kernel.ioasMap(
        rig.iommufd, ioas: rig.ioas, flags: 7, address: memory.address, byteCount: pagesPerMap * 4096,
        iova: start + index * pagesPerMap * 4096)
    }
    let before = rig.machine.counters
    #expect(before.invalidations == 0)
    try action(rig)
    let after = rig.machine.counters
    memory.close()
    rig.close()
    return (after.invalidations - before.invalidations, after.flushesOnMap)
  }

  @Test(arguments: [SimulatedMachine.IOMMUKind.vtd, .smmuv3])
  func iommufd(_ kind: SimulatedMachine.IOMMUKind) throws {
    let machine = kind == .vtd ? SimulatedMachine.vtd : .smmuv3
    let spanning = try cost(machine) { try $0.unmap(0x20_0000, 64 * 4096) }
    #expect(spanning == (64, 0))
    let separate = try cost(machine) { rig in
      for page in 0..<64 as Range<UInt64> { try rig.unmap(0x20_0000 + page * 4096, 4096) }
    }
    #expect(separate == (64, 0))
    #expect(try cost(machine) { try $0.unmap(0, .max) }.invalidations == 64)
    let one = try cost(machine, pagesPerMap: 64, maps: 1) { try $0.unmap(0x20_0000, 64 * 4096) }
    #expect(one == (1, 0))
    let detached = try cost(machine) { rig in
      try rig.kernel.vfioDetach(rig.device)
      try rig.unmap(0, .max)
    }
    #expect(detached.invalidations == 1)
    let closed = try cost(machine) { rig in
      rig.kernel.close(rig.device)
      rig.kernel.close(rig.iommufd)
    }
    #expect(closed.invalidations == 1)
  }

  @Test(arguments: [(512, 1, 2), (1024, 1, 3), (511, 1, 1), (513, 1, 2)] as [(UInt64, Int, Int)])
  func tables(_ pages: UInt64, _ vtd: Int, _ smmu: Int) throws {
    for (machine, expected) in [(SimulatedMachine.vtd, vtd), (.smmuv3, smmu)] {
      let cost = try cost(machine, pagesPerMap: pages, maps: 1) { try $0.unmap(0x20_0000, pages * 4096) }
      #expect(cost.invalidations == expected)
    }
  }

  @Test func tablesNeedAlignment() throws {
    // 512 pages that begin inside a block cover none as a whole.
    let cost = try cost(.smmuv3, pagesPerMap: 512, maps: 1, at: 0x20_1000) { try $0.unmap(0, .max) }
    #expect(cost.invalidations == 1)
  }

  @Test func cachingModeFlushesOnMap() throws {
    #expect(try cost(.vtdCaching) { try $0.unmap(0, .max) } == (64, 64))
    #expect(try cost(.vtdCaching, pagesPerMap: 64, maps: 1) { try $0.unmap(0, .max) } == (1, 64))
    let closed = try cost(.vtdCaching) { rig in
      try rig.kernel.vfioDetach(rig.device)
      try rig.map(at: 0x10_0000)
    }
    #expect(closed == (1, 64))
  }

  @Test(arguments: [SimulatedMachine.vtd, .smmuv3].map(\.iommu))
  func type1(_ kind: SimulatedMachine.IOMMUKind?) throws {
    var machine = SimulatedMachine.vtd
    machine.iommu = kind
    let rig = try ContainerRig(machine)
    let memory = try Memory(rig.kernel, byteCount: 1024 * 4096)
    for page in 0..<64 as Range<UInt64> { try rig.map(at: 0x20_0000 + page * 4096) }
    #expect(try rig.unmap(0x20_0000, 64 * 4096) == 64 * 4096)
    #expect(rig.machine.counters.invalidations == 64)
    // No table is ever freed by type1: it unmaps page by page.
    try rig.kernel.vfioMap(
      rig.container, flags: 3, address: memory.address, iova: 0x20_0000, byteCount: 1024 * 4096)
    try rig.unmap(0x20_0000, 1024 * 4096)
    #expect(rig.machine.counters.invalidations == 65)
    for page in 0..<64 as Range<UInt64> { try rig.map(at: 0x20_0000 + page * 4096) }
    memory.close()
    rig.close()
    #expect(rig.machine.counters.invalidations == 66)
  }
}
