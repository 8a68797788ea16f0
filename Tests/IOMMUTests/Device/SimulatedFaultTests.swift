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
}
