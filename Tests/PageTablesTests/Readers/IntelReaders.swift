/// VT-d's tables, from the Intel Virtualization Technology for Directed I/O specification (D51397): 9.8 for first-stage entries,
/// 9.9 for second-stage ones. Levels are named as in the Intel SDM, volume 3, 4.5.
enum FirstStageReader {
  static func levels(_ count: Int, hasGiBPages: Bool) -> [ReaderLevel] {
    let pml5 = ReaderLevel(high: 56, low: 48) { meaning($0, leafBits: nil) }
    let lower = [
      ReaderLevel(high: 47, low: 39) { meaning($0, leafBits: nil) },
      ReaderLevel(high: 38, low: 30) { meaning($0, leafBits: hasGiBPages ? 30 : nil) },
      ReaderLevel(high: 29, low: 21) { meaning($0, leafBits: 21) },
      ReaderLevel(high: 20, low: 12) { meaning($0, leafBits: 12) },
    ]
    return count == 5 ? [pml5] + lower : lower
  }

  private static func meaning(_ entry: UInt64, leafBits: Int?) -> EntryMeaning {
    // 0 P, 1 R/W, 2 U/S, 3 PWT, 4 PCD, 5 A, 6 D, 7 PS (PAT in a PTE), 8 G, 9 and 11 ignored, 10 EA, 63 XD.
    guard entry.bit(0) else { return .absent }
    guard entry.bit(2) else { return .malformed("a supervisor's entry") }
    guard entry.bit(5) else { return .malformed("the hardware would set A") }
    guard entry.bits(4, 3) == 0, !entry.bit(8), entry.bits(11, 10) == 0, entry.bits(63, 52) == 0 else {
      return .malformed("bits that are not 0")
    }
    let access: Access = entry.bit(1) ? .all : .read
    let address = entry & 0xf_ffff_ffff_f000
    if leafBits == 12 {
      guard !entry.bit(7) else { return .malformed("PAT") }
    } else if !entry.bit(7) {
      return entry.bit(9) ? .malformed("a mark on a table") : .table(address: address, allows: access)
    }
    guard let leafBits, address == 0 || address.trailingZeroBitCount >= leafBits else {
      return .malformed("a leaf where there is none, or its address")
    }
    guard entry.bit(6) == entry.bit(1) else { return .malformed("the hardware would set D, or it is set in vain") }
    return .leaf(address: address, allows: access, isDevice: false, isOwned: entry.bit(9))
  }
}

enum SecondStageReader {
  /// - Parameter leaves: where there may be leaves, as the lowest bit of the level.
  static func levels(_ inputBits: Int, leaves: [Int]) -> [ReaderLevel] {
    [(56, 48), (47, 39), (38, 30), (29, 21), (20, 12)].filter { $0.0 < inputBits }.map { high, low in
      ReaderLevel(high: high, low: low) { meaning($0, level: low, isLeaf: low == 12, mayBeLeaf: leaves.contains(low)) }
    }
  }

  private static func meaning(_ entry: UInt64, level: Int, isLeaf: Bool, mayBeLeaf: Bool) -> EntryMeaning {
    // 0 R, 1 W, 2 X, 5:3 EMT, 6 IPAT, 7 PS, 8 A, 9 D, 10 ignored, 11 SNP, 61:52 ignored, 62 TM, 63 ignored. Without read, write
    // and execute an entry is not present.
    guard entry.bits(1, 0) != 0 else { return .absent }
    guard entry.bits(6, 2) == 0, entry.bits(11, 8) == 0, entry.bits(63, 53) == 0 else {
      return .malformed("bits that are not 0")
    }
    var access: Access = []
    if entry.bit(0) { access.insert(.read) }
    if entry.bit(1) { access.insert(.write) }
    let address = entry & 0xf_ffff_ffff_f000
    if !isLeaf && !entry.bit(7) {
      return entry.bit(52) ? .malformed("a mark on a table") : .table(address: address, allows: access)
    }
    if isLeaf && entry.bit(7) { return .malformed("PS on the lowest level") }
    guard mayBeLeaf, address == 0 || address.trailingZeroBitCount >= level else {
      return .malformed("a leaf where there is none, or its address")
    }
    return .leaf(address: address, allows: access, isDevice: false, isOwned: entry.bit(52))
  }
}
