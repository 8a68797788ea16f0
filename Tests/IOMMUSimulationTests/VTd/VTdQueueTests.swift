import IOMMU
import IOMMUSimulation
import Testing

/// What each descriptor drops, and what it leaves; the queue, and the fault recording registers.
@Suite struct VTdQueueTests {
  /// Pages from ``base`` on and a leaf of 2 MiB at ``block``, all cached and then cleared.
  struct Stale {
    let rig: VTdRig
    let first: FirstStage
    let nested: UInt32
    static let base: UInt64 = 0x1000_0000, block: UInt64 = 0x1040_0000

    init(_ machine: SimulatedMachine = .vtdNested) throws {
      rig = try VTdRig(machine)
      first = FirstStage(rig)
      for page in 0..<8 { first.map(Self.base + UInt64(page) << 12, page: page) }
      first.map(Self.block, to: VTdRig.page(0), level: 2)
      nested = try rig.nest()
      try rig.attach(nested)
      for page in 0..<8 { #expect(try rig.page(at: Self.base + UInt64(page) << 12) == page) }
      #expect(try rig.page(at: Self.block) == 0)
      for page in 0..<8 { first.clear(Self.base + UInt64(page) << 12) }
      first.clear(Self.block, level: 2)
    }

    /// Which pages are served still, `b` for the block.
    func served() throws -> String {
      var text = ""
      for page in 0..<8 where try rig.access(Self.base + UInt64(page) << 12) { text += "\(page)" }
      if try rig.access(Self.block + 0x10_0000) { text += "b" }
      return text
    }
  }

  struct Row: Sendable, CustomTestStringConvertible {
    let name: String, entry: (UInt64, UInt64, UInt64), left: String
    init(_ name: String, _ address: UInt64, _ pages: UInt64, _ flags: UInt64 = 1, leaves left: String) {
      (self.name, entry, self.left) = (name, (address, pages, flags), left)
    }
    var testDescription: String { name }
  }

  static let base = Stale.base
  /// As the kernel rounds: to the smallest aligned power of two that has both ends.
  static let rows = [
    Row("everything", 0, .max, 0, leaves: ""),
    Row("everything, leaf only", 0, .max, leaves: ""),
    Row("a page", base + 0x2000, 1, leaves: "0134567b"),
    Row("two pages", base + 0x2000, 2, leaves: "014567b"),
    Row("two pages over a border", base + 0x1000, 2, leaves: "4567b"),
    Row("three pages", base + 0x4000, 3, leaves: "0123b"),
    Row("five pages", base, 5, leaves: "b"),
    Row("a page, not only leaves", base + 0x2000, 1, 0, leaves: "0134567b"),
    Row("anywhere in the block", Stale.block + 0x1f_f000, 1, leaves: "01234567"),
    Row("beside the block", Stale.block + 0x20_0000, 1, leaves: "01234567b"),
    Row("both", base, 0x500, leaves: ""),
    Row("no page is nearly all", base, 0, leaves: ""),
  ]

  @Test(arguments: rows)
  func entry(_ row: Row) throws {
    let stale = try Stale()
    #expect(try stale.served() == "01234567b")
    let before = stale.rig.counters.process
    #expect(try stale.rig.invalidate(stale.nested, [row.entry]) == 1)
    #expect(try stale.served() == row.left)
    let after = stale.rig.counters.process
    #expect(after[.pasidIOTLB] - before[.pasidIOTLB] == 1 && after.syncs - before.syncs == 1)
    stale.rig.close()
  }

  static let id: UInt64 = 2 << 16
  static func address(_ block: UInt64, order: UInt64 = 0, leafOnly: Bool = true) -> UInt64 {
    block | order | (leafOnly ? 1 << 6 : 0)
  }
  static let descriptors = [
    Row("IOTLB, global", 0x12, 0, leaves: ""), Row("IOTLB of the domain", 0x22 | id, 0, leaves: ""),
    Row("IOTLB of another", 0x22 | 9 << 16, 0, leaves: "01234567b"),
    // What was made of both stages is not known by addresses of the second.
    Row("IOTLB, any page", 0x32 | id, address(0x7000_0000), leaves: ""),
    Row("IOTLB, a page of another", 0x32 | 9 << 16, address(0x7000_0000), leaves: "01234567b"),
    Row("IOTLB, too many pages", 0x32 | id, address(0, order: 19), leaves: "01234567b"),
    Row("PASID IOTLB", 0x26 | id, 0, leaves: ""), Row("of another domain", 0x26 | 9 << 16, 0, leaves: "01234567b"),
    Row("of another PASID", 0x26 | id | 1 << 32, 0, leaves: "01234567b"),
    Row("pages of the PASID", 0x36 | id, address(base, order: 2), leaves: "4567b"),
    Row("pages of another PASID", 0x36 | id | 1 << 32, address(base, order: 2), leaves: "01234567b"),
    Row("PASID cache", 0x17 | id, 0, leaves: "01234567b"), Row("PASID cache, global", 0x37, 0, leaves: "01234567b"),
    Row("context cache", 0x31 | 0x300 << 32, 0, leaves: "01234567b"),
    Row("device TLB", 0x3, 0, leaves: "01234567b"), Row("no such type", 0xf, 0, leaves: "01234567b"),
    Row("no such granularity", 0x16 | id, 0, leaves: "01234567b"),
  ]

