import IOMMU
import IOMMUSimulation
import Testing

/// The first stage over the second as hardware walks it: what leads where, and every fault on the way.
@Suite struct VTdWalkTests {
  static let iova: UInt64 = 0x12_3456_7000

  /// A page, leaves of 2 MiB and 1 GiB, at the bottom, at the top of the lower half and in the upper one, with four levels and five.
  @Test(arguments: [4, 5])
  func geometry(_ levels: Int) throws {
    var machine = SimulatedMachine.vtdNested
    machine.vtdRegisters!.hasFiveLevelFirstStage = true
    let rig = try VTdRig(machine), first = FirstStage(rig, levels: levels)
    let top: UInt64 = 1 << (levels == 5 ? 56 : 47)
    for (page, address) in [0x1000, top - 0x1000, 0 &- top, 0 &- 0x1000].enumerated() { first.map(address, page: page) }
    try rig.attach(try rig.nest(VTdRig.stage1(addressBits: levels == 5 ? 57 : 48)))
    for (page, address) in [0x1000, top - 0x1000, 0 &- top, 0 &- 0x1000].enumerated() {
      #expect(try rig.page(at: address) == page)
    }
    #expect(try rig.page(at: 0x2000) == nil)
    #expect(rig.machine.faults.last?.reason == .notMapped)
    #expect(try rig.page(at: top) == nil && rig.page(at: 0 &- top - 0x1000) == nil, "not canonical")
    #expect(rig.machine.faults.last?.reason == .addressSize)
    for level in [2, 3] {
      let size: UInt64 = 1 << FirstStage.shift(level)
      first.map(size * 2, to: VTdRig.page(5) & ~(size - 1), level: level)
      #expect(try rig.page(at: size * 2 + VTdRig.page(5) & (size - 1)) == 5, "a leaf of \(size)")
    }
    rig.close()
  }

  /// Why a walk ended, by the number in the log.
  struct Fault: Sendable, CustomTestStringConvertible {
    let name: String, number: String, writes: Bool
    let reason: SimulatedFault.Reason
    let change: @Sendable (FirstStage) throws -> Void
    init(
      _ name: String, _ number: String, _ reason: SimulatedFault.Reason, writes: Bool = true,
      _ change: @escaping @Sendable (FirstStage) throws -> Void
    ) { (self.name, self.number, self.reason, self.writes, self.change) = (name, number, reason, writes, change) }
    var testDescription: String { name }
  }

  static let faults = [
    Fault("no page", "0x71", .notMapped) { $0.clear(iova) },
    Fault("no table at level 1", "0x71", .notMapped) { $0.clear(iova, level: 2) },
    Fault("no table at level 3", "0x71", .notMapped) { $0.clear(iova, level: 4) },
    Fault("read only", "0x85", .permission) { $0.rig.memory[$0.entry(iova)] &= ~2 },
    Fault("a table that is read only", "0x85", .permission) { $0.rig.memory[$0.entry(iova, level: 3)] &= ~2 },
    Fault("a supervisor's page", "0x81", .permission, writes: false) { $0.rig.memory[$0.entry(iova)] &= ~4 },
    Fault("a supervisor's table", "0x81", .permission, writes: false) { $0.rig.memory[$0.entry(iova, level: 2)] &= ~4 },
    Fault("execute-disable", "0x72", .configuration) { $0.rig.memory[$0.entry(iova)] |= 1 << 63 },
    Fault("a leaf at level 4", "0x72", .configuration) { $0.rig.memory[$0.entry(iova, level: 4)] |= 1 << 7 },
    Fault("a leaf of 2 MiB that is not aligned", "0x72", .configuration) {
      $0.clear(iova, level: 2)
      $0.map(iova, to: VTdRig.ipa | 1 << 13, level: 2)
    },
    Fault("a page above the second stage", "0x74", .addressSize) { $0.rig.memory[$0.entry(iova)] |= 1 << 48 },
    Fault("a table above the second stage", "0x74", .addressSize) {
      $0.rig.memory[$0.entry(iova, level: 2)] |= 1 << 48
    },
    Fault("a page that is not in the second stage", "0x79", .notMapped) { $0.map(iova, to: 0x9000_0000) },
    Fault("a table that is not", "0x76", .configuration) {
      $0.rig.memory[$0.entry(iova, level: 3)] = 0x9000_0000 | FirstStage.table
    },
    Fault("no second stage at all", "0x75", .configuration) {
      try $0.rig.unmap(VTdRig.ipa, byteCount: VTdRig.byteCount)
    },
    Fault("interrupts", "0x87", .configuration) { _ in },
  ]

  @Test(arguments: faults)
  func fault(_ row: Fault) throws {
    let rig = try VTdRig(), first = FirstStage(rig), address = row.name == "interrupts" ? 0xfee0_0000 : Self.iova
    first.map(Self.iova, page: 0)
    try row.change(first)
    try rig.attach(try rig.nest())
    #expect(try !rig.access(address + 0x123, writes: row.writes))
    #expect(rig.machine.faults.map(\.reason) == [row.reason])
    let text = try rig.log()
    #expect(text.count == 2 && text.first == "DMAR: DRHD: handling fault status reg 2")
    let line = "DMAR: [DMA \(row.writes ? "Write" : "Read") PASID 0x0] Request device [\(VTdRig.address)] fault addr 0x"
    #expect(text.last?.hasPrefix(line + String(address, radix: 16) + " [fault reason \(row.number)] SM: ") == true)
    #expect(rig.counters.faults == 1 && rig.machine.counters.faults == 1)
    rig.close()
  }

