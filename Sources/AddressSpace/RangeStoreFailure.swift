/// Why a store of ranges refused. It carries addresses and allocates nothing, so that failing is as cheap
/// as succeeding.
@usableFromInline
package enum RangeStoreFailure: Error, Hashable, Sendable {
  /// A length of 0.
  case empty
  /// An address or a length that is no multiple of the granule.
  case unaligned
  /// The range passes the top of the 64-bit space.
  case overflow
  /// A boundary that is smaller than the range: every place crosses it.
  case boundaryTooSmall
  /// A granule of less than 4 bytes, in which a 64-bit space cannot be counted with room for sums.
  case granuleTooSmall
  /// A part of the range is not usable in this space: this part, or its first one.
  case outsideAperture(IOVARange)
  /// The range passes the highest address that may be used.
  case aboveLimit(limit: UInt64)
  /// The range overlaps this reservation or guard.
  case reserved(IOVARange)
  /// The range overlaps this allocation or fixed address.
  case occupied(IOVARange)
  /// Nothing fits: it was proved that no free range satisfies the request.
  case noSpace
  /// Nothing was found, though it was not proved that nothing fits: no free range surely satisfies the
  /// request, and more than 32 were long enough that might have. Only requests whose alignment is neither
  /// one granule nor natural can end so.
  case fragmented
  /// An interval that is already there.
  case duplicate
  /// No memory for the store's own nodes. Nothing was changed.
  case outOfMemory
}
