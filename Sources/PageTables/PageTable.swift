package import AddressSpace

/// Page tables that this process writes and an IOMMU walks.
///
/// One concrete type a format, so that what is called for every buffer is specialised: ``SMMUTable``, ``FirstStageTable``,
/// ``SecondStageTable``. The protocol is what they have in common, for code that is not in a hurry.
///
/// **Ownership, and why there is no lock.** Whoever maps, unmaps or removes tables in a range of addresses owns that range: the
/// allocator above gives it to one mapping at a time, and to the next only after the invalidation. Shared are only the entries that
/// lead to tables of regions that nobody owns whole. Such an entry changes from 0 to a new table, by compare-exchange (who loses
/// gives its table back), and is cleared only by an owner of the whole region that it covers. So a thread that owns
/// part of a region can rely on the table as long as it does.
///
/// **Break before make** holds by construction: an entry changes from 0 to a value and from a value to 0, never from one value to
/// another. What an unmap cleared stays owned until the invalidation has completed, so nobody can map there before.
///
/// Addresses and lengths are multiples of the granule; anything else traps, as does a range beyond ``last``.
package protocol PageTable: ~Copyable, Sendable {
  /// The shape of the tables.
  var geometry: TableGeometry { get }
  /// The sizes of leaves that are used.
  var pageSizes: PageSizes { get }
  /// The highest address that can be mapped.
  var last: UInt64 { get }
  /// Where the hardware finds the root.
  var root: UInt64 { get }
  /// How many tables are linked, the root included.
  var tableCount: Int { get }
  /// Does as ``mapPages(iova:to:byteCount:attributes:)`` and ``clear(iova:byteCount:)`` where the table is known, of plain memory. For as
  /// long as this lives.
  var writer: PageWriter { get }

  /// Maps a range that the caller owns to a contiguous range of addresses.
  ///
  /// Leaves have the sizes that the kernel would choose (`iommu_pgsize`): each is the largest that divides both addresses there
  /// and fits in the rest. Everything is looked at before the first leaf is written, so of a call that fails hardware
  /// never sees anything. Entries are written in rising order, each after whatever this thread wrote before.
  ///
  /// - Precondition: `attributes` has `readable` or `writable`.
  /// - Complexity: O(entries); one descent for each table of leaves.
  borrowing func map(
    iova: UInt64, to address: UInt64, byteCount: UInt64, attributes: LeafAttributes
  ) -> MapOutcome

  /// Maps pages whose entries lie in one table; `false`, and nothing has changed that hardware could see, for any other range, where
  /// something is in the way, and where a table is missing that the pool does not have.
  ///
  /// - Precondition: As for ``map(iova:to:byteCount:attributes:)``.
  /// - Complexity: O(entries).
  borrowing func mapPages(iova: UInt64, to address: UInt64, byteCount: UInt64, attributes: LeafAttributes) -> Bool

  /// Takes apart what a map has unlinked, once its invalidation has completed: the tables can be given back then.
  ///
  /// - Complexity: O(entries of the tables).
  borrowing func takeApart(_ unlinked: UnlinkedTables) -> TableList

  /// Links again what a map has unlinked, when the invalidation failed: what hardware may have cached of the way there is right
  /// again, for whoever maps there next. The caller has owned the range all the time.
  ///
  /// - Complexity: O(levels).
  borrowing func relink(_ unlinked: UnlinkedTables)

  /// Clears the leaves of a range that the caller owns, and keeps owning until the invalidation of what was gathered has completed.
  /// There may be gaps. Tables all of whose region lies inside go too; those that lie partly inside stay, even empty.
  ///
  /// - Complexity: O(entries and tables in the range).
  borrowing func unmap(iova: UInt64, byteCount: UInt64, into gather: inout Gather) -> UnmapOutcome

  /// Clears pages whose entries lie in one table, without a gather: what a lazy unmap comes to. How many bytes were mapped; `nil`,
  /// and nothing has changed, for any other range.
  ///
  /// - Precondition: Nothing in the range has ``LeafAttributes/owned``.
  /// - Complexity: O(entries).
  borrowing func clear(iova: UInt64, byteCount: UInt64) -> UInt64?

  /// Where an address leads; `nil` when nothing is mapped there, or it is above ``last``.
  ///
  /// Any thread may ask. The answer holds for an address that cannot be unmapped meanwhile; for others it is a hint.
  ///
  /// - Complexity: O(levels).
  borrowing func translate(_ iova: UInt64) -> LeafTranslation?

  /// Looks for a linked table without entries, which covers addresses from `iova` on. Any thread may look; what is found is a hint:
  /// claim the region in the address store, then ``removeEmptyTable(iova:byteCount:into:)``.
  ///
  /// - Parameter limit: how many tables are looked at, at most, or one for each level where that is more.
  borrowing func findEmptyTable(from iova: UInt64, limit: Int) -> EmptyTableSearch

  /// Unlinks the table that covers exactly this region, which the caller owns, if no leaf is left in it. Invalidate what
  /// was gathered, then give the tables back.
  ///
  /// - Returns: `false` when there is a leaf, or no such table; nothing was changed.
  borrowing func removeEmptyTable(iova: UInt64, byteCount: UInt64, into gather: inout Gather) -> Bool
}
