package import AddressSpace

/// How a map ended. Unless it is ``mapped(entryCount:)``, hardware never saw any of it, so there is nothing to invalidate but what
/// the case says.
package enum MapOutcome: Equatable, Sendable {
  /// All of it is mapped, by so many entries.
  case mapped(entryCount: Int)
  /// Something is mapped there already, at this address first.
  case exists(iova: UInt64)
  /// The pool has no table: extend it, and call again. Tables that were linked so far stay for that call.
  case noTables
  /// A block is to go where a table without leaves was linked. It is unlinked now; invalidate its region, not only leaves,
  /// then take it apart, give it back, and call again. When the invalidation fails, link it again.
  case mustInvalidate(UnlinkedTables)
}

/// Tables that were unlinked from a region that has no leaf, and are as they were: hardware may still walk them. Either
/// ``PageTable/takeApart(_:)`` or ``PageTable/relink(_:)`` is called with them, once.
package struct UnlinkedTables: Equatable, Sendable {
  /// The first address of the region.
  package var iova: UInt64
  /// The region's length: what the topmost of the tables covered.
  package var byteCount: UInt64
  /// The entry that led to them.
  let entry: UInt64
}

/// How an unmap ended.
package enum UnmapOutcome: Equatable, Sendable {
  /// Nothing is mapped in the range any more; so many bytes were.
  case unmapped(byteCount: UInt64)
  /// An end of the range lies inside a leaf. Nothing was changed.
  case cuts(iova: UInt64, leaf: PageSize)
}

/// Where an address leads.
package struct LeafTranslation: Equatable, Sendable {
  /// The translated address, with the offset in the page.
  package var address: UInt64
  /// The size of the leaf.
  package var pageSize: PageSize
  /// What the leaf allows.
  package var attributes: LeafAttributes

  package init(address: UInt64, pageSize: PageSize, attributes: LeafAttributes) {
    (self.address, self.pageSize, self.attributes) = (address, pageSize, attributes)
  }
}

/// How a search for tables without entries ended.
package enum EmptyTableSearch: Equatable, Sendable {
  /// There seems to be one, which covers this region. Go on behind it.
  case found(iova: UInt64, byteCount: UInt64)
  /// Enough was looked at. Go on from here.
  case more(from: UInt64)
  /// There is none up to the end.
  case none
}
