import AddressSpace
import Testing

struct IOVATests {
  @Test(
    arguments: [
      (0x1000, 0x10, 0x1010 as UInt64?), (0x1000, -0x1000, 0), (0x1000, -0x1001, nil), (.max, 0, .max),
      (.max, 1, nil), (1 << 63, .min, 0), ((1 << 63) - 1, .min, nil), (0, .max, UInt64(Int.max)),
    ] as [(UInt64, Int, UInt64?)])
  func advances(_ start: UInt64, _ byteCount: Int, _ expected: UInt64?) {
    #expect(IOVA(start).advanced(by: byteCount)?.rawValue == expected)
    if let expected {
      #expect(IOVA(start) + byteCount == IOVA(expected))
      if byteCount != .min { #expect(IOVA(expected) - byteCount == IOVA(start)) }
    }
  }

  @Test(
    arguments: [
      (0, 0, 0 as Int?), (0x1000, 0x3000, 0x2000), (0x3000, 0x1000, -0x2000), (0, .max, nil), (.max, 0, nil),
      (0, UInt64(Int.max), .max), (UInt64(Int.max), 0, -.max),
    ] as [(UInt64, UInt64, Int?)])
  func measuresDistances(_ start: UInt64, _ end: UInt64, _ expected: Int?) {
    #expect(IOVA(start).distance(to: IOVA(end)) == expected)
    if let expected { #expect(IOVA(end) - IOVA(start) == expected) }
  }

  @Test(
    arguments: [
      (0x1000, 12, 0x1000, 0x1000 as UInt64?), (0x1001, 12, 0x1000, 0x2000), (0xfff, 12, 0, 0x1000),
      (0x1f_ffff, 21, 0, 0x20_0000), (.max, 12, .max - 0xfff, nil), (.max, 0, .max, .max),
    ] as [(UInt64, UInt8, UInt64, UInt64?)])
  func aligns(_ address: UInt64, _ shift: UInt8, _ down: UInt64, _ up: UInt64?) {
    let size = PageSize(shift: shift)
    #expect(IOVA(address).alignedDown(to: size) == IOVA(down))
    #expect(IOVA(address).alignedUp(to: size)?.rawValue == up)
    #expect(IOVA(address).isAligned(to: size) == (address == down))
  }

  @Test func isAnOrderedNumberInHexadecimal() {
    #expect("\(IOVA(0x7f000))" == "0x7f000")
    #expect(IOVA(0x1000) < IOVA(0x2000))
    #expect(!(IOVA(0x1000) < IOVA(0x1000)))
    #expect(IOVA(rawValue: 7) == IOVA(7))
    #expect(Set([IOVA(1), IOVA(2), IOVA(1)]).count == 2)
  }

  @Test func overflowTraps() async {
    await #expect(processExitsWith: .failure) { _ = IOVA(.max) + 1 }
    await #expect(processExitsWith: .failure) { _ = IOVA(0) - 1 }
    await #expect(processExitsWith: .failure) { _ = IOVA(.max) - IOVA(0) }
  }
}

struct DMAMaskTests {
  @Test(
    arguments: [(1, 1), (28, 0xfff_ffff), (32, 0xffff_ffff), (48, 0xffff_ffff_ffff), (64, .max)]
      as [(Int, UInt64)])
  func reachesItsLimit(_ bits: Int, _ limit: UInt64) {
    #expect(DMAMask.bits(bits).limit == limit)
    #expect(DMAMask(bitCount: bits) == .bits(bits))
    #expect(DMAMask.bits(bits).range == IOVARange(start: IOVA(0), last: IOVA(limit)))
  }

  @Test(arguments: [Int.min, -1, 0, 65, Int.max])
  func refusesOtherNumbers(_ bits: Int) { #expect(DMAMask(bitCount: bits) == nil) }

  @Test func isOrderedByReach() {
    #expect(DMAMask.bits(28) < .bits(32))
    #expect([DMAMask.bits(64), .bits(32)].min()?.description == "32 bits")
    #expect(DMAMask.bits(1).description == "1 bit")
  }

  @Test func aWrongConstantTraps() async {
    await #expect(processExitsWith: .failure) { _ = DMAMask.bits(65) }
  }
}
