import IOMMU
import IOMMUSimulation
import Testing

/// The commands that the kernel sends for nested page tables, as they were seen on an emulator's trace.
@Suite struct SMMUKernelTests {
  /// Attached, with one page mapped and cached.
  func attached(_ machine: SimulatedMachine = .smmuv3Nested) throws -> (rig: SMMURig, stage1: Stage1, nested: UInt32) {
    let rig = try SMMURig(machine), stage1 = Stage1(rig), nested = try rig.nest()
    stage1.map(0x1000, page: 1)
    try rig.attach(nested)
    #expect(try rig.page(at: 0x1000) == 1)
    return (rig, stage1, nested)
  }

  @Test func attachAndLastDetach() throws {
    let (rig, stage1, nested) = try attached()
    #expect(rig.counters.kernel[.invalidateSTE] == 2 && rig.counters.kernel.syncs == 2)
    #expect(rig.machine.counters.configurationInvalidations == 2 && rig.machine.counters.invalidations == 0)
    stage1.clear(0x1000)
    try rig.kernel.vfioDetach(rig.device)
    var kernel = rig.counters.kernel
    #expect(kernel[.invalidateSTE] == 4 && kernel[.invalidateVMID] == 1 && kernel.syncs == 5)
    #expect(rig.machine.counters.invalidations == 1)
    #expect(try !rig.access(0x1000))
    #expect(rig.machine.faults.last?.reason == .blocked)
    // After it, unmapping stage 2 costs nothing.
    _ = try rig.kernel.ioasUnmap(rig.iommufd, ioas: rig.ioas, iova: 0, byteCount: .max)
    #expect(rig.counters.kernel == kernel)
    // The tag was clean when the device came back.
    try rig.map(SMMURig.ipa, byteCount: SMMURig.byteCount)
    try rig.attach(nested)
    #expect(try !rig.access(0x1000))
    kernel = rig.counters.kernel
    #expect(kernel[.invalidateSTE] == 6 && kernel.tlbInvalidations == 1)
    #expect(rig.counters.process == SMMUCounters.Commands())
    rig.close()
  }

  /// The tag of a nest parent that is gone is given out again, the lowest first: however many come and go, no two have the same. What
  /// is nested over one has that of the parent.
  @Test func tagsAreGivenBack() throws {
    let host = SimulatedHost(
      .smmuv3Nested, devices: [SMMURig.address: EduModel(addressBits: 64), "0000:04:00.0": EduModel(addressBits: 64)])
    let first = try SMMURig(on: host), table = try first.nest()
    for _ in 0..<3 {
      let parent = try first.kernel.hwptAllocate(
        first.iommufd, flags: HWPTFlags.nestParent, device: first.deviceID, pageTable: first.ioas)
      try first.kernel.iommufdDestroy(first.iommufd, id: parent)
    }
    try first.kernel.iommufdDestroy(first.iommufd, id: table)
    let second = try SMMURig(on: host, node: 1), stage1 = Stage1(second)
    stage1.map(0x1000, page: 2)
    try second.attach(try second.nest())
    #expect(try second.page(at: 0x1000) == 2)
    stage1.clear(0x1000)
    for tag in [1, 3, 4, 5] as [UInt64] { host.kernel.issue([(0x28 | tag << 32, 0)]) }
    #expect(try second.access(0x1000))
    host.kernel.issue([(0x28 | 2 << 32, 0)])
    #expect(try !second.access(0x1000))
    first.leave()
    second.close()
  }

  /// VMIDs of 8 bits, of which 0 is nobody's.
  @Test func noTagIsLeft() throws {
    var machine = SimulatedMachine.smmuv3Nested
    machine.smmu.has16BitVMIDs = false
    let rig = try SMMURig(machine)
    func parent() throws(Errno) -> UInt32 {
      try rig.kernel.hwptAllocate(
        rig.iommufd, flags: HWPTFlags.nestParent, device: rig.deviceID, pageTable: rig.ioas)
    }
    let last = try (0..<254).map { _ in try parent() }.last!
    #expect(throws: Errno.noSpace) { _ = try parent() }
    _ = try rig.nest()
    try rig.kernel.iommufdDestroy(rig.iommufd, id: last)
    _ = try parent()
    rig.close()
  }

