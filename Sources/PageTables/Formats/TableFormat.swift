/// The bits of a format's entries.
///
/// All formats have in common: an entry is 8 bytes, 0 is nothing at all, a table is one granule, and the entries of the lowest
/// level are pages. Everything here is static and small, so that the tree of tables, specialised for a format, has
/// its bits as constants. The protocol stays inside this module (a generic is not specialised across modules).
protocol TableFormat {
  /// Where an address stands in an entry, whatever the granule.
  static var addressMask: UInt64 { get }
  /// The bit for ``LeafAttributes/owned``.
  static var ownedBit: UInt64 { get }

  /// The entry that leads to a table.
  static func table(at address: UInt64) -> UInt64
  /// Whether an entry, above the lowest level, leads to a table.
  static func isTable(_ entry: UInt64) -> Bool
  /// A leaf, without its address.
  static func leaf(_ attributes: LeafAttributes, isBlock: Bool) -> UInt64
  /// What a leaf says.
  static func attributes(of leaf: UInt64) -> LeafAttributes
}

extension TableFormat {
  /// The highest address that a leaf can lead to.
  static var lastOutput: UInt64 { addressMask | 0xfff }
}
