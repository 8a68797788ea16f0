package import AddressSpace

/// Page tables of an SMMUv3's stage 1, in the granule of their pool: 4, 16 or 64 KiB.
///
/// Blocks are 1 GiB and 2 MiB, 32 MiB, or 512 MiB. The context descriptor that goes with them has TG0 for the granule, T0SZ
/// 64 − `inputBits`, and a MAIR with write-back memory at index 1 and device memory at index 2.
package struct SMMUTable: ~Copyable, PageTable {
  private let tree: TableTree<ArmStage1>

  /// Tables without a mapping; `nil` when the pool has no table for the root.
  ///
  /// - Parameter inputBits: the length of addresses, as 39 or 48; the level that the walk starts at follows.
  package init?(pool: TablePool, inputBits: UInt8) {
    precondition(inputBits <= 48, "longer addresses take other tables")
    let blocks: UInt64
    switch pool.granule.shift {
    case 12: blocks = 1 << 21 | 1 << 30
    case 14: blocks = 1 << 25
    case 16: blocks = 1 << 29
    default: preconditionFailure("a granule of 4, 16 or 64 KiB")
    }
    // A block may fill a table, but not be the whole space.
    let sizes = PageSizes(rawValue: (blocks | pool.granule.byteCount) & ((1 << UInt64(inputBits)) - 1))
    let last: UInt64 = (1 << UInt64(inputBits)) - 1
    guard let tree = TableTree<ArmStage1>(pool: pool, inputBits: inputBits, pageSizes: sizes, last: last) else {
      return nil
    }
    self.tree = tree
  }
}

extension SMMUTable {
  package var geometry: TableGeometry { tree.geometry }
  package var pageSizes: PageSizes { tree.pageSizes }
  package var last: UInt64 { tree.last }
  package var root: UInt64 { tree.memory.address(of: tree.root) }
  package var tableCount: Int { tree.tableCount }
  package var writer: PageWriter { tree.writer }

  /// Maps a range: ``PageTable/map(iova:to:byteCount:attributes:)``.
  package borrowing func map(
    iova: UInt64, to address: UInt64, byteCount: UInt64, attributes: LeafAttributes
  ) -> MapOutcome {
    tree.map(iova, address, byteCount, attributes)
  }

  /// Maps pages of one table: ``PageTable/mapPages(iova:to:byteCount:attributes:)``.
  package borrowing func mapPages(
    iova: UInt64, to address: UInt64, byteCount: UInt64, attributes: LeafAttributes
  ) -> Bool {
    tree.mapInOneTable(iova, address, byteCount, attributes)
  }

  /// Takes unlinked tables apart: ``PageTable/takeApart(_:)``.
  package borrowing func takeApart(_ unlinked: UnlinkedTables) -> TableList { tree.takeApart(unlinked) }

  /// Links unlinked tables again: ``PageTable/relink(_:)``.
  package borrowing func relink(_ unlinked: UnlinkedTables) { tree.relink(unlinked) }

  /// Clears a range: ``PageTable/unmap(iova:byteCount:into:)``.
  package borrowing func unmap(iova: UInt64, byteCount: UInt64, into gather: inout Gather) -> UnmapOutcome {
    tree.unmap(iova, byteCount, into: &gather)
  }

  /// Clears pages of one table: ``PageTable/clear(iova:byteCount:)``.
  package borrowing func clear(iova: UInt64, byteCount: UInt64) -> UInt64? { tree.clearInOneTable(iova, byteCount) }

  /// Where an address leads: ``PageTable/translate(_:)``.
  package borrowing func translate(_ iova: UInt64) -> LeafTranslation? { tree.translate(iova) }

  /// Looks for a table without entries: ``PageTable/findEmptyTable(from:limit:)``.
  package borrowing func findEmptyTable(from iova: UInt64, limit: Int) -> EmptyTableSearch {
    tree.findEmptyTable(from: iova, limit: limit)
  }

  /// Unlinks a table without leaves: ``PageTable/removeEmptyTable(iova:byteCount:into:)``.
  package borrowing func removeEmptyTable(iova: UInt64, byteCount: UInt64, into gather: inout Gather) -> Bool {
    tree.removeEmptyTable(iova, byteCount, into: &gather)
  }
}