  /// Moving from one nested table to another keeps the tag: what the first had cached under an ASID is served under it.
  @Test func replacingKeepsTheTag() throws {
    let (rig, stage1, _) = try attached()
    let other = Stage1(rig, asid: 7, context: 0x8_0000)
    other.map(0x1000, page: 2)
    other.map(0x2000, page: 3)
    stage1.clear(0x1000)
    try rig.attach(try rig.nest(1 | 5 << 1 | (SMMURig.ipa + 0x8_0000), 0))
    #expect(rig.counters.kernel.tlbInvalidations == 0)
    #expect(try rig.page(at: 0x1000) == 1, "the ASID is the process's to flush")
    #expect(try rig.page(at: 0x2000) == nil, "so are its tables")
    try rig.invalidate(0x11 | 7 << 48)
    #expect(try rig.page(at: 0x1000) == 2 && rig.page(at: 0x2000) == 3)
    rig.close()
  }

  /// Each area that leaves stage 2 while attached: TLBI_S2_IPA, SYNC, TLBI_NH_ALL, SYNC.
  @Test func unmappingStage2() throws {
    let (rig, stage1, _) = try attached()
    for offset in stride(from: 0, to: 0x4000 as UInt64, by: 0x1000) {
      try rig.map(0x10_0000 + offset, offset: UInt64(SMMURig.data) + offset)
    }
    stage1.map(0x2000, to: 0x10_0000)
    #expect(try rig.page(at: 0x2000) == 0)
    stage1.clear(0x1000)
    let before = rig.counters.kernel
    _ = try rig.kernel.ioasUnmap(rig.iommufd, ioas: rig.ioas, iova: 0x10_0000, byteCount: 0x4000)
    var after = rig.counters.kernel
    #expect(after[.invalidateStage2] - before[.invalidateStage2] == 4)
    #expect(after[.invalidateAll] - before[.invalidateAll] == 4 && after.syncs - before.syncs == 8)
    #expect(rig.machine.counters.invalidations == 8)
    #expect(try !rig.access(0x2000) && !rig.access(0x1000), "nothing of stage 1 is left")
    // A table's worth of pages: the driver flushes the walk first.
    let first = after
    try rig.map(0x4000_0000, byteCount: 4 << 20)
    _ = try rig.kernel.ioasUnmap(rig.iommufd, ioas: rig.ioas, iova: 0x4000_0000, byteCount: 4 << 20)
    after = rig.counters.kernel
    #expect(after[.invalidateStage2] - first[.invalidateStage2] == 3 && after.syncs - first.syncs == 6)
    rig.close()
  }

  /// Without range invalidation it is a command a page, and the whole tag for as many as a table has.
  @Test func unmappingStage2WithoutRanges() throws {
    var machine = SimulatedMachine.smmuv3Nested
    machine.smmu.hasRangeInvalidation = false
    let (rig, _, _) = try attached(machine)
    func cost(_ pages: UInt64, at ipa: UInt64) throws -> (stage2: Int, vmid: Int, all: Int, syncs: Int) {
      try rig.map(ipa, byteCount: pages * 4096)
      let before = rig.counters.kernel
      _ = try rig.kernel.ioasUnmap(rig.iommufd, ioas: rig.ioas, iova: ipa, byteCount: pages * 4096)
      let after = rig.counters.kernel
      return (
        after[.invalidateStage2] - before[.invalidateStage2], after[.invalidateVMID] - before[.invalidateVMID],
        after[.invalidateAll] - before[.invalidateAll], after.syncs - before.syncs
      )
    }
    #expect(try cost(100, at: 0x4000_1000) == (100, 0, 1, 2))
    #expect(try cost(511, at: 0x4000_1000) == (511, 0, 1, 2))
    #expect(try cost(512, at: 0x4000_1000) == (0, 1, 1, 2))
    rig.close()
  }

  /// A stage 2 command that is lost leaves a stale stage 2: seen in what is walked anew.
  @Test func stage2IsCachedToo() throws {
    let (rig, stage1, _) = try attached()
    try rig.map(0x10_0000, offset: UInt64(SMMURig.data))
    stage1.map(0x2000, to: 0x10_0000)
    #expect(try rig.page(at: 0x2000) == 0)
    rig.machine.loseInvalidation(1, from: .kernel)
    _ = try rig.kernel.ioasUnmap(rig.iommufd, ioas: rig.ioas, iova: 0x10_0000, byteCount: 4096)
    #expect(rig.counters.lostInvalidations == 1)
    #expect(try rig.page(at: 0x2000) == 0)
    // The one that empties stage 1 alone, lost, leaves translations of both.
    try rig.map(0x20_0000, offset: UInt64(SMMURig.data) + 4096)
    stage1.map(0x3000, to: 0x20_0000)
    #expect(try rig.page(at: 0x3000) == 1)
    rig.machine.loseInvalidation(2, from: .kernel)
    _ = try rig.kernel.ioasUnmap(rig.iommufd, ioas: rig.ioas, iova: 0x20_0000, byteCount: 4096)
    #expect(try rig.page(at: 0x3000) == 1)
    try rig.invalidate(0x10)
    #expect(try !rig.access(0x3000))
    rig.close()
  }

