import AddressSpace
import IOMMU
import PageTables
import Testing

@Suite struct SMMUIdentityTests {
  /// An emulated SMMU's registers, as `IOMMU_GET_HW_INFO` gave them.
  private static let emulated: [UInt32] = [0x0d44_101b, 0x0273_0010, 0, 0x1414, 0, 0x74, 0, 1]

  private static func info(_ words: [UInt32], type: UInt32 = 2) -> HardwareInfo {
    let bytes = ([0, 0] + words).flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } }
    return HardwareInfo(type: type, data: bytes, capabilities: 8)
  }

  private static func identity(_ change: (inout [UInt32]) -> Void = { _ in }) -> SMMUIdentity {
    var words = emulated
    change(&words)
    return SMMUIdentity(info(words))!
  }

  @Test func fields() {
    let identity = Self.identity()
    #expect(identity.hasRanges && identity.streamBits == 16)
    #expect(identity.granules.rawValue == 1 << 12 | 1 << 14 | 1 << 16)
    #expect(identity.refusal(page: 4096) == nil)
    #expect(identity.granule(page: 4096)?.byteCount == 4096)
    #expect(identity.granule(page: 65536)?.byteCount == 65536)
    #expect(SMMUIdentity(Self.info(Self.emulated, type: 1)) == nil)
    #expect(SMMUIdentity(HardwareInfo(type: 2, data: Array(repeating: 0, count: 31), capabilities: 0)) == nil)
  }

  /// Without range commands, and with 8 bits of ASID, it nests all the same.
  @Test func whatIsMissing() {
    let without = Self.identity { $0[3] &= ~(1 << 10) }
    #expect(!without.hasRanges && without.refusal(page: 4096) == nil)
    let small = Self.identity { $0[0] &= ~(1 << 12) }
    #expect(small.refusal(page: 4096) == nil)
  }

  /// Each requirement has a refusal that names it.
  @Test func refusals() {
    let cases: [(String, SMMUIdentity)] = [
      ("IDR0.TTF", Self.identity { $0[0] &= ~0xc | 4 }),
      ("IDR0.TTENDIAN", Self.identity { $0[0] |= 3 << 21 }),
      ("IDR0.STALL_MODEL", Self.identity { $0[0] = $0[0] & ~(3 << 24) | 2 << 24 }),
      ("IDR1.SIDSIZE", Self.identity { $0[1] &= ~0x3f }),
      ("IDR5", Self.identity { $0[5] &= ~0x70 }),
    ]
    for (name, identity) in cases { #expect(identity.refusal(page: 4096)?.hasPrefix(name) == true, "\(name)") }
    // Pages of 64 KiB only, over a stage 2 of 4 KiB.
    #expect(Self.identity { $0[5] = 0x44 }.refusal(page: 4096)?.hasPrefix("IDR5") == true)
    #expect(Self.identity { $0[5] = 0x44 }.refusal(page: 65536) == nil)
  }

  /// What another SMMU must have that is to read the same tables: all that it needs itself, and what was chosen by the first.
  @Test func joining() {
    let whole = Self.identity(), small = Self.identity { $0[5] = 0x14 }, without = Self.identity { $0[3] &= ~(1 << 10) }
    func refusal(_ identity: SMMUIdentity, _ first: SMMUIdentity, _ granule: PageSize, page: UInt64 = 65536) -> String {
      identity.refusal(joining: first, granule: granule, page: page) ?? ""
    }
    #expect(refusal(whole, whole, .fourKiB) == "" && refusal(whole, without, .fourKiB) == "")
    #expect(refusal(small, whole, .fourKiB) == "")
    // It would have had pages of 4 KiB by itself.
    #expect(refusal(small, whole, PageSize(shift: 16)).hasPrefix("IDR5"))
    #expect(refusal(without, whole, .fourKiB).hasPrefix("IDR3.RIL"))
    #expect(refusal(Self.identity { $0[0] |= 3 << 21 }, whole, .fourKiB).hasPrefix("IDR0.TTENDIAN"))
    #expect(refusal(Self.identity { $0[5] = 0x44 }, whole, PageSize(shift: 16), page: 4096).hasPrefix("IDR5"))
  }
}

@Suite struct SMMUContextTests {
  /// The words of a set-up that was seen to work: 39 bits, pages of 4 KiB, ASID 7, 44 output bits.
  @Test func wordsOfAWorkingSetUp() {
    let context = SMMUContext(
      geometry: TableGeometry(granule: .fourKiB, inputBits: 39), root: 0x200_1000, asid: 7, outputBits: 44)
    var word: UInt64 = 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 30 | 1 << 31
    word |= 4 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | 1 << 47 | 7 << 48
    #expect(context.descriptor == [word, 0x200_1000, 0, 0xf404_ff44, 0, 0, 0, 0])
    let entry: [UInt64] = [0x200_000b, 0xd4]
    #expect(SMMUContext.entry(descriptorAt: 0x200_0000) == entry)
  }

  /// Granules and sizes have codes that are in no order.
  @Test(arguments: [(12, 0), (14, 2), (16, 1)] as [(UInt8, UInt64)])
  func granules(_ shift: UInt8, _ code: UInt64) {
    let context = SMMUContext(
      geometry: TableGeometry(granule: .init(shift: shift), inputBits: 48), root: 0, asid: 1, outputBits: 48)
    #expect(context.descriptor[0] >> 6 & 3 == code && context.descriptor[0] & 0x3f == 16)
  }

  @Test(
    arguments: [(1, 0), (32, 0), (33, 1), (36, 1), (40, 2), (42, 3), (43, 4), (44, 4), (48, 5), (52, 6)]
      as [(UInt8, UInt64)])
  func outputSizes(_ bits: UInt8, _ code: UInt64) {
    let context = SMMUContext(
      geometry: TableGeometry(granule: .fourKiB, inputBits: 48), root: 0, asid: 1, outputBits: bits)
    #expect(context.descriptor[0] >> 32 & 7 == code)
  }
}

@Suite struct SMMUEventTests {
  private static func bytes(_ words: [UInt64]) -> [UInt8] {
    words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } }
  }

  @Test func records() {
    let record: [UInt64] = [0x42 << 32 | 0x10, 1 << 35, 0x123_4000, 0]
    let events = SMMUEvent.parse(Self.bytes([5 << 32] + record + [7 << 32 | 1] + [8 << 32] + record))
    #expect(events.map(\.sequence) == [5, 7, 8])
    #expect(events.map { $0.words == nil } == [false, true, false])
    #expect(events[0].stream == 0x42 && events[0].name == "F_TRANSLATION" && events[0].words == record)
  }

  /// Every length of a truncated buffer, and any bytes.
  @Test func anything() {
    let whole = Self.bytes([5 << 32, 0x10, 0, 0, 0])
    for length in 0..<whole.count { #expect(SMMUEvent.parse(whole.prefix(length)).isEmpty) }
    var random = SystemRandomNumberGenerator()
    for _ in 0..<1000 {
      let bytes = (0..<Int.random(in: 0...200, using: &random)).map { _ in UInt8.random(in: 0...255, using: &random) }
      for event in SMMUEvent.parse(bytes) { #expect(!event.name.isEmpty) }
    }
  }
}
