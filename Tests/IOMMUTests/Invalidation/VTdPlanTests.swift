import AddressSpace
import IOMMU
import PageTables
import Testing

/// The commands for a gather on VT-d, read back as the kernel rounds them, and not by who wrote them.
@Suite struct VTdPlanTests {
  /// First and last byte of what the kernel invalidates for a command: the smallest aligned power of two that has both ends, by growing
  /// one until it does.
  private static func rounded(_ command: VTdCommand) -> ClosedRange<UInt64> {
    if command.pageCount == .max { return 0 ... .max }
    let last = command.address + (command.pageCount << 12) - 1
    var size: UInt64 = 4096
    while last / size != command.address / size { size *= 2 }
    return command.address / size * size...command.address / size * size + (size - 1)
  }

  private static func commands(_ plan: borrowing VTdPlan) -> [VTdCommand] { (0..<plan.count).map { plan[$0] } }

  private static func plan(_ start: UInt64, pages: UInt64, order: UInt8 = 18, budget: Int = 8) -> [VTdCommand] {
    var gather = Gather(tracksRanges: true), plan = VTdPlan(largestOrder: order)
    gather.add(start, pages << 12, leafShift: 12)
    plan.make(for: gather, budget: budget)
    return commands(plan)
  }

  /// What commands come to is all of a range, and less than so many times its bytes; at most two, each as the kernel makes it.
  private static func check(_ commands: [VTdCommand], _ start: UInt64, pages: UInt64) -> Bool {
    let ranges = commands.map(rounded), end: UInt64 = start + pages << 12
    guard commands.count <= 2, commands.allSatisfy({ $0.isValid && $0.pageCount > 0 && $0.pageCount != .max }) else {
      return false
    }
    // As sent: the kernel has nothing to round.
    guard
      zip(commands, ranges).allSatisfy({
        $0.address == $1.lowerBound && $0.pageCount << 12 == $1.upperBound - $1.lowerBound + 1
      })
    else { return false }
    var covered = start
    for range in ranges where range.lowerBound <= covered { covered = max(covered, range.upperBound + 1) }
    let bytes = commands.reduce(0) { $0 + $1.pageCount << 12 }
    return covered >= end && bytes <= 2 * (pages << 12)
  }

  /// Ranges as the allocator makes them: of every number of pages, at multiples of the length rounded up, or of 2 MiB.
  @Test func allocatedRanges() {
    for pages in 1...4096 as ClosedRange<UInt64> {
      var alignment: UInt64 = 4096
      while alignment < pages << 12, alignment < 2 << 20 { alignment *= 2 }
      for place in [1, 2, 3, 5, 7, 511] as [UInt64] {
        let commands = Self.plan(place * alignment, pages: pages)
        #expect(
          Self.check(commands, place * alignment, pages: pages), "\(pages) pages at \(place) times their alignment")
        // What an allocation has to itself is one wait.
        if pages <= 512 { #expect(commands.count == 1) }
      }
    }
  }

  /// Ranges at any page, as callers choose addresses; across large borders too.
  @Test func anyRange() {
    for pages in 1...600 as ClosedRange<UInt64> {
      for start in [0x1000, 0x3000, 0x7_f000, 0x1f_f000, 0x3fff_f000, 0x7f_ffff_f000] as [UInt64] {
        #expect(Self.check(Self.plan(start, pages: pages), start, pages: pages), "\(pages) pages at \(start)")
      }
    }
  }

  /// A second block only where it spares something: pages at 0, by number.
  @Test(
    arguments: [
      (512, 1), (513, 2), (768, 2), (769, 1), (1024, 1), (1025, 2), (1400, 2), (1536, 2), (1537, 1), (2048, 1),
    ]
      as [(UInt64, Int)])
  func blocks(_ pages: UInt64, _ count: Int) { #expect(Self.plan(0, pages: pages).count == count) }

  /// The hint, and that neighbours are one range whatever their leaves, in any order.
  @Test func merging() {
    var gather = Gather(tracksRanges: true), plan = VTdPlan(largestOrder: 18)
    gather.add(0x3f_f000, 0x1000, leafShift: 12)
    gather.add(0x40_0000, 0x20_0000, leafShift: 21)
    gather.add(0x3f_e000, 0x1000, leafShift: 12)
    plan.make(for: gather, budget: 8)
    #expect(
      Self.commands(plan) == [
        VTdCommand(address: 0x3f_e000, pageCount: 2, leafOnly: true),
        VTdCommand(address: 0x40_0000, pageCount: 512, leafOnly: true),
      ])
    gather.add(0x9000_0000, 0x1000, leafShift: 12)
    plan.make(for: gather, budget: 8)
    #expect(Self.commands(plan).map(\.address) == [0x3f_e000, 0x40_0000, 0x9000_0000])
    plan.make(forAnythingIn: 0x9000_0000, 0x1000, budget: 8)
    #expect(Self.commands(plan) == [VTdCommand(address: 0x9000_0000, pageCount: 1)])
    #expect(Self.commands(plan).map(\.flags) == [0])
  }

