import AddressSpace
import AddressSpaceModels
import Testing

struct IOVARangeTests {
  @Test(
    arguments: [
      (0x1000, 0x1000, 0x1fff as UInt64?), (0, .max, .max - 1), (1, .max, .max), (2, .max, nil),
      (0x1000, 0, nil),
      (.max, 1, .max), (.max, 2, nil),
    ] as [(UInt64, UInt64, UInt64?)])
  func isMadeOfALength(_ start: UInt64, _ byteCount: UInt64, _ last: UInt64?) {
    let made = IOVARange(start: IOVA(start), byteCount: byteCount)
    #expect(made?.last.rawValue == last)
    if let made { #expect(made.byteCount == byteCount) }
  }

  @Test func isNeverEmpty() {
    #expect(IOVARange(start: IOVA(2), last: IOVA(1)) == nil)
    #expect(IOVARange(start: IOVA(2), last: IOVA(2))?.byteCount == 1)
  }

  @Test func namesTheWholeSpace() {
    #expect(IOVARange.full == range(0, .max))
    #expect(IOVARange.full.byteCount == .max)
    #expect(range(1, .max).byteCount == .max)
    #expect(range(0x1000, 0x1fff).description == "0x1000–0x1fff")
  }

  static let pairs: [(IOVARange, IOVARange, IOVARange?)] = [
    (range(0, 9), range(10, 19), nil), (range(0, 9), range(9, 19), range(9, 9)),
    (range(0, 9), range(2, 5), range(2, 5)), (range(0, .max), range(5, .max), range(5, .max)),
    (range(5, 9), range(0, 4), nil), (range(3, 3), range(3, 3), range(3, 3)),
  ]

  @Test(arguments: pairs)
  func relates(_ left: IOVARange, _ right: IOVARange, _ common: IOVARange?) {
    #expect(left.intersection(right) == common)
    #expect(right.intersection(left) == common)
    #expect(left.overlaps(right) == (common != nil))
    #expect(left.contains(right) == (common == right))
    for address in [left.start, left.last, right.start, right.last] {
      #expect((left.contains(address) && right.contains(address)) == (common?.contains(address) ?? false))
    }
  }

  @Test(
    arguments: [
      (0, 0xfff, range(0, 0xfff) as IOVARange?), (1, 0x1fff, range(0x1000, 0x1fff)), (0, 0xffe, nil),
      (1, 0x1ffe, nil),
      (0x1fff, 0x2000, nil), (0, .max, .full), (1, .max, range(0x1000, .max)),
      (.max - 0xfff, .max, range(.max - 0xfff, .max)),
      (.max - 0xffe, .max, nil), (0x800, 0x27ff, range(0x1000, 0x1fff)), (0, 0x1000, range(0, 0xfff)),
    ] as [(UInt64, UInt64, IOVARange?)])
  func trimsToWholePages(_ start: UInt64, _ last: UInt64, _ expected: IOVARange?) {
    #expect(range(start, last).trimmed(to: .fourKiB) == expected)
  }

  @Test(
    arguments: [
      (0, 0, range(0, 0xfff)), (0xfff, 0x1000, range(0, 0x1fff)), (.max, .max, range(.max - 0xfff, .max)),
      (0, .max, .full),
    ] as [(UInt64, UInt64, IOVARange)])
  func widensToWholePages(_ start: UInt64, _ last: UInt64, _ expected: IOVARange) {
    #expect(range(start, last).widened(to: .fourKiB) == expected)
  }
}

/// All ranges within 24 addresses, at the bottom, in the middle and at the top of the space, against sets.
struct IOVARangeExhaustiveTests {
  static let bases: [UInt64] = [0, 1 << 32, .max - 23]

  static func all(_ base: UInt64) -> [IOVARange] {
    (0..<24).flatMap { first in (first..<24).map { range(base + first, base + $0) } }
  }

  /// The offsets of a range's addresses from a base.
  static func offsets(_ range: IOVARange?, _ base: UInt64) -> Set<UInt64> {
    range.map { Set($0.start.rawValue - base...$0.last.rawValue - base) } ?? []
  }

  @Test(arguments: bases)
  func relationsAreThoseOfSets(_ base: UInt64) {
    let ranges = Self.all(base)
    for (position, left) in ranges.enumerated() where position % 7 == 0 {
      let leftSet = Self.offsets(left, base)
      #expect(UInt64(leftSet.count) == left.byteCount)
      for (position, right) in ranges.enumerated() where position % 5 == 0 {
        let rightSet = Self.offsets(right, base)
        #expect(Self.offsets(left.intersection(right), base) == leftSet.intersection(rightSet))
        #expect(left.overlaps(right) == !leftSet.isDisjoint(with: rightSet))
        #expect(left.contains(right) == rightSet.isSubset(of: leftSet))
      }
    }
  }

