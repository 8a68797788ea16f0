import IOMMU
import IOMMUSimulation
import Testing

/// Stream table entries and context descriptors: what is refused, and what stage 2 has to say to them.
@Suite struct SMMUConfigurationTests {
  struct Row: Sendable, CustomTestStringConvertible {
    let name: String
    var isGood = false
    let machine: @Sendable (inout SimulatedMachine) -> Void
    let change: @Sendable (Memory) -> Void
    init(
      _ name: String, isGood: Bool = false, on machine: @escaping @Sendable (inout SimulatedMachine) -> Void = { _ in },
      _ change: @escaping @Sendable (Memory) -> Void
    ) { (self.name, self.isGood, self.machine, self.change) = (name, isGood, machine, change) }
    var testDescription: String { name }
  }

  static func set(_ bits: UInt64, _ value: UInt64 = .max) -> @Sendable (Memory) -> Void {
    { memory in memory[0] = memory[0] & ~bits | value & bits }
  }

  static let contexts: [Row] = [
    Row("as it is", isGood: true) { _ in },
    Row("V", set(1 << 31, 0)), Row("AA64", set(1 << 41, 0)), Row("A, where the SMMU only aborts", set(1 << 46, 0)),
    Row("A, where it need not", isGood: true, on: { $0.smmu.idr0 &= ~(1 << 26) }, set(1 << 46, 0)),
    Row("HA", set(1 << 43)), Row("HD", set(1 << 42)),
    Row("S, without stalls", set(1 << 44)),
    Row("S, with the choice", isGood: true, on: { $0.smmu.stallModel = .chosen }, set(1 << 44)),
    Row("no S, where stalls are forced", on: { $0.smmu.stallModel = .forced }) { _ in },
    Row("S, where stalls are forced", isGood: true, on: { $0.smmu.stallModel = .forced }, set(1 << 44)),
    Row("ENDI, little endian only", set(1 << 15)),
    Row("no ENDI, big endian only", on: { $0.smmu.tableByteOrder = .big }) { _ in },
    Row("T0SZ 15", set(0x3f, 15)), Row("T0SZ 40", set(0x3f, 40)),
    Row("TG0 3", set(3 << 6)),
    Row("no 4 KiB", on: { $0.smmu.has4KiBGranule = false }) { _ in },
    Row("no 16 KiB", on: { $0.smmu.has16KiBGranule = false }, set(3 << 6, 2 << 6)),
    Row("no 64 KiB", on: { $0.smmu.has64KiBGranule = false }, set(3 << 6, 1 << 6)),
    Row("an ASID of 8 bits", isGood: true, on: { $0.smmu.has16BitASIDs = false }, set(0xffff << 48, 0xff << 48)),
    Row("an ASID of 9 bits", on: { $0.smmu.has16BitASIDs = false }, set(0xffff << 48, 0x100 << 48)),
    Row("an ASID of 16 bits", isGood: true, set(0xffff << 48, 0xffff << 48)),
    Row("a table above IPS") { memory in
      memory[0] &= ~(7 << 32)
      memory[8] |= 1 << 32
    },
    Row("a table above OAS", on: { $0.smmu.outputBits = 40 }) { $0[8] |= 1 << 40 },
  ]

  @Test(arguments: contexts)
  func contextDescriptor(_ row: Row) throws {
    var machine = SimulatedMachine.smmuv3Nested
    row.machine(&machine)
    let rig = try SMMURig(machine), stage1 = Stage1(rig)
    stage1.map(0x1000, page: 1)
    row.change(rig.memory)
    try rig.attach(try rig.nest())
    #expect(try rig.page(at: 0x1000) == (row.isGood ? 1 : nil))
    let events = try rig.readEvents().map(\.words)
    #expect(events == (row.isGood ? [] : [[SMMURig.stream << 32 | 0x0a, 0, 0, 0]]), "C_BAD_CD")
    if !row.isGood {
      #expect(rig.machine.faults.map(\.reason) == [.configuration])
      // A bad one is not cached: what is right now is used.
      _ = Stage1(rig)
    }
    rig.close()
  }

  /// A bad descriptor is read again; a good one is served until CFGI_CD, or CFGI_CD_ALL.
  @Test(arguments: [(0x05, 1), (0x06, 0)] as [(UInt64, UInt64)])
  func descriptorsAreCached(_ operation: UInt64, _ leaf: UInt64) throws {
    let rig = try SMMURig(), stage1 = Stage1(rig)
    stage1.map(0x1000, page: 1)
    let other = Stage1(rig, asid: 8, context: 0x8_0000)
    other.map(0x1000, page: 2)
    let good = rig.memory[0]
    rig.memory[0] = 0
    try rig.attach(try rig.nest())
    #expect(try rig.page(at: 0x1000) == nil)
    rig.memory[0] = good
    #expect(try rig.page(at: 0x1000) == 1)
    // Another ASID and other tables: not seen before the command.
    (rig.memory[0], rig.memory[8]) = (rig.memory[0x8_0000], rig.memory[0x8_0008])
    #expect(try rig.page(at: 0x1000) == 1)
    try rig.invalidate([(0x10, 0), (0x11 | 7 << 48, 0)])
    #expect(try rig.page(at: 0x1000) == 1, "TLB invalidations are about translations")
    let before = rig.counters.configurationCache
    try rig.invalidate(operation | SMMURig.stream << 32, leaf)
    #expect(try rig.page(at: 0x1000) == 2)
    #expect(rig.counters.configurationCache.misses == before.misses + 1)
    rig.close()
  }

