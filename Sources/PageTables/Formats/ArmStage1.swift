/// Stage 1 of the Armv8-A VMSA, what Linux calls LPAE stage 1.
///
/// Source: Arm Architecture Reference Manual (DDI 0487), D8.3 "Translation table descriptor formats"; the kernel's choice of
/// bits, in `arm_lpae_prot_to_pte` of io-pgtable-arm.c. Outputs have 48 bits: the longer ones of FEAT_LPA put address bits elsewhere.
enum ArmStage1: TableFormat {
  static var addressMask: UInt64 { 0x0000_ffff_ffff_f000 }
  /// Bits 58:55 are for software. Bit 55 is also where the kernel marks what a walker that is not coherent has been shown;
  /// ours are coherent.
  static var ownedBit: UInt64 { 1 << 55 }

  private static let valid: UInt64 = 1
  /// A table above the lowest level, a page on it. A block has 0 here.
  private static let tableOrPage: UInt64 = 1 << 1
  /// AttrIndx, an index into the MAIR of the context descriptor: 1 is write-back memory there, 2 device memory.
  private static let writeBack: UInt64 = 1 << 2, deviceMemory: UInt64 = 2 << 2
  /// AP[1]: unprivileged accesses are allowed; a device's are.
  private static let unprivileged: UInt64 = 1 << 6
  /// AP[2].
  private static let readOnly: UInt64 = 1 << 7
  private static let outerShareable: UInt64 = 2 << 8, innerShareable: UInt64 = 3 << 8
  /// The access flag: without it the first access would be a fault.
  private static let accessed: UInt64 = 1 << 10
  /// Not global: the TLB entry has our ASID.
  private static let notGlobal: UInt64 = 1 << 11
  /// UXN and PXN.
  private static let neverExecute: UInt64 = 3 << 53

  @inline(__always) static func table(at address: UInt64) -> UInt64 { address | valid | tableOrPage }

  @inline(__always) static func isTable(_ entry: UInt64) -> Bool {
    entry & (valid | tableOrPage) == valid | tableOrPage
  }

  @inline(__always) static func leaf(_ attributes: LeafAttributes, isBlock: Bool) -> UInt64 {
    var entry = valid | unprivileged | accessed | notGlobal | neverExecute
    if !isBlock { entry |= tableOrPage }
    if !attributes.contains(.writable) { entry |= readOnly }
    // Device memory is outer shareable whatever the entry says; so it says so.
    entry |= attributes.contains(.device) ? deviceMemory | outerShareable : writeBack | innerShareable
    if attributes.contains(.owned) { entry |= ownedBit }
    return entry
  }

  static func attributes(of leaf: UInt64) -> LeafAttributes {
    var attributes: LeafAttributes = .readable
    if leaf & readOnly == 0 { attributes.insert(.writable) }
    if leaf & 7 << 2 == deviceMemory { attributes.insert(.device) }
    if leaf & ownedBit != 0 { attributes.insert(.owned) }
    return attributes
  }
}
