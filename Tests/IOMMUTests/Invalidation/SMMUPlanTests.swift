import AddressSpace
import IOMMU
import PageTables
import Testing

/// The commands for a gather, read back by the layout of Arm IHI 0070, 4.4.1, and not by who wrote them.
@Suite struct SMMUPlanTests {
  /// What one invalidation command covers.
  private struct Reading: Equatable {
    var first: UInt64, byteCount: UInt64
    var leafOnly: Bool
    var level: UInt64
    var asid: UInt64

    /// nil for a command that is none, or that the architecture reserves.
    init?(_ command: SMMUCommand, granule: UInt64) {
      guard command.low & 0xff == 0x12 else { return nil }
      let number = command.low >> 12 & 0x1f, scale = command.low >> 20 & 0x1f, tg = command.high >> 10 & 3
      level = command.high >> 8 & 3
      (leafOnly, asid) = (command.high & 1 == 1, command.low >> 48)
      first = command.high & ~0xfff
      if tg == 0 {
        guard number == 0, scale == 0, level == 0 else { return nil }
        byteCount = 1 << granule
      } else {
        guard !(number == 0 && scale == 0 && level == 0), 10 + tg * 2 == granule else { return nil }
        byteCount = (number + 1) << (scale + granule)
      }
    }
  }

  private static func shape(_ granule: UInt8 = 12, ranges: Bool = true) -> SMMUPlan.Shape {
    SMMUPlan.Shape(asid: 7, granule: granule, hasRanges: ranges)
  }

  private static func commands(_ plan: borrowing SMMUPlan) -> [SMMUCommand] { (0..<plan.count).map { plan[$0] } }

  /// What a plan covers, if it is contiguous and of leaves or all alike.
  private static func covered(_ plan: borrowing SMMUPlan, granule: UInt8) -> Reading? {
    let readings = commands(plan).map { Reading($0, granule: UInt64(granule)) }
    guard var all = readings.first ?? nil else { return nil }
    for reading in readings.dropFirst() {
      guard let reading, reading.first == all.first + all.byteCount, reading.leafOnly == all.leafOnly,
        reading.level == all.level
      else { return nil }
      all.byteCount += reading.byteCount
    }
    return all
  }