  @Test(arguments: bases, [0, 1, 2, 3] as [UInt8])
  func trimsAndWidensToPages(_ base: UInt64, _ shift: UInt8) {
    let page = PageSize(shift: shift)
    for range in Self.all(base) {
      let set = Self.offsets(range, base)
      let pages = Set((0..<24).map { $0 / page.byteCount })
      let inside = pages.filter { number in
        (0..<page.byteCount).allSatisfy { set.contains(number * page.byteCount + $0) }
      }
      let touched = pages.filter { number in
        (0..<page.byteCount).contains { set.contains(number * page.byteCount + $0) }
      }
      #expect(Self.offsets(range.trimmed(to: page), base).count == inside.count << Int(shift))
      #expect(Self.offsets(range.widened(to: page), base).count == touched.count << Int(shift))
      #expect(range.trimmed(to: page).map { $0.start.isAligned(to: page) } ?? true)
      #expect(range.widened(to: page).start.isAligned(to: page) && range.widened(to: page).contains(range))
    }
  }
}

struct IOVARangesTests {
  @Test func sortsAndMerges() {
    let made = IOVARanges([
      range(20, 29), range(0, 4), range(5, 9), range(22, 24), range(40, .max), range(.max, .max),
    ])
    #expect(made == [range(0, 9), range(20, 29), range(40, .max)])
    #expect(made.description == "[0x0–0x9, 0x14–0x1d, 0x28–0xffffffffffffffff]")
    #expect(IOVARanges([.full, range(3, 4)]) == [.full])
    #expect(IOVARanges([]).isEmpty)
  }

  @Test func complements() {
    #expect(IOVARanges([]).complement == [.full])
    #expect(IOVARanges([.full]).complement == [])
    #expect(IOVARanges([range(0, 9), range(20, 29)]).complement == [range(10, 19), range(30, .max)])
    #expect(IOVARanges([range(1, .max)]).complement == [range(0, 0)])
  }

  /// Usable space as the domain computes it: what the kernel reports, within the mask, less reserved
  /// regions and page 0.
  @Test func computesTheUsableSpace() {
    let kernel: IOVARanges = [range(0, 0xfedf_ffff), range(0xfef0_0000, (1 << 48) - 1)]
    let reserved: IOVARanges = [range(0xa_0000, 0xb_ffff), range(0, 0xfff), range(0xfee0_0000, 0xfeef_ffff)]
    let mask: IOVARanges = [DMAMask.bits(32).range]
    #expect(
      kernel.intersection(mask).subtracting(reserved)
        == [range(0x1000, 0x9_ffff), range(0xc_0000, 0xfedf_ffff), range(0xfef0_0000, 0xffff_ffff)])
  }

  @Test func trimsAndWidens() {
    let made: IOVARanges = [range(0x800, 0x17ff), range(0x1900, 0x4000)]
    #expect(made.trimmed(to: .fourKiB) == [range(0x2000, 0x3fff)])
    #expect(made.widened(to: .fourKiB) == [range(0, 0x4fff)])
    #expect(made.contains(range(0x900, 0x1000)))
    #expect(!made.contains(range(0x900, 0x1900)))
  }

  /// Set algebra against a bitmap of 64 addresses, which stand at either end of the space.
  @Test(arguments: [0, UInt64.max - 63])
  func agreesWithABitmap(_ base: UInt64) {
    var random = SplitMix64(seed: 1)
    for _ in 0..<300 {
      let (left, leftBits) = Self.random(&random, base)
      let (right, rightBits) = Self.random(&random, base)
      let window = IOVARanges([range(base, base + 63)])
      #expect(Self.bits(left, base) == leftBits)
      #expect(Self.bits(left.union(right), base) == leftBits | rightBits)
      #expect(Self.bits(left.intersection(right), base) == leftBits & rightBits)
      #expect(Self.bits(left.subtracting(right), base) == leftBits & ~rightBits)
      #expect(Self.bits(left.complement.intersection(window), base) == ~leftBits)
      for (below, above) in zip(left, left.dropFirst()) {
        #expect(below.last.rawValue + 1 < above.start.rawValue, "ranges that touch")
      }
    }
  }

  private static func random(_ random: inout SplitMix64, _ base: UInt64) -> (IOVARanges, UInt64) {
    var ranges: [IOVARange] = []
    var bits: UInt64 = 0
    for _ in 0..<Int.random(in: 0...6, using: &random) {
      let start = UInt64.random(in: 0..<64, using: &random)
      let last = UInt64.random(in: start..<min(start + 16, 64), using: &random)
      ranges.append(range(base + start, base + last))
      for bit in start...last { bits |= 1 << bit }
    }
    return (IOVARanges(ranges), bits)
  }

  private static func bits(_ ranges: IOVARanges, _ base: UInt64) -> UInt64 {
    (0..<64).reduce(0) { sum, bit in
      ranges.contains(range(base + bit, base + bit)) ? sum | 1 << bit : sum
    }
  }
}
