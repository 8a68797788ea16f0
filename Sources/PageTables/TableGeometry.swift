package import AddressSpace

/// The shape of a page table: how an address is cut into indices.
///
/// A table of every format here has as many entries of 8 bytes as fill one granule; an address is cut into an index for each
/// level and the offset in a page. Levels are counted from the pages upwards: the entries of a table of level 0 are pages. (Arm
/// counts from the top, and calls that level 3.)
package struct TableGeometry: Hashable, Sendable {
  /// The smallest page, which is also the size of a table.
  package let granule: PageSize
  /// How many bits of an address are translated.
  package let inputBits: UInt8
  /// How many tables a walk to a page reads.
  package let levels: UInt8

  package init(granule: PageSize, inputBits: UInt8) {
    precondition(granule.shift >= 12 && granule.shift <= 16 && inputBits > granule.shift && inputBits <= 57)
    (self.granule, self.inputBits) = (granule, inputBits)
    let bitsPerLevel = granule.shift - 3
    levels = (inputBits - granule.shift + bitsPerLevel - 1) / bitsPerLevel
  }

  /// Bits of an address that one table resolves.
  @inline(__always) package var bitsPerLevel: UInt8 { granule.shift &- 3 }
  /// The highest address that is translated.
  package var last: UInt64 { (1 << UInt64(inputBits)) - 1 }

  /// How many entries a table has.
  @inline(__always) package var entryCount: Int { 1 &<< Int(bitsPerLevel) }

  /// What an entry of a table of a level covers, as an exponent: the shift of a leaf there.
  @inline(__always) package func shift(level: UInt8) -> UInt8 { granule.shift &+ level &* bitsPerLevel }

  /// The level at which a leaf has a shift; `nil` where no level has such leaves.
  package func level(shift: UInt8) -> UInt8? {
    guard shift >= granule.shift, (shift - granule.shift) % bitsPerLevel == 0 else { return nil }
    let level = (shift - granule.shift) / bitsPerLevel
    return level < levels ? level : nil
  }
}