  /// Every number of pages up to 4,096, in leaves of one page: exactly those, in as few commands as five bits each allow.
  @Test(arguments: [12, 14, 16] as [UInt8])
  func leavesOfEveryCount(_ granule: UInt8) throws {
    for count in 1...4096 as ClosedRange<UInt64> {
      var gather = Gather(tracksRanges: true), plan = SMMUPlan(Self.shape(granule))
      gather.add(0x40_0000, count << UInt64(granule), leafShift: granule)
      plan.make(for: gather, budget: 63)
      let found = Self.covered(plan, granule: granule)
      let reading = try #require(found, "\(count) pages")
      let length: UInt64 = count << UInt64(granule)
      #expect(reading.first == 0x40_0000 && reading.byteCount == length)
      #expect(reading.leafOnly && reading.level == 3 && reading.asid == 7)
      let bits = 64 - count.leadingZeroBitCount
      let commandCount = plan.count
      #expect(commandCount <= (bits + 4) / 5)
      for command in Self.commands(plan) { #expect(command.isValid(asid: 7, hasRanges: true)) }
    }
  }

  /// The same where tables may have gone: one page more where the last five bits of the count are 1, as a command with all of
  /// NUM, SCALE and TTL zero is reserved.
  @Test(arguments: [12, 14, 16] as [UInt8])
  func anythingOfEveryCount(_ granule: UInt8) throws {
    for count in 1...4096 as ClosedRange<UInt64> {
      var plan = SMMUPlan(Self.shape(granule))
      plan.make(forAnythingIn: 0x40_0000, count << UInt64(granule), budget: 63)
      try Self.expectTables(plan, 0x40_0000, count, granule)
    }
  }

  /// By what an unmap gathered with a table that went.
  @Test(arguments: [12, 14, 16] as [UInt8])
  func tablesOfEveryCount(_ granule: UInt8) throws {
    let space = TableSpace(granule), region = UInt64(1) << UInt64(2 * granule - 3), page = UInt64(1) << UInt64(granule)
    for count in 1...4096 as ClosedRange<UInt64> {
      var gather = Gather(tracksRanges: true), plan = SMMUPlan(Self.shape(granule))
      // A page of its own at first; the other pages of the unmap follow.
      #expect(space.takeTable(region, &gather))
      if count > 1 { gather.add(region + page, (count - 1) * page, leafShift: granule) }
      let (runs, isLeafOnly) = (gather.count, gather.isLeafOnly)
      #expect(runs == 1 && !isLeafOnly)
      plan.make(for: gather, budget: 63)
      space.pool.give(back: gather.takeTables())
      try Self.expectTables(plan, region, count, granule)
    }
  }

  /// All pages and not one more than there has to be, with what is cached of the tables on the way to them.
  private static func expectTables(
    _ plan: borrowing SMMUPlan, _ start: UInt64, _ count: UInt64, _ granule: UInt8
  ) throws {
    let found = covered(plan, granule: granule), reading = try #require(found, "\(count) pages")
    let expected = count & 31 == 1 ? count + 1 : count
    #expect(reading.first == start && reading.byteCount == expected << UInt64(granule))
    #expect(!reading.leafOnly && reading.level == 0 && reading.asid == 7)
    for command in commands(plan) { #expect(command.isValid(asid: 7, hasRanges: true)) }
  }

  /// Tables of one granule.
  @safe private final class TableSpace {
    let pool: TablePool
    private let table: SMMUTable

    @safe private final class Memory: @unchecked Sendable {
      let base: UnsafeMutableRawBufferPointer
      init(_ byteCount: Int, alignment: Int) {
        unsafe base = .allocate(byteCount: byteCount, alignment: alignment)
        unsafe base.initializeMemory(as: UInt8.self, repeating: 0)
      }
      deinit { unsafe base.deallocate() }
    }

    init(_ granule: UInt8) {
      let page = PageSize(shift: granule), byteCount = 8 << Int(granule)
      let memory = Memory(byteCount, alignment: Int(page.byteCount))
      unsafe pool = TablePool(
        base: memory.base.baseAddress!, address: 1 << 40, byteCount: UInt64(byteCount), granule: page, owner: memory)
      pool.extend(byteCount: UInt64(byteCount))
      table = SMMUTable(pool: pool, inputBits: 48)!
    }

    /// Maps a page, unmaps it, and takes its table away.
    func takeTable(_ iova: UInt64, _ gather: inout Gather) -> Bool {
      let page = pool.granule.byteCount, region = page * page / 8
      var unmapped = Gather(tracksRanges: false)
      return table.map(iova: iova, to: 1 << 30, byteCount: page, attributes: .readable) == .mapped(entryCount: 1)
        && table.unmap(iova: iova, byteCount: page, into: &unmapped) == .unmapped(byteCount: page)
        && table.removeEmptyTable(iova: iova, byteCount: region, into: &gather)
    }
  }

  /// Blocks say their level.
  @Test(arguments: [(12, 21, 2), (12, 30, 1), (14, 25, 2), (16, 29, 2)] as [(UInt8, UInt8, UInt64)])
  func blocks(_ granule: UInt8, _ leaf: UInt8, _ level: UInt64) throws {
    var gather = Gather(tracksRanges: true), plan = SMMUPlan(Self.shape(granule))
    gather.add(1 << 40, 3 << UInt64(leaf), leafShift: leaf)
    plan.make(for: gather, budget: 63)
    let found = Self.covered(plan, granule: granule)
    let reading = try #require(found), count = plan.count
    #expect(count == 1 && reading.byteCount == 3 << UInt64(leaf) && reading.level == level)
  }

  /// Runs of different leaves have commands of their own.
  @Test func severalRuns() {
    var gather = Gather(tracksRanges: true), plan = SMMUPlan(Self.shape())
    gather.add(0x1000, 0x2000, leafShift: 12)
    gather.add(0x20_0000, 0x20_0000, leafShift: 21)
    gather.add(0x9000, 0x1000, leafShift: 12)
    plan.make(for: gather, budget: 63)
    let readings = Self.commands(plan).map { Reading($0, granule: 12) }
    #expect(readings.map { $0?.first } == [0x1000, 0x20_0000, 0x9000])
    #expect(readings.map { $0?.level } == [3, 2, 3])
  }

  /// Without range commands one a leaf, without any hint; 63 fit a round, and 64 are everything in one command.
  @Test(arguments: [1, 2, 62, 63, 64, 1000])
  func withoutRanges(_ count: UInt64) {
    var gather = Gather(tracksRanges: true), plan = SMMUPlan(Self.shape(ranges: false))
    gather.add(0x4000_0000, count << 21, leafShift: 21)
    plan.make(for: gather, budget: 63)
    let isEverything = plan.isEverything, commands = Self.commands(plan)
    if count > 63 {
      #expect(isEverything && commands == [SMMUCommand(low: 0x11 | 7 << 48, high: 0)])
      return
    }
    #expect(!isEverything && commands.count == Int(count))
    for (index, command) in commands.enumerated() {
      let address: UInt64 = 0x4000_0000 + UInt64(index) << 21
      #expect(command == SMMUCommand(low: 0x12 | 7 << 48, high: address | 1))
      #expect(command.isValid(asid: 7, hasRanges: false))
    }
  }

  /// What does not fit the budget is everything, and what fits is not.
  @Test func budgets() {
    for budget in 1...63 {
      for count in 1...63 as ClosedRange<UInt64> {
        var gather = Gather(tracksRanges: true), plan = SMMUPlan(Self.shape(ranges: false))
        gather.add(0x1000, count << 12, leafShift: 12)
        plan.make(for: gather, budget: budget)
        let isEverything = plan.isEverything, length = plan.count
        #expect(isEverything == (count > budget))
        #expect(length == (count > budget ? 1 : Int(count)))
      }
    }
  }

  /// More runs than a gather keeps, and more pages than a command counts.
  @Test func everything() {
    var gather = Gather(tracksRanges: true), plan = SMMUPlan(Self.shape())
    for run in 0...UInt64(Gather.capacity) { gather.add(run << 14, 0x1000, leafShift: 12) }
    plan.make(for: gather, budget: 63)
    var isEverything = plan.isEverything, length = plan.count
    #expect(isEverything && length == 1)
    plan.make(forAnythingIn: 0, 1 << 48, budget: 63)
    (isEverything, length) = (plan.isEverything, plan.count)
    #expect(isEverything && length == 1)
    // A plan can be made again.
    plan.make(forAnythingIn: 0x1000, 0x2000, budget: 63)
    (isEverything, length) = (plan.isEverything, plan.count)
    #expect(!isEverything && length == 1)
  }

  /// The bytes that are sent are the commands' words, little endian, and no more of them than there are commands.
  @Test func bytes() throws {
    var plan = SMMUPlan(Self.shape())
    plan.make(forAnythingIn: 0x1234_5000, 0x2000, budget: 63)
    let sent: [UInt8] = try unsafe plan.withBytes { bytes throws(Errno) in unsafe Array(bytes) }
    let words: [UInt64] = [0x12 | 1 << 20 | 7 << 48, 0x1234_5000 | 1 << 10]
    let expected = words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } }
    #expect(sent == expected)
  }
}

