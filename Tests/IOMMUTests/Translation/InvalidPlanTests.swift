import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Plans that are wrong on purpose: nothing of them is sent, and everything is invalidated in their place.
@Suite struct InvalidPlanTests {
  /// A command for another address space, a range where the hardware knows none, one that is reserved, and one of the kernel's own;
  /// each behind one that is right.
  @Test func onAnSMMU() throws {
    var machine = SimulatedMachine.smmuv3Nested
    machine.smmu.hasRangeInvalidation = false
    let host = SimulatedHost(machine, devices: [ProcessOwnedTests.address: EduModel(addressBits: 64)])
    let device = try Device(ProcessOwnedTests.address, on: host.host, translation: .process)
    let tables = try #require(device.dma.processOwned as? ProcessOwnedSMMU), asid = tables.shape.asid
    let wrong = [
      SMMUCommand.page(0, asid + 1, leafOnly: true),
      .range(0, number: 1, scale: 0, granule: 12, level: 3, asid, leafOnly: true),
      SMMUCommand(low: 0x12 | 1 << 20 | UInt64(asid) << 48, high: 0), SMMUCommand(low: 0x46, high: 0),
    ]
    for command in wrong {
      let mapping = try device.dma.map(try device.dma.buffer(byteCount: 4096), .bidirectional),
        address = mapping.address
      #expect(try reaches(device, address, host))
      _ = try tables.clear(iova: address.rawValue, byteCount: 4096)
      #expect(try reaches(device, address, host), "cached still")
      let before = host.smmuCounters().process, right = SMMUCommand.page(address.rawValue, asid, leafOnly: true)
      try tables.send(SMMUPlan(tables.shape, commands: [right, command]))
      let after = host.smmuCounters().process
      #expect(after[.invalidateAddress] == before[.invalidateAddress], "\(command)")
      #expect(after[.invalidateASID] == before[.invalidateASID] + 1 && after.syncs == before.syncs + 1)
      #expect(try !reaches(device, address, host))
      // The other one alone goes as it is.
      try tables.send(SMMUPlan(tables.shape, commands: [right]))
      #expect(host.smmuCounters().process[.invalidateAddress] == before[.invalidateAddress] + 1)
      #expect(host.smmuCounters().process[.invalidateASID] == after[.invalidateASID])
      leave(mapping)
    }
    device.close()
  }

  /// No pages, a length that is no power of two, a block that is not aligned, a flag that there is not.
  @Test func onAVTd() throws {
    let host = SimulatedHost(.vtdNested, devices: [ProcessOwnedTests.address: EduModel(addressBits: 64)])
    let device = try Device(ProcessOwnedTests.address, on: host.host, translation: .process)
    let tables = try #require(device.dma.processOwned as? ProcessOwnedVTd)
    var wrong = [
      VTdCommand(address: 0x1000, pageCount: 0), VTdCommand(address: 0, pageCount: 3),
      VTdCommand(address: 0x1000, pageCount: 2), VTdCommand(address: 0, pageCount: 1),
    ]
    wrong[3].flags = 2
    for command in wrong {
      let mapping = try device.dma.map(try device.dma.buffer(byteCount: 4096), .bidirectional),
        address = mapping.address
      #expect(try reaches(device, address, host))
      _ = try tables.clear(iova: address.rawValue, byteCount: 4096)
      #expect(try reaches(device, address, host), "cached still")
      let before = host.vtdCounters().process
      let right = VTdCommand(address: address.rawValue, pageCount: 1, leafOnly: true)
      try tables.send(VTdPlan(largestOrder: 18, commands: [right, command]))
      #expect(host.vtdCounters().process.wholeTag == before.wholeTag + 1, "\(command)")
      #expect(try !reaches(device, address, host))
      try tables.send(VTdPlan(largestOrder: 18, commands: [right]))
      #expect(host.vtdCounters().process.wholeTag == before.wholeTag + 1)
      leave(mapping)
    }
    #expect(host.vtdCounters().illegalDescriptors == 0)
    device.close()
  }

  /// Ends a mapping that was cleared behind the domain's back, which finds nothing there.
  private func leave(_ mapping: consuming Mapping) {
    do throws(DMAError) {
      _ = try mapping.unmap()
      Issue.record("unmapped twice")
    } catch { #expect(error.code == .mismatch) }
  }

  private func reaches(_ device: Device, _ address: IOVA, _ machine: SimulatedHost) throws -> Bool {
    try ProcessOwnedVTdTests.reaches(device, address, machine)
  }
}
