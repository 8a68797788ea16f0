import IOMMU
import IOMMUSimulation
import Testing

/// What each command drops, and what it leaves: entries are really served until then.
@Suite struct SMMUCommandTests {
  /// A stage 1 with pages at `base`, 4 KiB apart, a block of 2 MiB at `block`, and a global page; all cached, and then cleared.
  struct Stale {
    let rig: SMMURig
    let stage1: Stage1
    static let base: UInt64 = 0x1000_0000, block: UInt64 = 0x1040_0000, global: UInt64 = 0x1080_0000

    init(_ machine: SimulatedMachine = .smmuv3Nested, pages: Int = 8) throws {
      rig = try SMMURig(machine)
      stage1 = Stage1(rig)
      for page in 0..<pages { stage1.map(Self.base + UInt64(page) * 4096, page: page) }
      stage1.map(Self.block, to: SMMURig.page(0), level: 2)
      stage1.map(Self.global, page: 100, Stage1.readWrite & ~(1 << 11))
      try rig.attach(try rig.nest())
      for page in 0..<pages { #expect(try rig.page(at: Self.base + UInt64(page) * 4096) == page) }
      #expect(try rig.page(at: Self.block) == 0 && rig.page(at: Self.global) == 100)
      for page in 0..<pages { stage1.clear(Self.base + UInt64(page) * 4096) }
      stage1.clear(Self.block, level: 2)
      stage1.clear(Self.global)
    }

    /// Which of the first pages are served still, `b` for the block, `g` for the global page.
    func served(_ pages: Int = 8) throws -> String {
      var text = ""
      for page in 0..<pages where try rig.access(Self.base + UInt64(page) * 4096) { text += String(page, radix: 36) }
      if try rig.access(Self.block + 0x10_0000) { text += "b" }
      if try rig.access(Self.global) { text += "g" }
      return text
    }
  }

  struct Row: Sendable, CustomTestStringConvertible {
    let name: String, word0: UInt64, word1: UInt64, left: String
    init(_ name: String, _ word0: UInt64, _ word1: UInt64, leaves left: String) {
      (self.name, self.word0, self.word1, self.left) = (name, word0, word1, left)
    }
    var testDescription: String { name }
  }

  static let asid: UInt64 = 7 << 48, base = Stale.base
  static func range(_ number: UInt64, _ scale: UInt64) -> UInt64 { 0x12 | number << 12 | scale << 20 | asid }