  /// Descriptors as the kernel puts them into the queue.
  @Test(arguments: descriptors)
  func descriptor(_ row: Row) throws {
    let stale = try Stale(), before = stale.rig.counters
    stale.rig.machine.kernel.issueVTd([(row.entry.0, row.entry.1)])
    #expect(try stale.served() == row.left)
    let after = stale.rig.counters
    let isIllegal = ["IOTLB, too many pages", "no such type", "no such granularity"].contains(row.name)
    #expect(after.illegalDescriptors == (isIllegal ? 1 : 0) && after.kernel.syncs == before.kernel.syncs + 1)
    // Configuration is read again after its descriptors alone.
    let isConfiguration = row.name.contains("cache")
    #expect((after.configurationCache.misses > before.configurationCache.misses) == isConfiguration)
    stale.rig.close()
  }

  /// Without PSI there is no page of a domain.
  @Test func withoutPageSelection() throws {
    var machine = SimulatedMachine.vtdNested
    machine.vtdRegisters!.hasPageSelectiveInvalidation = false
    let stale = try Stale(machine)
    stale.rig.machine.kernel.issueVTd([(0x32 | Self.id, Self.address(0))])
    #expect(try stale.served() == "01234567b" && stale.rig.counters.illegalDescriptors == 1)
    stale.rig.close()
  }

  /// A table that is cached and then replaced is served until a command that is not for leaves alone: IH is believed.
  @Test(arguments: [(1, 1), (0, 2)] as [(UInt64, Int)])
  func leafHint(_ flags: UInt64, _ page: Int) throws {
    let rig = try VTdRig(), first = FirstStage(rig), iova: UInt64 = 0x1000_0000
    first.map(iova, page: 1)
    let nested = try rig.nest()
    try rig.attach(nested)
    #expect(try rig.page(at: iova) == 1)
    first.clear(iova, level: 2)
    first.map(iova, page: 2)
    #expect(try rig.page(at: iova) == 1)
    try rig.invalidate(nested, [(iova, 1, flags)])
    #expect(try rig.page(at: iova) == page)
    // Any address below the table does, with the page itself.
    try rig.invalidate(nested, [(iova + 0x1f_f000, 1, 0), (iova, 1, 1)])
    #expect(try rig.page(at: iova) == 2)
    rig.close()
  }

  /// A cache of one pointer knows the last table only.
  @Test func capacity() throws {
    var machine = SimulatedMachine.vtdNested
    (machine.walkCacheEntryCount, machine.iotlbEntryCount) = (1, 1)
    let stale = try Stale(machine)
    #expect(try stale.served() == "b", "the last page that was reached")
    stale.rig.close()
  }

  @Test func lostInvalidations() throws {
    let stale = try Stale(), rig = stale.rig
    rig.machine.loseInvalidation(2)
    #expect(try rig.invalidate(stale.nested, [(0x7000_0000, 1, 1), (Self.base, 8, 1)]) == 2)
    #expect(try stale.served() == "01234567b" && rig.counters.lostInvalidations == 1)
    #expect(rig.counters.process[.pasidIOTLB] == 2 && rig.counters.process.syncs == 2, "each waits by itself")
    try rig.invalidate(stale.nested, [(Self.base, 8, 1)])
    #expect(try stale.served() == "b", "once")
    rig.machine.loseInvalidation(1)
    rig.machine.kernel.issueVTd([(0x22 | Self.id, 0)])
    #expect(try stale.served() == "", "the kernel's own do not count")
    #expect(rig.counters.lostInvalidations == 1)
    rig.close()
  }

  /// A queue that stands still takes its time, however long: the driver never gives up.
  @Test func stalledQueues() throws {
    let stale = try Stale(), rig = stale.rig
    rig.machine.stallCommandQueue(for: .milliseconds(1200))
    var before = rig.machine.chargedTime
    #expect(try rig.invalidate(stale.nested, [(0, .max, 0)]) == 1)
    #expect(rig.machine.chargedTime - before >= .milliseconds(1200))
    #expect(try stale.served() == "")
    before = rig.machine.chargedTime
    try rig.invalidate(stale.nested, [(0, .max, 0)])
    #expect(rig.machine.chargedTime - before < .milliseconds(1), "once")
    rig.close()
  }

  /// Batches of 16 with a wait each; fewer in a queue that is smaller, for whose room the driver waits then.
  @Test(arguments: [(8, 16, 1, 17, 0), (8, 17, 2, 17, 0), (8, 40, 3, 17, 0), (2, 5, 3, 3, 2), (2, 2, 1, 3, 0)])
  func batches(_ shift: Int, _ count: Int, _ waits: Int, _ deepest: Int, _ stalls: Int) throws {
    var machine = SimulatedMachine.vtdNested
    machine.invalidationQueueShift = shift
    let rig = try VTdRig(machine)
    rig.machine.kernel.issueVTd(Array(repeating: (0x26 | Self.id, 0), count: count))
    #expect(rig.counters.kernel[.pasidIOTLB] == count && rig.counters.kernel.syncs == waits)
    #expect(rig.counters.deepestQueue == deepest && rig.counters.queueStalls == stalls)
    #expect(rig.machine.queueCounts == QueueCounts(commands: count, syncs: waits, stalls: stalls))
    rig.close()
  }

