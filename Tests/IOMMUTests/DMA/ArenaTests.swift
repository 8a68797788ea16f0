import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// The library's own memory: how the arenas grow, and that what they hold is found.
@Suite struct ArenaTests {
  /// A mask that leaves less than a chunk of the usual size.
  @Test(arguments: Interface.allCases, [13, 14, 17])
  func smallMasks(_ interface: Interface, _ bits: Int) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel()])
    do {
      let device = try Device("0000:00:02.0", on: machine.host, interface: interface)
      #expect(throws: DMAError.self) { try device.dma.setMask(.bits(12)) }
      #expect(device.dma.mask == .bits(64))
      try device.dma.setMask(.bits(bits))
      let array = try device.dma.allocate(UInt8.self, count: 100)
      #expect(array.address.rawValue + 100 <= 1 << bits)
      #expect(throws: DMAError.self) { _ = try device.dma.allocate(UInt8.self, count: 1 << bits) }
      device.close()
    }
    #expect(machine.isClean)
  }

  /// Where the limit of lockable memory has room for what is asked, but not for a generous chunk.
  @Test(arguments: Interface.allCases)
  func littleLockableMemory(_ interface: Interface) throws {
    var description = SimulatedMachine.unprivileged
    description.memoryLockLimit = 64 << 10
    let machine = SimulatedHost(description, devices: ["0000:00:02.0": EduModel()])
    do {
      let device = try Device("0000:00:02.0", on: machine.host, interface: interface)
      let array = try device.dma.allocate(UInt64.self, count: 512)
      #expect(device.dma.statistics.coherentArenaBytes == 4096)
      do throws(DMAError) {
        _ = try device.dma.allocate(UInt8.self, count: 64 << 10)
        Issue.record("more than may be locked")
      } catch { #expect(error.code == .memoryLock && error.remedy != nil) }
      #expect(array.count == 512)
      device.close()
    }
    #expect(machine.isClean)
  }
}
