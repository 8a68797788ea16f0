package import AddressSpace

/// The shape of a page table: how an address is cut into indices.
///
/// A table of every format here has as many entries of 8 bytes as fill one granule; an address is cut into an index for each
/// level and the offset in a page.
package struct TableGeometry: Hashable, Sendable {
  /// The smallest page, which is also the size of a table.
  package let granule: PageSize
  /// How many bits of an address are translated.
  package let inputBits: UInt8

  package init(granule: PageSize, inputBits: UInt8) {
    precondition(granule.shift >= 12 && granule.shift <= 16 && inputBits > granule.shift && inputBits <= 57)
    (self.granule, self.inputBits) = (granule, inputBits)
  }

  /// Bits of an address that one table resolves.
  @inline(__always) package var bitsPerLevel: UInt8 { granule.shift - 3 }
  /// How many tables a walk to a page reads.
  package var levels: UInt8 { (inputBits - granule.shift + bitsPerLevel - 1) / bitsPerLevel }
  /// The highest address that is translated.
  package var last: UInt64 { (1 << UInt64(inputBits)) - 1 }
}
