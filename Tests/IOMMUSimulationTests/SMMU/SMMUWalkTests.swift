import IOMMU
import IOMMUSimulation
import Testing

/// Stage 1 as hardware walks it: what leads where, and every fault on the way.
@Suite struct SMMUWalkTests {
  /// The bytes of Appendix A, word by word: a set-up that a real kernel and QEMU took.
  @Test func appendixA() throws {
    let rig = try SMMURig(), ipa = SMMURig.ipa
    let registers = try rig.kernel.hardwareInfo(rig.iommufd, device: rig.deviceID)
    #expect(registers.type == 2 && registers.data.count == 40)
    rig.memory[0] = word(
      25, 1 << 8, 1 << 10, 3 << 12, 1 << 30, 1 << 31, 4 << 32, 1 << 41, 1 << 45, 1 << 46, 1 << 47, 7 << 48)
    rig.memory[8] = ipa + 0x1000
    rig.memory[24] = 0xf404_ff44
    rig.memory[0x1000] = (ipa + 0x2000) | 3
    rig.memory[0x2000 + 0x500_0000 >> 21 * 8] = (ipa + 0x3000) | 3
    let target = SMMURig.page(3)
    let attributes = word(1 << 2, 1 << 6, 3 << 8, 1 << 10, 1 << 11)
    rig.memory[0x3000] = target | 3 | attributes
    let nested = try rig.nest(word(1, 5 << 1, ipa), word(1 << 2, 1 << 4, 3 << 6))
    try rig.attach(nested)
    #expect(try rig.page(at: 0x500_0000) == 3)
    // The entry changes, and the old page is written to until the command.
    rig.memory[0x3000] = SMMURig.page(9) | 3 | attributes
    #expect(try rig.page(at: 0x500_0000) == 3)
    #expect(try rig.invalidate(0x12 | 7 << 48, 0x500_0000 | 1) == 1)
    #expect(try rig.page(at: 0x500_0000) == 9)
    // A range, an ASID, a context descriptor, all: the other commands of the appendix.
    #expect(try rig.invalidate(0x12 | 4 << 20 | 7 << 48, 0x500_0000 | 1 << 10 | 3 << 8 | 1) == 1)
    #expect(try rig.invalidate([(0x11 | 7 << 48, 0), (0x05 | 0x42 << 32, 1), (0x30, 0)]) == 3)
    #expect(try !rig.access(0x510_0000))
    #expect(try rig.readEvents().map(\.words) == [[0x42 << 32 | 0x10, 2 << 40, 0x510_0000, 0]])
    rig.close()
  }

  struct Geometry: Sendable { let granuleShift: UInt64, inputBits: UInt64, blocks: [Int] }

  static let geometries = [
    Geometry(granuleShift: 12, inputBits: 39, blocks: [1, 2]),
    Geometry(granuleShift: 12, inputBits: 48, blocks: [1, 2]),
    Geometry(granuleShift: 12, inputBits: 30, blocks: [2]), Geometry(granuleShift: 14, inputBits: 39, blocks: [2]),
    Geometry(granuleShift: 14, inputBits: 48, blocks: [2]), Geometry(granuleShift: 14, inputBits: 47, blocks: [2]),
    Geometry(granuleShift: 16, inputBits: 39, blocks: [2]), Geometry(granuleShift: 16, inputBits: 48, blocks: [2]),
    Geometry(granuleShift: 16, inputBits: 42, blocks: [2]), Geometry(granuleShift: 16, inputBits: 25, blocks: []),
  ]

  /// A page at the bottom and at the top of the input, and a block where there are such, in every geometry.
  @Test(arguments: geometries)
  func geometry(_ geometry: Geometry) throws {
    let rig = try SMMURig()
    let stage1 = Stage1(rig, granuleShift: geometry.granuleShift, inputBits: geometry.inputBits)
    let size = UInt64(1) << geometry.granuleShift, top = (1 << geometry.inputBits) - size
    // Pages of stage 1 begin on multiples of their size: 16 of data.
    for (address, page) in [(size, 0), (top, 16)] as [(UInt64, Int)] { stage1.map(address, page: page) }
    try rig.attach(try rig.nest())
    #expect(try rig.page(at: size) == 0)
    #expect(try rig.page(at: top) == 16)
    #expect(try rig.page(at: top + size - 4096) == 16 + Int(size / 4096) - 1)
    #expect(try rig.page(at: 2 * size) == nil)
    #expect(try rig.page(at: top + size) == nil, "beyond the input")
    #expect(rig.machine.faults.map(\.reason) == [.notMapped, .notMapped])
    for level in geometry.blocks {
      // A block that begins at or below the memory, and as much of stage 2 as there is.
      let block = UInt64(1) << stage1.shift(level), address = block * 2
      stage1.map(address, to: SMMURig.page(5) & ~(block - 1), level: level)
      let inside = SMMURig.page(5) & (block - 1)
      #expect(try rig.page(at: address + inside) == 5, "a block at level \(level)")
    }
    rig.close()
  }

