import IOMMU
import IOMMUSimulation
import Testing

private let iova: UInt64 = 0x1000_0000

/// The paging-structure cache: pointers to tables are served until a command that is not for leaves only.
@Suite struct SMMUWalkCacheTests {
  /// A page under a table that is cached and then replaced by another, with another page there.
  struct Replaced {
    let rig: SMMURig
    let stage1: Stage1

    init(_ machine: SimulatedMachine = .smmuv3Nested, level: Int = 2) throws {
      rig = try SMMURig(machine)
      stage1 = Stage1(rig)
      stage1.map(iova, page: 1)
      try rig.attach(try rig.nest())
      #expect(try rig.page(at: iova) == 1)
      let entry = stage1.entry(iova, level: level)
      stage1[entry] = 0
      stage1.map(iova, page: 2)
    }
  }

  struct Row: Sendable, CustomTestStringConvertible {
    let name: String, word0: UInt64, word1: UInt64
    /// Which page is reached after: 2 when nothing stale was left.
    let page: Int
    var testDescription: String { name }
  }

  static let asid: UInt64 = 7 << 48
  static let rows = [
    Row(name: "leaf only", word0: 0x12 | asid, word1: iova | 1, page: 1),
    Row(name: "leaf only, in all ASIDs", word0: 0x13, word1: iova | 1, page: 1),
    Row(name: "leaf only, a range", word0: 0x12 | asid | 9 << 20, word1: iova | 1 << 10 | 1, page: 1),
    Row(name: "not only leaves", word0: 0x12 | asid, word1: iova, page: 2),
    Row(name: "not only leaves, in all ASIDs", word0: 0x13, word1: iova, page: 2),
    Row(name: "of another ASID", word0: 0x12 | 8 << 48, word1: iova, page: 1),
    Row(name: "anywhere under the table", word0: 0x12 | asid, word1: iova + 0x1f_f000, page: 1),
    Row(name: "a range", word0: 0x12 | asid | 9 << 20, word1: iova | 1 << 10, page: 2),
    Row(name: "a range hinted at level 3", word0: 0x12 | asid | 9 << 20, word1: iova | 1 << 10 | 3 << 8, page: 2),
    Row(name: "a range in another granule", word0: 0x12 | asid | 9 << 20, word1: iova | 2 << 10, page: 1),
    Row(name: "the ASID", word0: 0x11 | asid, word1: 0, page: 2),
    Row(name: "another ASID", word0: 0x11 | 8 << 48, word1: 0, page: 1),
    Row(name: "all", word0: 0x10, word1: 0, page: 2),
    Row(name: "configuration", word0: 0x05 | SMMURig.stream << 32, word1: 1, page: 1),
  ]

  @Test(arguments: rows)
  func command(_ row: Row) throws {
    let replaced = try Replaced()
    #expect(try replaced.rig.page(at: iova) == 1, "the page itself is cached")
    try replaced.rig.invalidate(row.word0, row.word1)
    #expect(try replaced.rig.page(at: iova) == row.page)
    replaced.rig.close()
  }

  /// A command anywhere under a table drops the table, and leaves the pages that it does not name.
  @Test func tablesGoWithAnyAddressUnderThem() throws {
    let replaced = try Replaced(), rig = replaced.rig
    try rig.invalidate(0x12 | 7 << 48, iova + 0x1f_f000)
    #expect(try rig.page(at: iova) == 1)
    // With the page gone too, the new table is found.
    try rig.invalidate(0x12 | 7 << 48, iova | 1)
    #expect(try rig.page(at: iova) == 2)
    rig.close()
  }

  /// A hint of level 2 keeps what is cached of a table at that level: no leaf is below it, says the hint.
  @Test func hintsNarrowTables() throws {
    for level in [2, 1] {
      let replaced = try Replaced(level: level), rig = replaced.rig
      try rig.invalidate([
        (0x12 | 7 << 48 | 9 << 20, iova | 1 << 10 | 2 << 8), (0x12 | 7 << 48, iova | 1),
      ])
      // A table of level 1 was dropped, that of level 2 not: by it the old page is found in both cases.
      #expect(try rig.page(at: iova) == 1, "replaced at level \(level)")
      try rig.invalidate(0x12 | 7 << 48 | 9 << 20, iova | 1 << 10 | 3 << 8)
      #expect(try rig.page(at: iova) == 2)
      rig.close()
    }
  }

  /// Walks begin below the deepest table that is known, and read fewer descriptors.
  @Test func fewerReads() throws {
    let rig = try SMMURig(), stage1 = Stage1(rig)
    for page in 0..<4 { stage1.map(iova + UInt64(page) * 4096, page: page) }
    stage1.map(iova + (1 << 30), page: 5)
    try rig.attach(try rig.nest())
    var reads: [Int] = []
    for address in [iova, iova + 0x1000, iova + 0x2000, iova + (1 << 30)] {
      let before = rig.counters.descriptorReads
      #expect(try rig.access(address))
      reads.append(rig.counters.descriptorReads - before)
    }
    #expect(reads == [3, 1, 1, 3])
    #expect(rig.counters.walkCache.hits == 2 && rig.counters.walkCache.misses == 2)
    rig.close()
  }

  /// A cache of one pointer knows the last table only.
  @Test func capacity() throws {
    var machine = SimulatedMachine.smmuv3Nested
    machine.walkCacheEntryCount = 1
    let replaced = try Replaced(machine), rig = replaced.rig
    replaced.stage1.map(iova + 0x20_0000, page: 3)
    #expect(try rig.page(at: iova + 0x20_0000) == 3)
    try rig.invalidate(0x12 | 7 << 48, iova | 1)
    #expect(try rig.page(at: iova) == 2, "displaced")
    rig.close()
  }

  /// Walks cost time only where a table of costs says so.
  @Test func cost() throws {
    func charged(_ walkLevel: UInt64) throws -> Duration {
      var machine = SimulatedMachine.smmuv3Nested
      var costs = CostTable.smmu300
      costs.walkLevel = walkLevel
      machine.costs = costs
      let rig = try SMMURig(machine), stage1 = Stage1(rig)
      stage1.map(iova, page: 1)
      try rig.attach(try rig.nest())
      let before = rig.machine.chargedTime
      #expect(try rig.access(iova) && rig.access(iova))
      defer { rig.close() }
      return rig.machine.chargedTime - before
    }
    #expect(try charged(0) == .zero)
    #expect(try charged(50) == .nanoseconds(150))
  }
}