  /// What does not fit the budget, a descriptor or a gather is everything; so is nothing that is known.
  @Test func everything() {
    let all = [VTdCommand.everything]
    #expect(all[0].address == 0 && all[0].pageCount == .max && all[0].flags == 0)
    #expect(Self.plan(0x1f_f000, pages: 2, budget: 1) == all && Self.plan(0, pages: 2, budget: 1) != all)
    #expect(Self.plan(0, pages: 513, budget: 1).map(\.pageCount) == [1024], "one that is not twice as large does")
    #expect(Self.plan(0, pages: 512, order: 9).count == 1 && Self.plan(0, pages: 1024, order: 9) == all)
    var gather = Gather(tracksRanges: true), plan = VTdPlan(largestOrder: 18)
    plan.make(for: gather, budget: 8)
    #expect(Self.commands(plan) == all)
    for run in 0..<8 as Range<UInt64> { gather.add(run << 20, 0x1000, leafShift: 12) }
    plan.make(for: gather, budget: 8)
    #expect(Self.commands(plan).count == 8)
    plan.make(for: gather, budget: 7)
    let isEverything = plan.isEverything
    #expect(Self.commands(plan) == all && isEverything)
    gather.add(0x9000_0000, 0x1000, leafShift: 12)
    plan.make(for: gather, budget: 9)
    #expect(Self.commands(plan) == all, "no more than there is room for")
    plan.make(forAnythingIn: 0, 1 << 47, budget: 8)
    #expect(Self.commands(plan) == all)
  }

  /// The bytes that are sent are `struct iommu_hwpt_vtd_s1_invalidate`, and no more of them than there are commands.
  @Test func bytes() throws {
    var plan = VTdPlan(largestOrder: 18)
    plan.make(forAnythingIn: 0x1234_5000, 0x1000, budget: 8)
    let sent: [UInt8] = try unsafe plan.withBytes { bytes throws(Errno) in unsafe Array(bytes) }
    let words: [UInt64] = [0x1234_5000, 1, 0]
    #expect(sent == words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } })
    #expect(MemoryLayout<VTdCommand>.size == 24)
  }

  @Test func validity() {
    let fine = VTdCommand(address: 0x4000, pageCount: 4, leafOnly: true)
    var wrong = [fine, fine, fine, fine]
    wrong[0].pageCount = 3
    wrong[1].address = 0x5000
    wrong[2].flags = 2
    wrong[3].reserved = 1
    #expect(fine.isValid && VTdCommand.everything.isValid && wrong.allSatisfy { !$0.isValid })
  }
}

/// What the registers say of nesting.
@Suite struct VTdIdentityTests {
  private static let fine = VTdIdentity(capability: 0x01d2_008c_222f_0606, extendedCapability: 0x0001_c800_84f0_0f4a)

  @Test func fields() {
    let words: [UInt64] = [1, Self.fine.capability, Self.fine.extendedCapability]
    let bytes = words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } }
    #expect(VTdIdentity(HardwareInfo(type: 1, data: bytes, capabilities: 8)) == Self.fine)
    #expect(VTdIdentity(HardwareInfo(type: 2, data: bytes, capabilities: 8)) == nil)
    #expect(VTdIdentity(HardwareInfo(type: 1, data: bytes.dropLast(), capabilities: 8)) == nil)
    #expect(Self.fine.refusal == nil && Self.fine.hasGiBLeaves && Self.fine.largestOrder == 18)
  }

  /// Each requirement has a refusal that names it.
  @Test(
    arguments: [(43, "ECAP.SMTS"), (26, "ECAP.NEST"), (46, "ECAP.SLTS"), (47, "ECAP.FLTS"), (48, "ECAP.SMPWC")]
      as [(UInt64, String)])
  func refusals(_ bit: UInt64, _ name: String) {
    var identity = Self.fine
    identity.extendedCapability &= ~(1 << bit)
    #expect(identity.refusal?.hasPrefix(name) == true)
  }

  @Test func others() {
    var identity = Self.fine
    identity.capability |= 1 << 4
    #expect(identity.refusal?.hasPrefix("CAP.RWBF") == true && identity.refusal(joining: Self.fine) != nil)
    identity = Self.fine
    identity.capability &= ~(1 << 56)
    #expect(identity.refusal == nil && Self.fine.refusal(joining: identity) == nil)
    #expect(identity.refusal(joining: Self.fine)?.hasPrefix("CAP.FL1GP") == true)
    identity = Self.fine
    identity.capability &= ~(1 << 52)
    #expect(identity.largestOrder == 2 && Self.fine.refusal(joining: identity) == nil)
    #expect(identity.refusal(joining: Self.fine)?.hasPrefix("CAP.MAMV") == true)
  }
}