  static let rows = [
    Row("NH_ALL", 0x10, 0, leaves: ""),
    Row("NSNH_ALL", 0x30, 0, leaves: ""),
    Row("NH_ASID", 0x11 | asid, 0, leaves: "g"),
    Row("NH_ASID of another", 0x11 | 8 << 48, 0, leaves: "01234567bg"),
    Row("NH_VA", 0x12 | asid, base + 0x2000 | 1, leaves: "0134567bg"),
    Row("NH_VA of another ASID", 0x12 | 8 << 48, base + 0x2000 | 1, leaves: "01234567bg"),
    Row("NH_VA of another ASID, global", 0x12 | 8 << 48, Stale.global | 1, leaves: "01234567b"),
    Row("NH_VA anywhere in a block", 0x12 | asid, Stale.block + 0x1f_f000 | 1, leaves: "01234567g"),
    Row("NH_VA beside a block", 0x12 | asid, Stale.block + 0x20_0000 | 1, leaves: "01234567bg"),
    Row("NH_VAA", 0x13, base + 0x2000 | 1, leaves: "0134567bg"),
    Row("NH_VAA under any ASID", 0x13 | 8 << 48, base + 0x2000 | 1, leaves: "0134567bg"),
    Row("a range of 2 pages", range(1, 0), base + 0x1000 | 1 << 10 | 3 << 8 | 1, leaves: "034567bg"),
    Row("a range of 3 × 2 pages", range(2, 1), base | 1 << 10 | 3 << 8 | 1, leaves: "67bg"),
    Row("a range of one page", range(0, 0), base | 1 << 10 | 3 << 8 | 1, leaves: "1234567bg"),
    Row("a range without a hint", range(1, 1), base + 0x4000 | 1 << 10 | 1, leaves: "0123bg"),
    Row("a range over both sizes, no hint", range(0, 11), base | 1 << 10 | 1, leaves: "g"),
    Row("hinted at level 3, the block stays", range(0, 11), base | 1 << 10 | 3 << 8 | 1, leaves: "bg"),
    Row("hinted at level 2, the pages stay", range(0, 11), base | 1 << 10 | 2 << 8 | 1, leaves: "01234567g"),
    Row("hinted at level 1, all stay", range(0, 11), base | 1 << 10 | 1 << 8 | 1, leaves: "01234567bg"),
    Row("in granules of 16 KiB, none is of those", range(3, 0), base | 2 << 10 | 1, leaves: "01234567bg"),
    Row("in all ASIDs, a range", 0x13 | 3 << 12, base | 1 << 10 | 3 << 8 | 1, leaves: "4567bg"),
    // NUM and SCALE say nothing without TG, nor does TTL.
    Row("no granule, one page", range(7, 3), base | 2 << 8 | 1, leaves: "1234567bg"),
    Row("a range to the end of all", range(31, 31), base | 3 << 10 | 1, leaves: "01234567bg"),
    Row("ATC_INV", 0x40 | SMMURig.stream << 32, 52, leaves: "01234567bg"),
    Row("CFGI_CD", 0x05 | SMMURig.stream << 32, 1, leaves: "01234567bg"),
    Row("CFGI_CD_ALL", 0x06 | SMMURig.stream << 32, 0, leaves: "01234567bg"),
    // The tag is the kernel's, whatever the process says.
    Row("NH_ALL of another VMID", 0x10 | 99 << 32, 0, leaves: ""),
  ]

  @Test(arguments: rows)
  func command(_ row: Row) throws {
    let stale = try Stale()
    #expect(try stale.served() == "01234567bg")
    #expect(try stale.rig.invalidate(row.word0, row.word1) == 1)
    #expect(try stale.served() == row.left)
    let counters = stale.rig.counters
    let opcode = try #require(SMMUOpcode(rawValue: row.word0 == 0x30 ? 0x10 : UInt8(truncatingIfNeeded: row.word0)))
    #expect(counters.process[opcode] == 1 && counters.process.syncs == 1)
    #expect(counters.illegalCommands == 0)
    stale.rig.close()
  }

  static let kernelRows = [
    Row("TLBI_NSNH_ALL", 0x30, 0, leaves: ""),
    Row("TLBI_NH_ALL of another VMID", 0x10 | 9 << 32, 0, leaves: "01234567bg"),
    Row("TLBI_S12_VMALL", 0x28 | SMMURig.vmid, 0, leaves: ""),
    Row("TLBI_S12_VMALL of another VMID", 0x28 | 9 << 32, 0, leaves: "01234567bg"),
    Row("TLBI_S2_IPA", 0x2a | SMMURig.vmid, SMMURig.page(0) | 1, leaves: "01234567bg"),
    Row("TLBI_NH_VA of another VMID", 0x12 | asid | 9 << 32, base, leaves: "01234567bg"),
    Row("CFGI_STE", 0x03 | 0x300 << 32, 1, leaves: "01234567bg"),
    Row("CFGI_ALL", 0x04, 31, leaves: "01234567bg"),
  ]

  /// Commands as the kernel sends them, with the tag that they say: what they are about, and what not.
  @Test(arguments: kernelRows)
  func kernelCommand(_ row: Row) throws {
    let stale = try Stale()
    let before = stale.rig.counters
    stale.rig.machine.kernel.issue([(row.word0, row.word1)])
    #expect(try stale.served() == row.left)
    let after = stale.rig.counters, opcode = UInt8(truncatingIfNeeded: row.word0)
    #expect(after.kernel.syncs == before.kernel.syncs + 1 && after.process == SMMUCounters.Commands())
    // Configuration is read again after its commands alone, and stage 2 after its own.
    let ofBoth = row.left.isEmpty, isConfiguration = opcode < 0x10
    #expect((after.configurationCache.misses > before.configurationCache.misses) == isConfiguration)
    #expect((after.stage2Cache.misses > before.stage2Cache.misses) == ofBoth)
    stale.rig.close()
  }