  /// Others' batches take their time and their room, of 8 entries here: each of the process's entries needs one for itself, for its wait,
  /// and one that stays free. A batch is of as many descriptors as the driver puts in at a time.
  @Test(arguments: [(1, 4, 4, 0), (1, 5, 5, 2), (2, 1, 1, 0), (3, 1, 1, 2), (1, 63, 6, 2)])
  func crowds(_ batches: Int, _ asked: Int, _ each: Int, _ stalls: Int) throws {
    var machine = SimulatedMachine.vtdNested
    (machine.invalidationQueueShift, machine.costs) = (3, .vtd800)
    let stale = try Stale(machine), rig = stale.rig
    func charged() throws -> UInt64 {
      let before = rig.machine.chargedTime
      try rig.invalidate(stale.nested, [(0, 1, 1), (0, 1, 1)])
      return (rig.machine.chargedTime - before).nanosecondCount
    }
    let alone = try charged()
    rig.machine.crowdCommandQueue(batches, of: asked)
    #expect(try charged() == alone + UInt64(2 * batches * (each * 20 + 780)) && rig.counters.queueStalls == stalls)
    rig.machine.kernel.issueVTd([(0x26 | Self.id, 0)])
    #expect(rig.counters.queueStalls == stalls, "the kernel's own do not meet them")
    rig.machine.crowdCommandQueue(0)
    #expect(try charged() == alone && rig.counters.queueStalls == stalls)
    rig.close()
  }

  /// The tag of a nested table that is gone is given out again: however many come and go, no two have the same.
  @Test func tagsAreGivenBack() throws {
    let rig = try VTdRig(), stage1 = FirstStage(rig)
    for _ in 0..<3 { try rig.kernel.iommufdDestroy(rig.iommufd, id: try rig.nest()) }
    stage1.map(0x1000, page: 1)
    try rig.attach(try rig.nest())
    #expect(try rig.page(at: 0x1000) == 1)
    stage1.clear(0x1000)
    // The first is the parent's.
    for tag in [1, 3, 4, 5] as [UInt64] { rig.machine.kernel.issueVTd([(0x26 | tag << 16, 0)]) }
    #expect(try rig.access(0x1000))
    rig.machine.kernel.issueVTd([(0x26 | 2 << 16, 0)])
    #expect(try !rig.access(0x1000))
    rig.close()
  }

  /// Faults that come faster than the kernel reads the registers fill them, and what does not fit is lost, which shows.
  @Test(arguments: [1, 8])
  func faultOverflow(_ registers: Int) throws {
    var machine = SimulatedMachine.vtdNested
    machine.vtdRegisters!.faultRegisterCount = registers
    let rig = try VTdRig(machine)
    try rig.attach(try rig.nest())
    #expect(rig.machine.storm(20, from: VTdRig.address, at: 0x10_0000) == 20)
    #expect(rig.counters.faults == registers && rig.counters.lostFaults == 20 - registers)
    let lines = try rig.log()
    #expect(lines.count == 2 * registers && lines.first == "DMAR: DRHD: handling fault status reg 3")
    #expect(try !rig.access(0x5000))
    #expect(try rig.log().dropFirst(lines.count).first == "DMAR: DRHD: handling fault status reg 2", "empty again")
    rig.machine.overflowEventQueue(losing: 1)
    #expect(try !rig.access(0x5000))
    #expect(try rig.log().last == "DMAR: DRHD: handling fault status reg 1")
    rig.close()
  }

  /// What it costs on the machine's clock: for each entry a descriptor and a wait; walks where a table says so.
  @Test(arguments: [CostTable.vtd800, .vtd2000])
  func costs(_ table: CostTable) throws {
    var machine = SimulatedMachine.vtdNested
    machine.costs = table
    machine.costs!.walkLevel = 10
    let stale = try Stale(machine), rig = stale.rig
    func charged(_ call: () throws -> Void) throws -> UInt64 {
      let before = rig.machine.chargedTime
      try call()
      return (rig.machine.chargedTime - before).nanosecondCount
    }
    let wait = table.invalidation + table.sync
    #expect(wait == (table == .vtd800 ? 800 : 2000))
    #expect(try charged { try rig.invalidate(stale.nested, [(0, 1, 1)]) } == table.systemCall + wait)
    #expect(try charged { try rig.invalidate(stale.nested, [(0, 1, 1), (0, 1, 1)]) } == table.systemCall + 2 * wait)
    #expect(try charged { try rig.kernel.vfioDetach(rig.device) } == table.systemCall + wait)
    rig.close()
  }
}
