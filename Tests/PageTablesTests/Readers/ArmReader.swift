/// VMSAv8-64 stage 1, from the Arm Architecture Reference Manual for A-profile (DDI 0487): D8.2.8–10 for the levels of each
/// granule, D8.3.1 for the formats of descriptors, D8.4 for permissions, D8.5 for memory types.
enum ArmReader {
  /// Levels from the one at which the walk starts, by granule and by how many bits of the address are translated.
  static func levels(granule: UInt64, inputBits: Int) -> [ReaderLevel] {
    let bits = granule.trailingZeroBitCount
    func level(_ high: Int, _ low: Int, _ number: Int, _ leaf: Int?) -> ReaderLevel {
      ReaderLevel(high: high, low: low) { meaning($0, level: number, leafBits: leaf, granuleBits: bits) }
    }
    return switch (granule, inputBits) {
    case (4096, 48): [level(47, 39, 0, nil), level(38, 30, 1, 30), level(29, 21, 2, 21), level(20, 12, 3, 12)]
    case (4096, 39): [level(38, 30, 1, 30), level(29, 21, 2, 21), level(20, 12, 3, 12)]
    case (16384, 48): [level(47, 47, 0, nil), level(46, 36, 1, nil), level(35, 25, 2, 25), level(24, 14, 3, 14)]
    case (16384, 39): [level(38, 36, 1, nil), level(35, 25, 2, 25), level(24, 14, 3, 14)]
    case (65536, 48): [level(47, 42, 1, nil), level(41, 29, 2, 29), level(28, 16, 3, 16)]
    case (65536, 39): [level(38, 29, 2, 29), level(28, 16, 3, 16)]
    default: []
    }
  }

  /// The MAIR of our context descriptors, `0xf404ff44`, one byte an index.
  private static func memoryType(_ index: UInt64) -> UInt64 { 0xf404_ff44 >> (8 * index) & 0xff }

  private static func meaning(_ descriptor: UInt64, level: Int, leafBits: Int?, granuleBits: Int) -> EntryMeaning {
    // Bit 0: valid. Bit 1: table above level 3, page on it; 0 is a block, and reserved on level 3.
    guard descriptor.bit(0) else { return .absent }
    if level < 3 && descriptor.bit(1) {
      let address = descriptor & 0xffff_ffff_f000
      guard descriptor.bits(63, 48) == 0, descriptor.bits(11, 2) == 0,
        address.trailingZeroBitCount >= granuleBits || address == 0
      else { return .malformed("a table descriptor with bits that are not 0") }
      return .table(address: address, allows: .all)
    }
    guard level < 3 || descriptor.bit(1) else { return .malformed("a reserved level 3 descriptor") }
    guard let leafBits else { return .malformed("a block where there is none") }
    return leaf(descriptor, leafBits: leafBits)
  }

  private static func leaf(_ descriptor: UInt64, leafBits: Int) -> EntryMeaning {
    // The output address is bits 47 to the size; what is below it, down to bit 12, is reserved or nT.
    let address = descriptor & 0xffff_ffff_f000
    guard address == 0 || address.trailingZeroBitCount >= leafBits else { return .malformed("a block's address") }
    // 63:59 hardware's own, 58:55 software, 54 UXN, 53 PXN, 52 contiguous, 51 DBM, 50 GP, 49:48 reserved.
    guard descriptor.bits(63, 56) == 0, descriptor.bits(52, 48) == 0 else { return .malformed("upper attributes") }
    guard descriptor.bits(54, 53) == 3 else { return .malformed("instructions could be fetched") }
    // 11 nG, 10 AF, 9:8 SH, 7:6 AP[2:1], 5 NS, 4:2 AttrIndx.
    guard descriptor.bit(11) else { return .malformed("a global entry stays when its ASID is invalidated") }
    guard descriptor.bit(10) else { return .malformed("an access flag fault") }
    guard !descriptor.bit(5) else { return .malformed("NS") }
    let isDevice: Bool
    switch (memoryType(descriptor.bits(4, 2)), descriptor.bits(9, 8)) {
    case (0xff, 3): isDevice = false
    case (0x04, _): isDevice = true
    default: return .malformed("memory of another type")
    }
    let access: Access
    switch descriptor.bits(7, 6) {
    case 0b01: access = .all
    case 0b11: access = .read
    default: return .malformed("no unprivileged access")
    }
    return .leaf(address: address, allows: access, isDevice: isDevice, isOwned: descriptor.bit(55))
  }
}