  /// Without the register's word for it a leaf of 1 GiB is a mistake; so are the levels that there are not.
  @Test func whatHardwareLacks() throws {
    var machine = SimulatedMachine.vtdNested
    machine.vtdRegisters!.has1GiBFirstStagePages = false
    let rig = try VTdRig(machine), first = FirstStage(rig)
    first.map(1 << 30, to: 0, level: 3)
    try rig.attach(try rig.nest())
    #expect(try !rig.access(1 << 30 | VTdRig.page(0)))
    #expect(try rig.reason() == "0x72")
    rig.close()
  }

  /// Flags that are not set beforehand are set by hardware, in the process's memory: the accessed ones on the way, the dirty one of
  /// a leaf that is written to, also where a read had it cached. With all of them set it writes nothing.
  @Test func accessedAndDirty() throws {
    let rig = try VTdRig(), first = FirstStage(rig), flags: UInt64 = 1 << 5 | 1 << 6
    first.map(Self.iova, page: 3)
    try rig.attach(try rig.nest())
    #expect(try rig.page(at: Self.iova) == 3)
    #expect(rig.counters.flagUpdates == 0)
    for page in 0..<2 as Range<UInt64> {
      first.map(0x4000_0000 + page << 12, page: Int(page), FirstStage.readWrite & ~flags)
    }
    rig.memory[first.entry(0x4000_0000, level: 2)] &= ~(1 << 5)
    func leaf(_ page: UInt64) -> UInt64 { rig.memory[first.entry(0x4000_0000 + page << 12)] & flags }
    #expect(try rig.access(0x4000_0000, writes: false))
    #expect(leaf(0) == 1 << 5 && rig.memory[first.entry(0x4000_0000, level: 2)] >> 5 & 1 == 1)
    #expect(rig.counters.flagUpdates == 2)
    #expect(try rig.access(0x4000_0000))
    #expect(leaf(0) == flags && rig.counters.flagUpdates == 3)
    #expect(try rig.access(0x4000_1000))
    #expect(leaf(1) == flags && rig.counters.flagUpdates == 4, "both at once")
    #expect(try rig.access(0x4000_0000) && rig.access(0x4000_1000))
    #expect(rig.counters.flagUpdates == 4)
    rig.close()
  }

  /// A request over several pages takes all of them, or none.
  @Test func requestsCrossPages() throws {
    let rig = try VTdRig(), first = FirstStage(rig)
    first.map(0x1000, page: 5)
    first.map(0x2000, page: 2)
    try rig.attach(try rig.nest())
    rig.memory[VTdRig.data + 5 * 4096 + 4088] = 7
    rig.memory[VTdRig.data + 2 * 4096] = 7
    #expect(try rig.access(0x1ff8, byteCount: 16))
    #expect(rig.memory[VTdRig.data + 5 * 4096 + 4088] == 0 && rig.memory[VTdRig.data + 2 * 4096] == 0)
    rig.memory[VTdRig.data + 2 * 4096 + 4088] = 7
    #expect(try !rig.access(0x2ff8, byteCount: 16))
    #expect(rig.memory[VTdRig.data + 2 * 4096 + 4088] == 7 && rig.machine.faults.last?.iova == 0x3000)
    rig.close()
  }

  /// A leaf that is larger than those of the second stage is cached in parts, each with its own memory; one entry for any address
  /// in it drops every part.
  @Test func leavesOverSeveralAreas() throws {
    let rig = try VTdRig(), first = FirstStage(rig)
    let block: UInt64 = 0x4000_0000, half: UInt64 = 1 << 20, data = UInt64(VTdRig.data), start: UInt64 = 0x80_0000_0000
    try rig.map(block, offset: data + half, byteCount: half)
    try rig.map(block + half, offset: data, byteCount: half - 0x3000)
    first.map(start, to: block, level: 2)
    let nested = try rig.nest()
    try rig.attach(nested)
    #expect(try rig.page(at: start) == 256 && rig.page(at: start + half) == 0)
    #expect(try rig.page(at: start + 2 * half - 0x3000) == nil, "a hole in stage 2")
    first.clear(start, level: 2)
    #expect(try rig.page(at: start) == 256 && rig.page(at: start + half) == 0)
    try rig.invalidate(nested, [(start + 0x12_3000, 1, 1)])
    #expect(try rig.page(at: start) == nil && rig.page(at: start + half) == nil)
    rig.close()
  }

  /// Walks begin below the deepest table that is known, in both stages.
  @Test func fewerReads() throws {
    var machine = SimulatedMachine.vtdNested
    // Pages below, wherever the memory lies.
    machine.vtdRegisters!.has2MiBSecondStagePages = false
    let rig = try VTdRig(machine), first = FirstStage(rig)
    for page in 0..<4 { first.map(Self.iova + UInt64(page) << 12, page: page) }
    try rig.attach(try rig.nest())
    var reads: [Int] = [], ofFirst: [Int] = []
    for page in 0..<4 as Range<UInt64> {
      let before = rig.counters
      #expect(try rig.access(Self.iova + page << 12))
      reads.append(rig.counters.descriptorReads - before.descriptorReads)
      ofFirst.append(rig.counters.firstStageReads - before.firstStageReads)
    }
    // Four tables of the first stage, each found in the second: by four reads, and one where the table above is known; the page lies
    // under another of these.
    #expect(reads == [4 + 4 + 3 + 2, 2, 2, 2] && ofFirst == [4, 1, 1, 1])
    rig.close()
  }
}