@Suite struct SMMUCommandTests {
  /// The commands of a set-up that was seen to work, word for word.
  @Test func wordsOfAWorkingSetUp() {
    #expect(SMMUCommand.page(0x500_0000, 7, leafOnly: true) == SMMUCommand(low: 0x12 | 7 << 48, high: 0x500_0000 | 1))
    #expect(
      SMMUCommand.range(0x500_0000, number: 0, scale: 4, granule: 12, level: 3, 7, leafOnly: true)
        == SMMUCommand(low: 0x12 | 4 << 20 | 7 << 48, high: 0x500_0000 | 1 << 10 | 3 << 8 | 1))
    #expect(SMMUCommand.addressSpace(7) == SMMUCommand(low: 0x11 | 7 << 48, high: 0))
    #expect(SMMUCommand.contextDescriptor(stream: 0x42) == SMMUCommand(low: 0x05 | 0x42 << 32, high: 1))
  }

  /// What is not ours to send, or would be refused with its round, is known before.
  @Test(
    arguments: [
      (0x30, 0), (0x46, 0), (0x12, 0), (0x11 | 8 << 48, 0), (0x11 | 7 << 48, 1), (0x12 | 7 << 48 | 1 << 32, 0x1000),
      (0x12 | 7 << 48 | 1 << 8, 0x1000), (0x12 | 7 << 48 | 1 << 17, 0x1000), (0x12 | 7 << 48, 0x1002),
      (0x12 | 7 << 48, 0x1100), (0x12 | 7 << 48, 0x1400), (0x12 | 7 << 48 | 1 << 12, 0x1000), (0x05 | 1 << 12, 1),
      (0x05, 0),
    ] as [(UInt64, UInt64)])
  func invalid(_ low: UInt64, _ high: UInt64) {
    #expect(!SMMUCommand(low: low, high: high).isValid(asid: 7, hasRanges: true))
  }

  @Test func rangesNeedHardware() {
    let command = SMMUCommand.range(0x1000, number: 1, scale: 0, granule: 12, level: 3, 7, leafOnly: true)
    #expect(command.isValid(asid: 7, hasRanges: true) && !command.isValid(asid: 7, hasRanges: false))
  }
}
