/// The second stage of VT-d, which is also what its legacy mode walks.
///
/// Source: Intel Virtualization Technology for Directed I/O (D51397), 3.7 "Second-Stage Translation" and 9.9 "Second-Stage
/// Paging Entries". An entry is present when it allows anything, so a leaf can be write-only. SNP, bit 11, stays clear: it is
/// reserved where snooping cannot be forced.
enum VTdSecondStage: TableFormat {
  static var addressMask: UInt64 { 0x000f_ffff_ffff_f000 }
  /// Bits 61:52 are ignored.
  static var ownedBit: UInt64 { 1 << 52 }

  private static let read: UInt64 = 1
  private static let write: UInt64 = 1 << 1
  /// Page size: a leaf above the lowest level, where the bit is ignored and stays clear.
  private static let large: UInt64 = 1 << 7

  @inline(__always) static func table(at address: UInt64) -> UInt64 { address | read | write }

  @inline(__always) static func isTable(_ entry: UInt64) -> Bool { entry & (read | write) != 0 && entry & large == 0 }

  @inline(__always) static func leaf(_ attributes: LeafAttributes, isBlock: Bool) -> UInt64 {
    var entry: UInt64 = isBlock ? large : 0
    if attributes.contains(.readable) { entry |= read }
    if attributes.contains(.writable) { entry |= write }
    if attributes.contains(.owned) { entry |= ownedBit }
    return entry
  }

  static func attributes(of leaf: UInt64) -> LeafAttributes {
    var attributes: LeafAttributes = []
    if leaf & read != 0 { attributes.insert(.readable) }
    if leaf & write != 0 { attributes.insert(.writable) }
    if leaf & ownedBit != 0 { attributes.insert(.owned) }
    return attributes
  }
}
