/// The first stage of VT-d's scalable mode: the x86-64 page tables.
///
/// Source: Intel Virtualization Technology for Directed I/O (D51397), 3.6 "First-Stage Translation" and 9.8 "First-Stage
/// Paging Entries". Accessed and dirty are set beforehand, so that the hardware never writes to a table. Bit 63, execute-disable,
/// stays clear: it is reserved unless the PASID entry allows requests to execute, which none of ours does.
enum X86FirstStage: TableFormat {
  static var addressMask: UInt64 { 0x000f_ffff_ffff_f000 }
  /// Bits 9 and 11 are ignored; bit 10 is not where extended accessed flags are on.
  static var ownedBit: UInt64 { 1 << 9 }

  private static let present: UInt64 = 1
  private static let write: UInt64 = 1 << 1
  /// Requests have the user's privilege, so that without it nothing would be reached.
  private static let user: UInt64 = 1 << 2
  private static let accessed: UInt64 = 1 << 5
  private static let dirty: UInt64 = 1 << 6
  /// Page size: a leaf above the lowest level. On the lowest the bit is part of the memory type, and stays clear.
  private static let large: UInt64 = 1 << 7

  @inline(__always) static func table(at address: UInt64) -> UInt64 { address | present | write | user | accessed }

  @inline(__always) static func isTable(_ entry: UInt64) -> Bool { entry & (present | large) == present }

  @inline(__always) static func leaf(_ attributes: LeafAttributes, isBlock: Bool) -> UInt64 {
    var entry = present | user | accessed
    if isBlock { entry |= large }
    if attributes.contains(.writable) { entry |= write | dirty }
    if attributes.contains(.owned) { entry |= ownedBit }
    return entry
  }

  static func attributes(of leaf: UInt64) -> LeafAttributes {
    var attributes: LeafAttributes = .readable
    if leaf & write != 0 { attributes.insert(.writable) }
    if leaf & ownedBit != 0 { attributes.insert(.owned) }
    return attributes
  }
}
