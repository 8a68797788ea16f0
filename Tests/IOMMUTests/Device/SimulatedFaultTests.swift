import IOMMU
import IOMMUSimulation
import Testing

/// The simulated kernel's log has the lines of real ones: a device's faults come out of it.
@Suite("Faults of a simulated device")
struct SimulatedFaultTests {
  @Test(arguments: [SimulatedMachine.vtd, .smmuv3])
  func aFaultIsFoundInTheLog(_ preset: SimulatedMachine) throws {
    for firstStage in [false, true] {
      var machine = preset
      machine.usesFirstStage = firstStage
      let simulated = SimulatedHost(machine, devices: ["0000:00:02.0": EduModel()])
      let device = try Device("0000:00:02.0", on: simulated.host)
      let log = FaultLog(kernel: simulated.host.kernel, device: device.address)
      let other = FaultLog(kernel: simulated.host.kernel, device: PCIAddress("0000:00:03.0")!)
      let bar = try device.registers(bar: 0)

      try EndToEndTests.transfer(bar, IOVA(0x20_0000), 16, toDevice: false)
      let written = log.collect()
      #expect(!written.faults.isEmpty)
      #expect(written.faults.allSatisfy { $0.access == .write && $0.kind == .translation })
      #expect(written.faults.allSatisfy { ($0.iova?.rawValue ?? 0) & ~0xfff == 0x20_0000 })

      try EndToEndTests.transfer(bar, IOVA(0x30_0000), 16, toDevice: true)
      let read = log.collect().faults.dropFirst(written.faults.count)
      #expect(!read.isEmpty)
      #expect(read.allSatisfy { $0.access == .read && $0.device == "0000:00:02.0" })
      #expect(!log.collect().mayBeIncomplete)
      #expect(other.collect().count == 0)
      device.close()
    }
  }

  /// The domain tells of each fault which mapping it hit, or had hit had it been there still.
  @Test(arguments: Interface.allCases)
  func theDomainTellsOfMappings(_ interface: Interface) throws {
    let simulated = SimulatedHost(devices: ["0000:00:02.0": EduModel(), "0000:00:03.0": EduModel()])
    let device = try Device("0000:00:02.0", on: simulated.host, interface: interface)
    let other = try Device("0000:00:03.0", on: simulated.host, interface: interface)
    try device.dma.setMask(.bits(28))
    let bar = try device.registers(bar: 0)
    #expect(device.dma.faults == FaultReport())

    let mapping = try device.dma.map(try device.dma.buffer(byteCount: 100), .toDevice)
    let range = IOVARange(start: mapping.address, byteCount: 4096)!
    try EndToEndTests.transfer(bar, mapping.address, 8, toDevice: false)
    let live = device.dma.faults
    #expect(!live.faults.isEmpty && live.faults.allSatisfy { $0.access == .write })
    #expect(live.faults.allSatisfy { $0.mapping == Fault.Mapping(range: range, isLive: true) })

    _ = try mapping.unmap()
    try EndToEndTests.transfer(bar, range.start, 8, toDevice: true)
    try EndToEndTests.transfer(bar, IOVA(0x5000), 8, toDevice: true)
    let all = device.dma.faults
    #expect(all.faults.prefix(live.count) == live.faults[...], "what was told stays so")
    let ended = all.faults.dropFirst(live.count).filter { range.contains($0.iova!) }
    #expect(!ended.isEmpty && ended.allSatisfy { $0.mapping == Fault.Mapping(range: range, isLive: false) })
    let stray = all.faults.filter { $0.iova!.rawValue & ~0xfff == 0x5000 }
    #expect(!stray.isEmpty && stray.allSatisfy { $0.mapping == nil })
    #expect(other.dma.faults.count == 0 && !all.mayBeIncomplete)
    device.close()
    other.close()
    #expect(device.dma.faults.count == all.count)
  }
}