  /// What a descriptor at a level is: blocks where the architecture has none are no translation.
  @Test(arguments: [(12, 48, 0), (14, 48, 1), (16, 48, 1)] as [(UInt64, UInt64, Int)])
  func noBlockAtThisLevel(_ granuleShift: UInt64, _ inputBits: UInt64, _ level: Int) throws {
    let rig = try SMMURig(), stage1 = Stage1(rig, granuleShift: granuleShift, inputBits: inputBits)
    stage1[stage1.entry(0, level: level)] = 1 | Stage1.readWrite
    try rig.attach(try rig.nest())
    #expect(try !rig.access(SMMURig.page(0)))
    #expect(rig.machine.faults.last?.reason == .notMapped)
    rig.close()
  }

  /// Why a walk ended, in the record: event, and bits of the second word.
  struct Fault: Sendable, CustomTestStringConvertible {
    let name: String, event: UInt64, writes: Bool
    let reason: SimulatedFault.Reason
    let change: @Sendable (Stage1) -> Void
    init(
      _ name: String, _ event: UInt64, _ reason: SimulatedFault.Reason, writes: Bool = true,
      _ change: @escaping @Sendable (Stage1) -> Void
    ) { (self.name, self.event, self.reason, self.writes, self.change) = (name, event, reason, writes, change) }
    var testDescription: String { name }
  }

  static let iova: UInt64 = 0x500_0000
  static let faults = [
    Fault("no page", 0x10, .notMapped) { $0.clear(iova) },
    Fault("no table at level 2", 0x10, .notMapped) { $0.clear(iova, level: 2) },
    Fault("no table at level 1", 0x10, .notMapped) { $0.clear(iova, level: 1) },
    Fault("a block's form at level 3", 0x10, .notMapped) { $0[$0.entry(iova)] &= ~2 },
    Fault("a page above the output", 0x11, .addressSize) { $0[$0.entry(iova)] |= 1 << 45 },
    Fault("a table above the output", 0x11, .addressSize) { $0[$0.entry(iova, level: 2)] |= 1 << 45 },
    Fault("a page above IPS", 0x11, .addressSize) { stage1 in
      // 32 bits.
      stage1.rig.memory[0] &= ~(7 << 32)
      stage1[stage1.entry(iova)] |= 1 << 33
    },
    Fault("not accessed yet", 0x12, .accessFlag) { $0[$0.entry(iova)] &= ~(1 << 10) },
    Fault("read only", 0x13, .permission) { $0[$0.entry(iova)] |= 1 << 7 },
    Fault("privileged only", 0x13, .permission, writes: false) { $0[$0.entry(iova)] &= ~(1 << 6) },
    Fault("a table that is read only", 0x13, .permission) { $0[$0.entry(iova, level: 2)] |= 1 << 62 },
    Fault("a table that is privileged only", 0x13, .permission, writes: false) {
      $0[$0.entry(iova, level: 1)] |= 1 << 61
    },
    Fault("no walks (EPD0)", 0x10, .notMapped) { $0.rig.memory[0] |= 1 << 14 },
  ]

