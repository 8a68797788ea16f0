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

  /// More than the machine has is refused before a page of it is taken; all that it has is asked of the kernel.
  @Test(arguments: LazyTests.Tables.allCases)
  func moreThanTheMachineHas(_ tables: LazyTests.Tables) throws {
    var description = tables.machine
    description.memoryByteCount = 3 << 20
    let rig = try StandingRig(tables, description), dma = rig.dma
    rig.kernel.resetCounts()
    // Were it not refused, nothing should be filled.
    rig.kernel.failFrom(1, of: "createMemoryFile", with: .tooManyDescriptors)
    for length in [3 << 20 + 1, 4 << 20, 1 << 32, 1 << 40, Int.max / 4] {
      do throws(DMAError) {
        _ = try dma.buffer(byteCount: length)
        Issue.record("a buffer of \(length) bytes")
      } catch {
        #expect(error.code == .outOfMemory && error.errno == nil && error.byteCount == UInt64(length + 4095) & ~4095)
        #expect(error.detail?.hasSuffix(" 3145728 bytes") == true && error.device == LazyTests.address)
      }
      do throws(DMAError) {
        _ = try dma.allocate(UInt8.self, count: length)
        Issue.record("an array of \(length) bytes")
      } catch { #expect(error.code == .outOfMemory && error.errno == nil) }
    }
    #expect(rig.kernel.count(of: "createMemoryFile") == 0)
    rig.kernel.passAll()
    // A chunk of 4 MiB would be too much by now; one that just suffices is not.
    let buffer = try dma.buffer(byteCount: 3 << 20)
    #expect(buffer.byteCount == 3 << 20)
    #expect(rig.kernel.count(of: "createMemoryFile") > 0)
    rig.device.close()
  }

  /// By default it is the memory of the machine that the process runs on.
  @Test func moreThanThisMachineHas() throws {
    let rig = try StandingRig(.process)
    // Were it not refused, nothing should be filled.
    rig.kernel.failFrom(1, of: "createMemoryFile", with: .tooManyDescriptors)
    do throws(DMAError) {
      _ = try rig.dma.buffer(byteCount: Int(MachineMemory.byteCount) + 1)
      Issue.record("a buffer")
    } catch { #expect(error.code == .outOfMemory && error.errno == nil) }
    rig.kernel.passAll()
    rig.device.close()
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
