/// The words that a process writes for an SMMUv3 that translates by its tables: 4 KiB granule, 39 bits of address.
///
/// By hand, from the layouts in the architecture's documents: Arm IHI 0070 (SMMUv3) and DDI 0487 (the translation
/// tables). Nothing of the library has a part in it, so that the library's own words can be checked against these.
enum SMMUWords {
  // MARK: - Configuration

  /// A context descriptor of 64 bytes: IHI 0070, section 5.4. With these values QEMU's SMMU and Linux were seen to
  /// agree; QEMU takes neither S nor HA nor HD, wants A and AA64, and T0SZ from 16 to 39.
  ///
  /// - Parameters:
  ///   - table: Where the first table is, an IPA.
  ///   - outputSize: The coded size of an IPA, as field OAS of IDR5 has it.
  static func contextDescriptor(table: UInt64, asid: UInt64, outputSize: UInt64) -> [UInt64] {
    let first = word([
      (25, 0),  // T0SZ: 64 - 25 bits of address. TG0 0 is a granule of 4 KiB
      (1, 8), (1, 10),  // IR0, OR0: walks are cached, write-back
      (3, 12),  // SH0: inner shareable
      (1, 30),  // EPD1: no second half of the address space
      (1, 31),  // V
      (outputSize, 32),  // IPS
      (1, 41),  // AA64
      (1, 45), (1, 46),  // R: faults are recorded; A: and end the access
      (1, 47),  // ASET: the ASID is not shared with processors
      (asid, 48),
    ])
    // The last is MAIR: byte 0 not cached, byte 1 write-back, byte 2 device memory.
    return [first, table, 0, 0xf404_ff44, 0, 0, 0, 0]
  }

  /// What HWPT_ALLOC wants of a stream table entry, its first two words: IHI 0070, section 5.2. The kernel adds stage 2
  /// and makes the configuration 7, which it does not take from a process; it takes 0, 4 and 5 (`arm_smmu_validate_vste`).
  ///
  /// - Parameter contextDescriptor: An IPA. There is one descriptor, no table of them: S1Fmt and S1CDMax are 0.
  static func streamTableEntry(contextDescriptor: UInt64, configuration: UInt64 = 5) -> [UInt64] {
    [
      word([(1, 0), (configuration, 1)]) | contextDescriptor,  // V, Config, S1ContextPtr
      word([(1, 2), (1, 4), (3, 6)]),  // S1CIR, S1COR, S1CSH: the descriptor is cached as the tables are
    ]
  }

  // MARK: - Tables

  /// An entry that leads to the next table: DDI 0487, section D8.3.1.
  static func table(_ address: UInt64) -> UInt64 { address | 3 }

  /// A page of memory, an entry of level 3: DDI 0487, section D8.3.1.
  static func page(_ address: UInt64, isWritable: Bool = true) -> UInt64 {
    let attributes = word([
      (3, 0),  // a page
      (1, 2),  // AttrIndx: byte 1 of MAIR
      (1, 6),  // AP[1]: reached without privilege
      (isWritable ? 0 : 1, 7),  // AP[2]
      (3, 8),  // SH: inner shareable
      (1, 10), (1, 11),  // AF; nG: tagged with the ASID
    ])
    return address | attributes
  }

  /// A page of registers, such as that of an interrupt's doorbell: AttrIndx names byte 2 of MAIR.
  static func devicePage(_ address: UInt64) -> UInt64 {
    address | word([(3, 0), (2, 2), (1, 6), (1, 10), (1, 11)])
  }

  // MARK: - Commands, two words each: IHI 0070, sections 4.3 and 4.4

  /// `CMD_TLBI_NH_VA` of one page whose entry alone has changed.
  static func invalidate(page: UInt64, asid: UInt64) -> [UInt64] {
    [word([(0x12, 0), (asid, 48)]), page | 1]  // Leaf
  }

  /// `CMD_TLBI_NH_VA` of a range: (`number` + 1) · 2^`scale` pages, where IDR3.RIL is set.
  static func invalidate(pages first: UInt64, number: UInt64, scale: UInt64, asid: UInt64) -> [UInt64] {
    // Leaf; TTL: the leaves are of level 3; TG: pages of 4 KiB.
    [word([(0x12, 0), (number, 12), (scale, 20), (asid, 48)]), first | word([(1, 0), (3, 8), (1, 10)])]
  }

  /// `CMD_TLBI_NH_ASID`.
  static func invalidate(asid: UInt64) -> [UInt64] { [word([(0x11, 0), (asid, 48)]), 0] }

  /// `CMD_TLBI_NSNH_ALL`, of which the kernel makes NH_ALL of the vIOMMU's VMID (`arm_vsmmu_convert_user_cmd`).
  static let invalidateAll: [UInt64] = [0x30, 0]

  /// `CMD_CFGI_CD`: a context descriptor has changed.
  static func invalidate(contextOf stream: UInt64) -> [UInt64] { [word([(0x05, 0), (stream, 32)]), 1] }  // Leaf

  /// `CMD_SYNC`, which the kernel adds by itself and takes from no process.
  static let sync: [UInt64] = [0x46, 0]

  /// Values at their lowest bits.
  private static func word(_ fields: [(value: UInt64, bit: UInt64)]) -> UInt64 {
    fields.reduce(0) { $0 | $1.value << $1.bit }
  }
}

/// A record of the event queue: IHI 0070, section 7.3.
struct SMMUEvent: Equatable {
  /// What happened, bits 7:0 of word 0.
  enum Kind: UInt64 { case translation = 0x10, permission = 0x13 }
  var kind: UInt64
  /// Bits 63:32 of word 0; in a vEVENTQ the number of the vDEVICE.
  var stream: UInt64
  /// RnW, bit 35 of word 1.
  var isRead: Bool
  /// Word 2.
  var address: UInt64

  init(_ kind: Kind, stream: UInt64, isRead: Bool, _ address: UInt64) {
    (self.kind, self.stream, self.isRead, self.address) = (kind.rawValue, stream, isRead, address)
  }

  init(words: [UInt64]) {
    (kind, stream) = (words[0] & 0xff, words[0] >> 32)
    (isRead, address) = (words[1] >> 35 & 1 != 0, words[2])
  }
}
