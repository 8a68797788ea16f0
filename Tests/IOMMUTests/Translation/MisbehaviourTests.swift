import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Hardware that misbehaves under tables of the process, and what holds all the same.
@Suite struct MisbehaviourTests {
  private static let name = "0000:00:02.0"

  private struct Rig {
    let hardware: NestedHardware
    let machine: SimulatedHost
    let device: Device
    var dma: DMADomain { device.dma }
    var counts: NestedHardware.Counts { hardware.counts(machine) }

    init(_ hardware: NestedHardware, _ change: (inout SimulatedMachine) -> Void = { _ in }) throws {
      var description = hardware.machine
      change(&description)
      self.hardware = hardware
      machine = SimulatedHost(description, devices: [name: ScratchModel()])
      device = try Device(name, on: machine.host, translation: .process)
    }

    func map() throws -> Mapping { try dma.map(try dma.buffer(byteCount: 4096), .bidirectional) }
    /// Whether a write of the device goes through.
    func writes(_ address: IOVA) -> Bool { machine.storm(1, from: name, at: address.rawValue) == 0 }
  }

  /// Nobody can know of an invalidation that is acknowledged and lost. What it was about stays in reach, and nothing else: until
  /// the next one that has it, and at the latest until the device is closed.
  @Test(arguments: NestedHardware.allCases) func aLostInvalidation(_ hardware: NestedHardware) throws {
    let rig = try Rig(hardware)
    let kept = try rig.map(), first = try rig.map(), second = try rig.map(), third = try rig.map()
    let all = [kept.address, first.address, second.address, third.address]
    #expect(all.allSatisfy { rig.writes($0) })
    _ = try first.unmap()
    rig.machine.loseInvalidation(1)
    _ = try second.unmap()
    _ = try third.unmap()
    #expect(all.map { rig.writes($0) } == [true, false, true, false])
    #expect(rig.counts.lostInvalidations == 1)
    // Whatever invalidates everything mends it.
    try rig.dma.switchProtection(to: .lazy(FlushQueueOptions(.single, timeout: .seconds(1000))))
    _ = try rig.map().unmap()
    try rig.dma.drain()
    #expect(all.map { rig.writes($0) } == [true, false, false, false])
    _ = try kept.unmap()
    rig.device.close()
  }

  /// A flush that is lost leaves what was queued, and the next mends it.
  @Test(arguments: NestedHardware.allCases) func aLostFlush(_ hardware: NestedHardware) throws {
    let rig = try Rig(hardware)
    try rig.dma.switchProtection(to: .lazy(FlushQueueOptions(.single, timeout: .seconds(1000))))
    let mapping = try rig.map(), address = mapping.address
    #expect(rig.writes(address))
    _ = try mapping.unmap()
    rig.machine.loseInvalidation(1)
    try rig.dma.drain()
    #expect(rig.writes(address) && rig.counts.lostInvalidations == 1)
    _ = try rig.map().unmap()
    try rig.dma.drain()
    #expect(!rig.writes(address))
    rig.device.close()
  }

  /// A device that faults without end: mapping goes on, what is kept of the faults is bounded, and it is said that some are missing.
  @Test(arguments: NestedHardware.allCases) func aStormOfFaults(_ hardware: NestedHardware) throws {
    let rig = try Rig(hardware) {
      $0.smmu.eventQueueShift = 4
      $0.vtdRegisters?.faultRegisterCount = 16
    }
    for _ in 0..<5 {
      #expect(rig.machine.storm(1000, from: Self.name, at: 0x7000_0000) == 1000)
      let mapping = try rig.map(), address = mapping.address
      #expect(rig.writes(address))
      _ = try mapping.unmap()
      #expect(!rig.writes(address))
    }
    let report = rig.dma.faults
    #expect(!report.faults.isEmpty && report.faults.count <= Limits.faults && report.mayBeIncomplete)
    #expect(report.faults.allSatisfy { $0.device == Self.name && $0.kind == .translation })
    #expect(rig.counts.lostFaults >= 4900)
    // The next one comes with its story.
    let mapping = try rig.map(), address = mapping.address
    _ = try mapping.unmap()
    #expect(!rig.writes(address))
    #expect(rig.dma.faults.faults.last?.mapping?.range.start == address)
    rig.device.close()
  }