  /// Stage 2 alone is dropped by its command, where that is about the area.
  @Test func stage2Command() throws {
    let rig = try SMMURig(), stage1 = Stage1(rig)
    for page in 0..<5 { stage1.map(UInt64(page) * 4096, page: page) }
    try rig.attach(try rig.nest())
    func misses(_ page: UInt64) throws -> Int {
      let before = rig.counters.stage2Cache.misses
      #expect(try rig.access(page * 4096))
      return rig.counters.stage2Cache.misses - before
    }
    #expect(try misses(0) == 1 && misses(1) == 0)
    rig.machine.kernel.issue([(0x2a | SMMURig.vmid, SMMURig.page(2) | 1)])
    #expect(try misses(2) == 1)
    rig.machine.kernel.issue([(0x2a | SMMURig.vmid, (SMMURig.ipa - 4096) | 1), (0x2a | 9 << 32, SMMURig.page(2) | 1)])
    #expect(try misses(3) == 0)
    // Opcodes that it does not have: of other exception levels, and none at all.
    rig.machine.kernel.issue([(0x22 | SMMURig.vmid, 0), (0xff, 0)])
    #expect(rig.counters.illegalCommands == 2)
    rig.close()
  }

  /// The same address, ASID and IPA under two tags: each has its own translations, in every cache.
  @Test func tagsAreApart() throws {
    let host = SimulatedHost(
      .smmuv3Nested, devices: [SMMURig.address: EduModel(addressBits: 64), "0000:04:00.0": EduModel(addressBits: 64)])
    let first = try SMMURig(on: host), second = try SMMURig(on: host, node: 1)
    for (rig, page) in [(first, 1), (second, 2)] {
      let stage1 = Stage1(rig)
      stage1.map(0x1000, page: page)
      stage1.map(0x2000, page: page)
      try rig.attach(try rig.nest())
      #expect(try rig.page(at: 0x1000) == page)
    }
    #expect(try first.page(at: 0x1000) == 1 && first.page(at: 0x2000) == 1 && second.page(at: 0x2000) == 2)
    for rig in [first, second] { Stage1(rig).clear(0x1000) }
    try first.invalidate([(0x12 | 7 << 48, 0x1001), (0x11 | 7 << 48, 0), (0x10, 0)])
    #expect(try !first.access(0x1000) && second.access(0x1000))
    try second.invalidate([(0x30, 0)])
    #expect(try !second.access(0x1000))
    first.leave()
    second.close()
  }

