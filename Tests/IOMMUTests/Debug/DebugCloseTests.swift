import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// The last look at a device's faults.
@Suite struct DebugCloseTests {
  /// Nobody has read them: they are told when the device is closed, each once, before what is alive then.
  @Test(arguments: LazyTests.Tables.allCases)
  func faultsAreToldAtTheClose(_ tables: LazyTests.Tables) throws {
    let rig = try DebugRig(tables)
    let first = try rig.dma.map(try rig.dma.buffer(byteCount: 4096), .toDevice)
    try rig.write(first.address)
    _ = rig.dma.faults
    #expect(rig.kinds == [.wrongDirection])
    let mapping = try rig.dma.map(try rig.dma.buffer(byteCount: 4096), .toDevice), address = mapping.address
    try rig.write(address)
    _ = try mapping.unmap()
    try rig.read(address)
    try rig.read(first.address + 4096)
    #expect(rig.kinds.count == 1, "nobody has looked")
    rig.device.close()
    #expect(rig.kinds == [.wrongDirection, .wrongDirection, .afterUnmap, .overrun, .aliveAtClose])
    #expect(rig.reports[1].address == address && !rig.reports[1].unmappedAt.isEmpty)
    #expect(rig.dma.debugReports.count == 5)
    rig.device.close()
    _ = rig.dma.faults
    #expect(rig.kinds.count == 5)
    _ = try first.unmap()
  }

  /// Each device of a domain is looked at when it leaves; one that is dropped is closed as well.
  @Test func faultsOfADeviceThatLeaves() throws {
    let found = Shared<[DebugReport]>([])
    let machine = SimulatedHost(devices: [LazyTests.address: EduModel(), "0000:00:03.0": EduModel()])
    let first = try Device(
      LazyTests.address, on: machine.host,
      debug: DebugOptions(onReport: { report in found.change { $0.append(report) } }))
    try first.dma.setMask(.bits(28))
    let mapping = try first.dma.map(try first.dma.buffer(byteCount: 4096), .toDevice)
    do {
      let second = try Device("0000:00:03.0", on: machine.host, sharing: first.dma)
      try EndToEndTests.transfer(second.registers(bar: 0), mapping.address, 8, toDevice: false)
      #expect(found.value.isEmpty && !second.isClosed)
    }
    #expect(found.value.map(\.kind) == [.wrongDirection])
    _ = try mapping.unmap()
    first.close()
    #expect(found.value.count == 1)
  }

  /// Without debug mode nothing is read at the close.
  @Test func otherwiseTheLogIsLeftAlone() throws {
    if unsafe getenv("SWIFT_IOMMU_DEBUG") != nil { return }
    let kernel = FaultingKernel(SimulatedHost(devices: [LazyTests.address: EduModel()]).kernel)
    try Device(LazyTests.address, on: Host(kernel: kernel)).close()
    #expect(kernel.count(of: "kernelLog") == 1)
  }
}