  /// Events that the hardware had no room for: the mappings are as they were, and it is said that some are missing.
  @Test(arguments: NestedHardware.allCases) func anEventQueueOverflows(_ hardware: NestedHardware) throws {
    let rig = try Rig(hardware), mapping = try rig.map()
    #expect(!rig.writes(IOVA(0x7000_0000)))
    #expect(rig.dma.faults.count == 1 && !rig.dma.faults.mayBeIncomplete)
    rig.machine.overflowEventQueue(losing: 2)
    for page in 1...3 as ClosedRange<UInt64> { #expect(!rig.writes(IOVA(0x7000_0000 + page << 12))) }
    let report = rig.dma.faults
    #expect(report.faults.map(\.iova) == [IOVA(0x7000_0000), IOVA(0x7000_3000)] && report.mayBeIncomplete)
    #expect(rig.writes(mapping.address))
    _ = try mapping.unmap()
    rig.device.close()
  }
}

// MARK: - Queues that stand still

extension MisbehaviourTests {
  /// A queue that stands still for longer than the kernel waits for an SMMU, once: the unmap invalidates everything then. For a VT-d
  /// it waits on. Either way it is done when the unmap returns.
  @Test(arguments: NestedHardware.allCases) func aStalledQueue(_ hardware: NestedHardware) throws {
    let rig = try Rig(hardware), mapping = try rig.map(), address = mapping.address
    #expect(rig.writes(address))
    let before = rig.counts.process, began = rig.machine.chargedTime
    rig.machine.stallCommandQueue(for: .milliseconds(1200))
    _ = try mapping.unmap()
    #expect(!rig.writes(address))
    #expect(rig.machine.chargedTime - began >= .milliseconds(1200))
    #expect((rig.counts.process - before).ofTags == (hardware == .smmuv3 ? 1 : 0))
    #expect(rig.machine.smmuCounters().syncTimeouts == (hardware == .smmuv3 ? 1 : 0))
    #expect(rig.dma.statistics.leakedBytes == 0)
    rig.device.close()
  }

  /// One of an SMMU that does not come back: the unmap throws, and neither memory nor address serve anything else.
  @Test func aQueueThatStandsStill() throws {
    let rig = try Rig(.smmuv3), mapping = try rig.map(), address = mapping.address
    #expect(rig.writes(address))
    rig.machine.stallCommandQueue(for: .seconds(3))
    do throws(DMAError) {
      _ = try mapping.unmap()
      Issue.record("unmapped")
    } catch { #expect(error.errno == .timedOut) }
    #expect(rig.dma.statistics.leakedBytes == 4096 && rig.machine.smmuCounters().syncTimeouts == 2)
    for _ in 0..<20 {
      let other = try rig.map()
      #expect(other.address != address)
      // The first of them waits for the rest of the time.
      _ = try other.unmap()
    }
    #expect(!rig.writes(address), "done when the queue went on")
    rig.device.close()
  }

  /// The same under a flush: nothing is given out again before one went through.
  @Test func aFlushThatStandsStill() throws {
    let rig = try Rig(.smmuv3)
    try rig.dma.switchProtection(to: .lazy(FlushQueueOptions(.single, timeout: .seconds(1000))))
    let mapping = try rig.map(), address = mapping.address
    #expect(rig.writes(address))
    _ = try mapping.unmap()
    rig.machine.stallCommandQueue(for: .seconds(3))
    #expect { try rig.dma.drain() } throws: { ($0 as? DMAError)?.errno == .timedOut }
    #expect(rig.dma.statistics.queuedBytes == 4096 && rig.dma.statistics.failedFlushes == 1)
    try rig.dma.drain()
    #expect(rig.dma.statistics.queuedBytes == 0)
    #expect(!rig.writes(address))
    rig.device.close()
  }

  /// That of a VT-d, for which the kernel has no end of its waiting: an unmap and a flush take as long as it does, and nothing is lost.
  @Test func aVTdThatStandsStill() throws {
    let rig = try Rig(.vtd), mapping = try rig.map(), address = mapping.address
    #expect(rig.writes(address))
    let began = rig.machine.chargedTime
    rig.machine.stallCommandQueue(for: .seconds(30))
    _ = try mapping.unmap()
    #expect(rig.machine.chargedTime - began >= .seconds(30) && !rig.writes(address))
    try rig.dma.switchProtection(to: .lazy(FlushQueueOptions(.single, timeout: .seconds(1000))))
    let queued = try rig.map(), second = queued.address
    #expect(rig.writes(second))
    _ = try queued.unmap()
    rig.machine.stallCommandQueue(for: .seconds(30))
    try rig.dma.drain()
    #expect(rig.machine.chargedTime - began >= .seconds(60) && !rig.writes(second))
    let statistics = rig.dma.statistics
    #expect(statistics.leakedBytes == 0 && statistics.queuedBytes == 0 && statistics.failedFlushes == 0)
    rig.device.close()
  }
}