  /// Stage 2 keeps the areas that came last.
  @Test func areasAreDisplaced() throws {
    let rig = try SMMURig(), stage1 = Stage1(rig)
    // With that of the tables, one more than there is room for.
    for page in 0..<16 as Range<UInt64> {
      try rig.map(0x4000_0000 + page * 8192, offset: UInt64(SMMURig.data))
      stage1.map(page * 4096, to: 0x4000_0000 + page * 8192)
    }
    try rig.attach(try rig.nest())
    func misses(_ page: UInt64) throws -> Int {
      try rig.invalidate(0x12 | 7 << 48, page * 4096 | 1)
      let before = rig.counters.stage2Cache.misses
      #expect(try rig.access(page * 4096))
      return rig.counters.stage2Cache.misses - before
    }
    #expect(try misses(0) == 2)
    for page in 1..<16 as Range<UInt64> { #expect(try misses(page) == 1) }
    // The tables' area went, comes back in the place of page 0's; that takes page 1's place.
    #expect(try misses(15) == 1 && misses(15) == 0 && misses(0) == 1 && misses(2) == 0 && misses(1) == 1)
    rig.close()
  }

  /// Commands that the hardware refuses: the kernel takes them and steps over, and the process hears nothing.
  @Test(arguments: [true, false])
  func illegalCommands(_ hasRanges: Bool) throws {
    var machine = SimulatedMachine.smmuv3Nested
    machine.smmu.hasRangeInvalidation = hasRanges
    let stale = try Stale(machine)
    // One page of any level, the reserved way; without range invalidation, any range.
    let hint: UInt64 = hasRanges ? 0 : 3 << 8
    let illegal = (Self.range(0, 0), Self.base | 1 << 10 | hint | 1), fine = (0x12 | Self.asid, Self.base + 0x1000 | 1)
    #expect(try stale.rig.invalidate([illegal, fine]) == 2)
    let prefix = "arm-smmu-v3 arm-smmu-v3.0.auto: ", log = try stale.rig.log()
    #expect(try stale.served() == "0234567bg")
    #expect(stale.rig.counters.illegalCommands == 1)
    try #require(log.count == 4)
    #expect(log[0].hasPrefix(prefix + "CMDQ error (cons 0x") && log[0].hasSuffix("): Illegal command"))
    #expect(log[1] == prefix + "skipping command in error state:")
    #expect(log[2].hasSuffix("12") && log[3].hasSuffix(hasRanges ? "0000000010000401" : "0000000010000701"))
    stale.rig.close()
  }

  /// The longest ranges there are, at the end of all addresses: what would be beyond it is nothing, and below it all of it goes. In
  /// such numbers as no counter holds.
  @Test func rangesBeyondTheEnd() throws {
    let stale = try Stale(), longest = Self.range(31, 31)
    #expect(try stale.rig.invalidate(longest, 0xffff_ffff_ffff_f000 | 1 << 10 | 1) == 1)
    #expect(try stale.served() == "01234567bg")
    #expect(stale.rig.counters.invalidatedBytes == 4096)
    let far = [(longest, 0xfff8_0000_0000_0000 as UInt64 | 3 << 10 | 1)]
    for _ in 0..<140 {
      #expect(try stale.rig.invalidate(Array(repeating: far[0], count: 63)) == 63)
    }
    #expect(stale.rig.counters.invalidatedBytes == .max && stale.rig.counters.illegalCommands == 0)
    // Of stage 2, where a whole VMID's areas are looked at.
    stale.rig.machine.kernel.issue([(0x2a | SMMURig.vmid | 31 << 12 | 31 << 20, 0xffff_ffff_ffff_f000 | 1 << 10 | 1)])
    #expect(try stale.served() == "01234567bg")
    // From the beginning, it has them all.
    #expect(try stale.rig.invalidate(longest, 1 << 10 | 1) == 1)
    #expect(try stale.served() == "")
    stale.rig.close()
  }

  /// Ranges in the granules of larger pages.
  @Test(arguments: [(14, 2), (16, 3)] as [(UInt64, UInt64)])
  func largerGranules(_ shift: UInt64, _ granule: UInt64) throws {
    let rig = try SMMURig(), stage1 = Stage1(rig, granuleShift: shift, inputBits: 48), size = UInt64(1) << shift
    let base: UInt64 = 0x1000_0000
    for page in 0..<4 as Range<UInt64> {
      stage1.map(base + page * size, to: SMMURig.page(0) + page * size)
    }
    try rig.attach(try rig.nest())
    for page in 0..<4 as Range<UInt64> { #expect(try rig.access(base + page * size + 0x3000)) }
    for page in 0..<4 as Range<UInt64> { stage1.clear(base + page * size) }
    try rig.invalidate(0x12 | 1 << 12 | 7 << 48, base | 1 << 10 | 3 << 8 | 1)
    #expect(try rig.access(base), "another granule's range")
    try rig.invalidate(0x12 | 1 << 12 | 7 << 48, base | granule << 10 | 3 << 8 | 1)
    for page in 0..<4 as Range<UInt64> { #expect(try rig.access(base + page * size) == (page >= 2)) }
    // One address drops the page that it lies in.
    try rig.invalidate(0x12 | 7 << 48, (base + 2 * size + 0x2000) | 1)
    for page in 0..<4 as Range<UInt64> { #expect(try rig.access(base + page * size) == (page == 3)) }
    rig.close()
  }

  /// An entry is served with the permissions that it was filled with; what is not there, or not accessed, is not cached.
  @Test func whatIsCached() throws {
    let rig = try SMMURig(), stage1 = Stage1(rig)
    try rig.attach(try rig.nest())
    #expect(try !rig.access(0x1000))
    stage1.map(0x1000, page: 1, Stage1.readWrite & ~(1 << 10))
    #expect(try !rig.access(0x1000))
    stage1.map(0x1000, page: 1, Stage1.readWrite | 1 << 7)
    #expect(try rig.access(0x1000, writes: false))
    #expect(rig.counters.iotlb.misses == 3 && rig.counters.iotlb.hits == 0)
    stage1.map(0x1000, page: 1)
    #expect(try !rig.access(0x1000), "read only in the cache")
    #expect(rig.counters.iotlb.hits == 1)
    try rig.invalidate(0x12 | 7 << 48, 0x1001)
    #expect(try rig.access(0x1000))
    #expect(rig.machine.faults.map(\.reason) == [.notMapped, .accessFlag, .permission])
    rig.close()
  }

  /// The IOTLB holds as many entries as the machine says; the first filled goes first.
  @Test func theFirstFilledIsDisplaced() throws {
    var machine = SimulatedMachine.smmuv3Nested
    machine.iotlbEntryCount = 2
    let rig = try SMMURig(machine), stage1 = Stage1(rig)
    for page in 0..<3 { stage1.map(UInt64(page) * 4096, page: page) }
    try rig.attach(try rig.nest())
    #expect(try rig.access(0) && rig.access(0x1000) && rig.access(0) && rig.access(0x2000))
    for page in 0..<3 { stage1.clear(UInt64(page) * 4096) }
    #expect(try !rig.access(0) && rig.access(0x1000) && rig.access(0x2000))
    #expect(rig.counters.iotlb.misses == 4 && rig.counters.iotlb.hits == 3)
    rig.close()
  }

  /// Translations without data, for measuring: by the caches as they are, up to the first fault.
  @Test func translationsAlone() throws {
    let rig = try SMMURig(), stage1 = Stage1(rig), device = try #require(PCIAddress(SMMURig.address))
    func translated(_ addresses: [UInt64]) -> Int { rig.machine.kernel.translate(addresses, rounds: 3, for: device) }
    #expect(translated([0x1000]) == 0, "in no domain")
    for page in 0..<2 { stage1.map(UInt64(page) * 4096, page: page) }
    try rig.attach(try rig.nest())
    #expect(translated([0, 0x1000]) == 6)
    #expect(rig.counters.iotlb.misses == 2 && rig.counters.iotlb.hits == 4)
    #expect(translated([0, 0x5000, 0x1000]) == 1)
    #expect(rig.counters.events == 0 && rig.machine.faults.isEmpty)
    rig.close()
  }

  /// The same calls give the same counters, commands and log, whenever they are made.
  @Test func runsAreAlike() throws {
    func run() throws -> (SMMUCounters, SimulatedCounters, Duration, [String]) {
      let stale = try Stale()
      for row in Self.rows {
        try stale.rig.invalidate(row.word0, row.word1)
        _ = try stale.served()
      }
      defer { stale.rig.close() }
      return (stale.rig.counters, stale.rig.machine.counters, stale.rig.machine.chargedTime, try stale.rig.log())
    }
    let first = try run(), second = try run()
    #expect(first.0 == second.0 && first.1 == second.1 && first.2 == second.2 && first.3 == second.3)
    #expect(first.0.process.tlbInvalidations == 24 && first.0.process.configurationInvalidations == 2)
  }
}