  /// The kernel's checks, `arm_smmu_validate_vste`: EIO for what a process may not say.
  @Test func entriesAreChecked() throws {
    let rig = try SMMURig(), good = 1 | 5 << 1 | SMMURig.ipa
    let allowed0: UInt64 = 0xf80f_ffff_ffff_ffff, allowed1: UInt64 = 0x3800_00ff
    for bit in 0..<64 as Range<UInt64> {
      if allowed0 >> bit & 1 == 0 {
        #expect(throws: Errno.inputOutput, "word 0, bit \(bit)") { try rig.nest(good | 1 << bit, 0) }
      }
      if allowed1 >> bit & 1 == 0 {
        #expect(throws: Errno.inputOutput, "word 1, bit \(bit)") { try rig.nest(good, 1 << bit) }
      }
    }
    for configuration in 0..<8 as Range<UInt64> where ![0, 4, 5].contains(configuration) {
      #expect(throws: Errno.inputOutput) { try rig.nest(1 | configuration << 1, 0) }
    }
    #expect(throws: Errno.inputOutput) { try rig.nest(good, 2 << 28) }
    #expect(throws: Errno.inputOutput) { try rig.nest(good, 3 << 28) }
    _ = try rig.nest(good, 1 << 28)
    _ = try rig.nest(~1, ~0)
    rig.close()
  }

  /// Without V, and with Cfg 0, every access ends without an event; with Cfg 4, addresses are IPAs.
  @Test func abortAndBypass() throws {
    let rig = try SMMURig()
    try rig.map(0x7000, offset: UInt64(SMMURig.data) + 0x5000, flags: 5)
    for entry in [0, 1] as [UInt64] {
      try rig.attach(try rig.nest(entry, 0))
      #expect(try !rig.access(SMMURig.page(0)))
      #expect(rig.machine.faults.last?.reason == .blocked)
    }
    try rig.attach(try rig.nest(1 | 4 << 1, 0))
    #expect(try rig.page(at: SMMURig.page(2)) == 2)
    #expect(try rig.access(0x7000, writes: false))
    #expect(try rig.readEvents().isEmpty && rig.log().isEmpty)
    // Faults of stage 2 are in the log only.
    #expect(try !rig.access(0x7008))
    #expect(try !rig.access(0x9008))
    #expect(rig.machine.faults.suffix(2).map(\.reason) == [.permission, .notMapped])
    #expect(try rig.readEvents().isEmpty)
    let prefix = "arm-smmu-v3 arm-smmu-v3.0.auto: "
    let lines = [
      "event 0x10 received:", "\t0x0000030000000010", "\t0x0000028000000000", "\t0x0000000000009008",
      "\t0x0000000000009000",
      "event: F_TRANSLATION client: 0000:03:00.0 sid: 0x300 ssid: 0x0 iova: 0x9008 ipa: 0x9000",
      "unpriv data write s2 \"Input address caused fault\" stag: 0x0",
    ]
    #expect(try rig.log().suffix(7) == lines.map { prefix + $0 }[...])
    rig.close()
  }

  /// Entries that the kernel takes and the hardware does not.
  @Test(arguments: [(1 << 59, 0), (0, 1 << 27)] as [(UInt64, UInt64)])
  func illegalEntries(_ word0: UInt64, _ word1: UInt64) throws {
    let rig = try SMMURig(), stage1 = Stage1(rig)
    stage1.map(0x1000, page: 1)
    try rig.attach(try rig.nest(1 | 5 << 1 | SMMURig.ipa | word0, word1))
    #expect(try !rig.access(0x1000))
    #expect(try rig.readEvents().map(\.words) == [[SMMURig.stream << 32 | 0x04, 0, 0, 0]], "C_BAD_STE")
    rig.close()
    // With substreams, and where a descriptor may ask for stalls, both are fine.
    var machine = SimulatedMachine.smmuv3Nested
    (machine.smmu.substreamBits, machine.smmu.stallModel) = (1, .chosen)
    let able = try SMMURig(machine)
    Stage1(able).map(0x1000, page: 1)
    try able.attach(try able.nest(1 | 5 << 1 | SMMURig.ipa | word0, word1))
    #expect(try able.page(at: 0x1000) == 1)
    able.close()
  }

  /// What stage 2 does not have: the descriptor, a table, the page; and the doorbell, which can be none of the first two.
  @Test func stage2OfEachRead() throws {
    func words(_ pointer: UInt64, _ change: (Stage1) -> Void) throws -> [UInt64] {
      let rig = try SMMURig(), stage1 = Stage1(rig)
      stage1.map(0x1000, page: 0)
      change(stage1)
      try rig.attach(try rig.nest(1 | 5 << 1 | pointer, 0))
      #expect(try !rig.access(0x1008))
      #expect(try rig.readEvents().isEmpty, "stage 2 is the kernel's")
      let words = try rig.log()[1...4].compactMap { UInt64($0.suffix(16), radix: 16) }
      rig.close()
      return words
    }
    let sid: UInt64 = 0x300 << 32, far: UInt64 = 0x3000_0000
    #expect(try words(far) { _ in } == [sid | 0x10, 1 << 39, 0x1008, far])
    func replaceTable(_ ipa: UInt64) -> (Stage1) -> Void { { $0[$0.entry(0x1000, level: 2)] = ipa | 3 } }
    #expect(try words(SMMURig.ipa, replaceTable(far)) == [sid | 0x10, 1 << 39 | 1 << 40, 0x1008, far])
    #expect(
      try words(SMMURig.ipa) { $0.map(0x1000, to: far) } == [sid | 0x10, 1 << 39 | 2 << 40, 0x1008, far])
    #expect(try words(0x800_0000) { _ in } == [sid | 0x09, 0, 0, 0x800_0000], "F_CD_FETCH")
    #expect(try words(SMMURig.ipa, replaceTable(0x800_0000)) == [sid | 0x0b, 1 << 40, 0x1008, 0], "F_WALK_EABT")
  }
}