  @Test(arguments: faults)
  func fault(_ row: Fault) throws {
    let rig = try SMMURig(), stage1 = Stage1(rig)
    stage1.map(Self.iova, page: 0)
    row.change(stage1)
    try rig.attach(try rig.nest())
    #expect(try !rig.access(Self.iova + 0x123, writes: row.writes))
    #expect(rig.machine.faults.map(\.reason) == [row.reason])
    #expect(
      try rig.readEvents().map(\.words) == [
        [SMMURig.stream << 32 | row.event, (row.writes ? 0 : 1 << 35) | 2 << 40, Self.iova + 0x123, 0]
      ])
    #expect(rig.counters.events == 1 && rig.machine.counters.faults == 1)
    #expect(try rig.log().isEmpty, "what the process is told is not in the log")
    rig.close()
  }

  /// A first table lies on a multiple of its size, whatever the low bits of its address say.
  @Test func firstTable() throws {
    let rig = try SMMURig(), stage1 = Stage1(rig)
    stage1.map(0x1000, page: 5)
    rig.memory[8] |= 0xfc0
    try rig.attach(try rig.nest())
    #expect(try rig.page(at: 0x1000) == 5)
    rig.close()
  }

  /// Reads are fine where only writes are not; attributes of tables can be switched off.
  @Test func permissions() throws {
    let rig = try SMMURig(), stage1 = Stage1(rig)
    stage1.map(0x1000, page: 0, Stage1.readWrite | 1 << 7)
    try rig.attach(try rig.nest())
    #expect(try rig.access(0x1000, writes: false))
    #expect(try !rig.access(0x1000))
    // HAD0.
    stage1.map(0x40_0000, page: 1)
    stage1[stage1.entry(0x40_0000, level: 2)] |= 1 << 62
    #expect(try !rig.access(0x40_0000))
    rig.memory[8] |= 2
    try rig.invalidate([(0x05 | SMMURig.stream << 32, 1), (0x10, 0)])
    #expect(try rig.access(0x40_0000))
    rig.close()
  }

  /// A request over several pages takes all of them, or none; the first address that fails is in the record.
  @Test func requestsCrossPages() throws {
    let rig = try SMMURig(), stage1 = Stage1(rig)
    stage1.map(0x1000, page: 5)
    stage1.map(0x2000, page: 2)
    try rig.attach(try rig.nest())
    rig.memory[SMMURig.data + 5 * 4096 + 4088] = 7
    rig.memory[SMMURig.data + 2 * 4096] = 7
    #expect(try rig.access(0x1ff8, byteCount: 16))
    #expect(rig.memory[SMMURig.data + 5 * 4096 + 4088] == 0 && rig.memory[SMMURig.data + 2 * 4096] == 0)
    rig.memory[SMMURig.data + 2 * 4096 + 4088] = 7
    #expect(try !rig.access(0x2ff8, byteCount: 16))
    #expect(rig.memory[SMMURig.data + 2 * 4096 + 4088] == 7)
    #expect(try rig.readEvents().map { $0.words[2] } == [0x3000])
    rig.close()
  }

  /// The top byte of an address says nothing with TBI0; else it is beyond the input.
  @Test func topByte() throws {
    let rig = try SMMURig(), stage1 = Stage1(rig)
    stage1.map(0x1000, page: 5)
    let nested = try rig.nest()
    try rig.attach(nested)
    #expect(try !rig.access(0xab << 56 | 0x1000))
    rig.memory[0] |= 1 << 38
    try rig.invalidate(0x05 | SMMURig.stream << 32, 1)
    #expect(try rig.page(at: 0xab << 56 | 0x1000) == 5)
    #expect(try !rig.access(1 << 55 | 0x1000))
    rig.close()
  }

  /// A context descriptor can say that faults make no events; the machine knows of them all the same.
  @Test func silentFaults() throws {
    let rig = try SMMURig(), stage1 = Stage1(rig)
    rig.memory[0] &= ~(1 << 45)
    stage1.map(0x1000, page: 0, Stage1.readWrite | 1 << 7)
    try rig.attach(try rig.nest())
    #expect(try !rig.access(0x1000))
    #expect(try !rig.access(0x5000))
    #expect(try !rig.access(1 << 50))
    #expect(rig.machine.faults.map(\.reason) == [.permission, .notMapped, .notMapped])
    #expect(try rig.readEvents().isEmpty && rig.log().isEmpty)
    rig.close()
  }

  /// Tables of the other byte order, on an SMMU that has only that, or lets the descriptor choose.
  @Test(arguments: [SMMURegisters.ByteOrder.big, .chosen])
  func bigEndianTables(_ order: SMMURegisters.ByteOrder) throws {
    var machine = SimulatedMachine.smmuv3Nested
    machine.smmu.tableByteOrder = order
    let rig = try SMMURig(machine), stage1 = Stage1(rig)
    stage1.isBigEndian = true
    rig.memory[0] |= 1 << 15
    stage1.map(0x1000, page: 6)
    try rig.attach(try rig.nest())
    #expect(try rig.page(at: 0x1000) == 6)
    rig.close()
  }

  /// A leaf that is larger than what lies together in stage 2 is cached in parts; each part leads to its own memory.
  @Test func blocksOverSeveralAreas() throws {
    let rig = try SMMURig(), stage1 = Stage1(rig)
    // Two areas in a block of 2 MiB, that meet in its middle the other way round; then pages one by one.
    let block: UInt64 = 0x4000_0000, half: UInt64 = 1 << 20, data = UInt64(SMMURig.data)
    try rig.map(block, offset: data + half, byteCount: half)
    try rig.map(block + half, offset: data, byteCount: half - 0x3000)
    try rig.map(block + 2 * half - 0x2000, offset: data + 0x7000, byteCount: 0x1000)
    stage1.map(0x800_0000_00, to: block, level: 2)
    try rig.attach(try rig.nest())
    let start: UInt64 = 0x800_0000_00
    #expect(try rig.page(at: start) == 256)
    #expect(try rig.page(at: start + half) == 0)
    #expect(try rig.page(at: start + 2 * half - 0x2000) == 7)
    #expect(try rig.page(at: start + 2 * half - 0x3000) == nil, "a hole in stage 2")
    #expect(try rig.page(at: start + 2 * half - 0x1000) == nil)
    // One command for any address in the block drops every part of it.
    stage1.clear(start, level: 2)
    #expect(try rig.page(at: start) == 256 && rig.page(at: start + half) == 0)
    try rig.invalidate(0x12 | 7 << 48, (start + 0x12_3000) | 1)
    #expect(try rig.page(at: start) == nil && rig.page(at: start + half) == nil)
    rig.close()
  }
}
