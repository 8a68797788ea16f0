import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Registered memory goes out of stage 2 an area at a time, at its end and at the domain's.
@Suite struct Stage2StepTests {
  static let machines = [SimulatedMachine.smmuv3Nested, .vtdNested, .vtd]
  private static let area = 32 << 20

  /// A device on tables of the process, and memory that nobody touches.
  @safe
  private final class Rig {
    let machine: SimulatedHost
    let kernel: FaultingKernel
    let device: Device
    let memory: UnsafeRawBufferPointer
    var dma: DMADomain { device.dma }

    init(_ machine: Int, _ byteCount: Int) throws {
      self.machine = SimulatedHost(Stage2StepTests.machines[machine], devices: ["0000:00:02.0": ScratchModel()])
      kernel = FaultingKernel(self.machine.kernel)
      device = try Device("0000:00:02.0", on: Host(kernel: kernel), translation: .process)
      unsafe memory = UnsafeRawBufferPointer(
        start: try kernel.mapMemory(byteCount: byteCount, descriptor: -1, offset: 0), count: byteCount)
      kernel.keepTimes { [host = self.machine] in
        UInt64(host.chargedTime.components.attoseconds / 1_000_000_000)
          + UInt64(host.chargedTime.components.seconds) * 1_000_000_000
      }
    }

    deinit {
      let base = unsafe UnsafeMutableRawPointer(mutating: memory.baseAddress!)
      unsafe kernel.unmapMemory(base, byteCount: memory.count)
    }

    var unmaps: Int { kernel.count(of: "ioasUnmap") }
    /// The longest call that took something out, in nanoseconds of the machine's.
    var longest: UInt64 { kernel.times(of: "ioasUnmap").max() ?? 0 }
    var pinnedBytes: UInt64 { machine.kernel.census.pinnedBytes }
    /// Invalidations that the kernel made of TLBs.
    var invalidations: Int { machine.smmuCounters().kernel.tlbInvalidations }

    func part(_ range: Range<Int>) -> UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(rebasing: memory[range]) }
  }

  private final class Live {
    var mapping: UnsafeMapping?
    init(_ mapping: consuming UnsafeMapping) { self.mapping = consume mapping }
  }

  /// Closes a domain with a registration of some length; calls, and the longest.
  private static func close(_ machine: Int, _ byteCount: Int) throws -> (calls: Int, longest: UInt64) {
    let rig = try Rig(machine, byteCount)
    let registration = try unsafe rig.dma.register(unsafe: rig.memory)
    rig.kernel.resetCounts()
    let before = rig.invalidations
    rig.device.close()
    #expect(rig.pinnedBytes == 0 && rig.machine.kernel.census.areas == 0)
    if machine == 0 { #expect(rig.invalidations == before + 1, "that of the last detach") }
    let result = (rig.unmaps, rig.longest)
    try registration.unregister()
    return result
  }

  /// However much there is, no call takes out more than an area.
  @Test(arguments: [0, 1, 2]) func closing(_ machine: Int) throws {
    let one = try Self.close(machine, Self.area), several = try Self.close(machine, 4 * Self.area + 4096)
    #expect(one.longest > 0 && several.longest == one.longest)
    #expect(several.calls == one.calls + 4)
  }

  /// Many small ones go together, as many as a call may have.
  @Test func manySmall() throws {
    let rig = try Rig(0, 1000 * 4096)
    var live: [Live] = []
    for index in 0..<1000 {
      live.append(Live(try unsafe rig.dma.map(unsafe: rig.part(index * 4096..<(index + 1) * 4096), .bidirectional)))
    }
    #expect(rig.dma.statistics.implicitRegistrations == 1000)
    rig.kernel.resetCounts()
    rig.device.close()
    // Two more are that of the tables, and the last, of whatever is left.
    #expect(rig.unmaps == 1000 / Limits.rangesOfACall + 1 + 2)
    #expect(rig.pinnedBytes == 0)
    live = []
  }

  /// And up to an area's worth.
  @Test func manyLong() throws {
    let length = 6 << 20, rig = try Rig(0, 12 * length)
    var live: [Live] = []
    for index in 0..<12 {
      live.append(Live(try unsafe rig.dma.map(unsafe: rig.part(index * length..<(index + 1) * length), .toDevice)))
    }
    rig.kernel.resetCounts()
    rig.device.close()
    #expect(rig.unmaps == 3 + 2 && rig.pinnedBytes == 0)
    live = []
  }

  /// What a call refuses goes with the last.
  @Test(arguments: [0, 1, 2]) func everyCallOfClosing(_ machine: Int) throws {
    for n in 1...60 {
      let rig = try Rig(machine, 3 * Self.area)
      let registration = try unsafe rig.dma.register(unsafe: rig.part(0..<2 * Self.area))
      let mapping = try unsafe rig.dma.map(unsafe: rig.part(2 * Self.area..<3 * Self.area), .toDevice)
      rig.kernel.resetCounts()
      rig.kernel.fail(n, except: ["waitReadable", "takeEvent"], with: .inputOutput)
      rig.device.close()
      let hasFailed = rig.kernel.hasFailed
      rig.kernel.passAll()
      #expect(
        rig.pinnedBytes == 0 && rig.machine.kernel.census.descriptors == 0, "\(n): \(rig.kernel.failedName ?? "")")
      try mapping.unmap()
      try registration.unregister()
      if !hasFailed { return }
    }
    Issue.record("closing takes more calls than that")
  }

  /// A registration ends in as many calls as it began, and where one is refused the rest is tried again, and all of it goes.
  @Test(arguments: [0, 1, 2]) func unregistering(_ machine: Int) throws {
    let rig = try Rig(machine, 3 * Self.area)
    let before = rig.pinnedBytes
    let registration = try unsafe rig.dma.register(unsafe: rig.memory)
    rig.kernel.resetCounts()
    try registration.unregister()
    #expect(rig.unmaps == 3 && rig.pinnedBytes == before)
    for n in 1...3 {
      let registration = try unsafe rig.dma.register(unsafe: rig.memory)
      rig.kernel.fail(n, of: "ioasUnmap", with: .inputOutput)
      do throws(DMAError) {
        try registration.unregister()
        Issue.record("unregistered")
      } catch { #expect(error.errno == .inputOutput) }
      #expect(rig.pinnedBytes == before + UInt64((4 - n) * Self.area))
      try rig.dma.drain()
      #expect(rig.pinnedBytes == before)
    }
    rig.device.close()
  }
}
