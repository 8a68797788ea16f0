import AddressSpace
import Testing

struct PageSizeTests {
  @Test(arguments: 0...63 as ClosedRange<UInt8>)
  func everyPowerOfTwo(_ shift: UInt8) {
    let size = PageSize(shift: shift)
    #expect(size.byteCount == 1 << UInt64(shift))
    #expect(PageSize(byteCount: size.byteCount) == size)
    #expect(PageSize(fitting: size.byteCount) == size)
    #expect(PageSize(fitting: size.byteCount / 2 + 1) == size)
    #expect(size.isAligned(size.byteCount))
    #expect(size.mask == size.byteCount - 1)
  }

  @Test(arguments: [0, 3, 5, 4095, 4097, .max] as [UInt64])
  func refusesOtherSizes(_ byteCount: UInt64) { #expect(PageSize(byteCount: byteCount) == nil) }

  @Test func fitsTheSmallestAndNothingAbove2To63() {
    #expect(PageSize(fitting: 0)?.byteCount == 1)
    #expect(PageSize(fitting: (1 << 63) + 1) == nil)
  }

  @Test(
    arguments: [
      (0, 0 as UInt64?), (1, 4096), (4096, 4096), (4097, 8192), (.max - 4095, .max - 4095),
      (.max - 4094, nil), (.max, nil),
    ] as [(UInt64, UInt64?)])
  func alignsUp(_ value: UInt64, _ expected: UInt64?) {
    #expect(PageSize.fourKiB.alignedUp(value) == expected)
    #expect(PageSize.fourKiB.alignedDown(value) == value / 4096 * 4096)
  }

  @Test(arguments: [(0, 0), (1, 1), (4096, 1), (4097, 2), (.max, 1 << 52)] as [(UInt64, UInt64)])
  func countsPages(_ byteCount: UInt64, _ expected: UInt64) {
    #expect(PageSize.fourKiB.pageCount(covering: byteCount) == expected)
  }

  @Test(
    arguments: [(0, "1 B"), (9, "512 B"), (12, "4 KiB"), (21, "2 MiB"), (30, "1 GiB"), (63, "8 EiB")]
      as [(UInt8, String)])
  func describesItself(_ shift: UInt8, _ expected: String) {
    #expect(PageSize(shift: shift).description == expected)
  }

  @Test func isOrdered() { #expect(PageSize.fourKiB < PageSize(shift: 13)) }
}

struct PageSizesTests {
  static let x86 = PageSizes(rawValue: 1 << 12 | 1 << 21 | 1 << 30)

  @Test func namesTheExtremes() {
    #expect(Self.x86.smallest == .fourKiB)
    #expect(Self.x86.largest == PageSize(shift: 30))
    #expect(PageSizes(rawValue: 0).smallest == nil)
    #expect(PageSizes(rawValue: 0).largest == nil)
    #expect(PageSizes(rawValue: 1 << 63).largest == PageSize(shift: 63))
    #expect(Self.x86.contains(PageSize(shift: 21)))
    #expect(!Self.x86.contains(PageSize(shift: 16)))
  }

  @Test(
    arguments: [
      (0, 4095, nil), (0, 4096, 12), (0x1000, 1 << 30, 12), (0x20_0000, 0x1f_ffff, 12),
      (0x20_0000, 0x20_0000, 21),
      (1 << 30, 1 << 30, 30), (0, .max, 30), (0x800, 1 << 30, nil), (0, 0, nil),
    ] as [(UInt64, UInt64, UInt8?)])
  func picksTheLargestPage(_ bits: UInt64, _ byteCount: UInt64, _ shift: UInt8?) {
    #expect(Self.x86.largest(dividing: bits, atMost: byteCount)?.shift == shift)
  }

  /// Every bitmap of eight sizes, against trying the sizes one by one.
  @Test func picksTheLargestPageOfAnyBitmap() {
    for bitmap in UInt64(0)..<256 {
      let sizes = PageSizes(rawValue: bitmap)
      let listed = (0..<8 as Range<UInt8>).map { PageSize(shift: $0) }.filter { sizes.contains($0) }
      #expect(sizes.smallest == listed.min() && sizes.largest == listed.max())
      for bits in [0, 1, 2, 4, 12, 64, 128, 255, 256] as [UInt64] {
        for byteCount in [0, 1, 3, 4, 127, 128, 1 << 20] as [UInt64] {
          let expected = listed.filter { bits % $0.byteCount == 0 && $0.byteCount <= byteCount }.max()
          #expect(sizes.largest(dividing: bits, atMost: byteCount) == expected)
        }
      }
    }
  }
}