  /// Stage 2 takes in as many bits as it puts out; stage 1 as many as its descriptor says.
  @Test func apertures() throws {
    let rig = try SMMURig()
    let ranges = try rig.kernel.ioasRanges(rig.iommufd, ioas: rig.ioas)
    #expect(ranges.ranges.last?.last.rawValue == (1 << 44) - 1 && ranges.alignment == 4096)
    try rig.attach(try rig.nest())
    let attached = try rig.kernel.ioasRanges(rig.iommufd, ioas: rig.ioas).ranges
    #expect(attached.map(\.start.rawValue) == [0, 0x810_0000])
    #expect(attached.map(\.last.rawValue) == [0x7ff_ffff, (1 << 44) - 1])
    rig.close()
  }

  /// A message leaves the device by stage 1 too: without the doorbell there it faults, and arrives with it.
  @Test func messagesAreTranslated() throws {
    let rig = try SMMURig(), stage1 = Stage1(rig), event = try rig.kernel.createEvent()
    try rig.kernel.vfioSetInterrupts(rig.device, index: VFIOPCI.msi, start: 0, events: [event])
    func raised() throws -> Bool {
      try rig.registers.write(0x60, 1, width: 4)
      return try rig.kernel.takeEvent(event) != nil
    }
    try rig.attach(try rig.nest())
    #expect(try !raised())
    #expect(try rig.readEvents().map(\.words) == [[SMMURig.stream << 32 | 0x10, 2 << 40, 0x800_0040, 0]])
    stage1.map(0x800_0000, to: 0x800_0000)
    #expect(try raised())
    // Elsewhere it is a write like any.
    stage1.map(0x800_0000, page: 1)
    try rig.invalidate(0x12 | 7 << 48, 0x800_0001)
    rig.memory[SMMURig.data + 4096 + 0x40] = .max
    #expect(try !raised())
    #expect(rig.memory[SMMURig.data + 4096 + 0x40] == .max << 32)
    // The doorbell is no memory, under whatever address.
    stage1.map(0x5000, to: 0x800_0000)
    #expect(try rig.access(0x5000), "no fault of the SMMU's")
    #expect(rig.machine.model(at: SMMURig.address, as: EduModel.self)?.failedTransferCount == 1)
    // Stage 2 alone has it, and an entry that aborts does not.
    try rig.attach(try rig.nest(1 | 4 << 1, 0))
    #expect(try raised())
    try rig.attach(try rig.nest(0, 0))
    #expect(try !raised())
    rig.kernel.close(event)
    rig.close()
  }

  /// A device whose messages are off writes nothing.
  @Test func messagesThatAreOff() throws {
    let rig = try SMMURig(model: ScratchModel { _, _, bus in bus.interrupt() }), stage1 = Stage1(rig)
    stage1.map(0x800_0000, page: 1)
    try rig.attach(try rig.nest())
    rig.memory[SMMURig.data + 4096 + 0x40] = .max
    try rig.registers.write(0, 1, width: 4)
    #expect(rig.memory[SMMURig.data + 4096 + 0x40] == .max && rig.machine.faults.isEmpty)
    rig.close()
  }

  /// What it costs on the machine's clock: a command and a wait each of the kernel's, one wait a run of the process's.
  @Test func charges() throws {
    let (rig, _, _) = try attached()
    let costs = CostTable.smmu300
    func charged(_ call: () throws -> Void) throws -> UInt64 {
      let before = rig.machine.chargedTime
      try call()
      return (rig.machine.chargedTime - before).nanosecondCount
    }
    let page = (0x12 | 7 << 48, 0x1001) as (UInt64, UInt64)
    #expect(try charged { try rig.invalidate([page]) } == costs.systemCall + costs.invalidation + costs.sync)
    #expect(
      try charged { try rig.invalidate([(UInt64, UInt64)](repeating: page, count: 64)) }
        == costs.systemCall + 64 * costs.invalidation + 2 * costs.sync)
    #expect(
      try charged { try rig.kernel.vfioDetach(rig.device) } == costs.systemCall + costs.invalidation + costs.sync)
    rig.close()
  }
}

extension Duration {
  var nanosecondCount: UInt64 {
    UInt64(components.seconds) * 1_000_000_000 + UInt64(components.attoseconds / 1_000_000_000)
  }
}
