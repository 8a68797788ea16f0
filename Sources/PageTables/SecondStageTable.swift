package import AddressSpace

/// Page tables of VT-d's second stage: 3, 4 or 5 levels for 39, 48 or 57 bits, 4 KiB pages, 2 MiB and 1 GiB leaves.
///
/// For the simulator, which keeps its kernel's tables in them.
package struct SecondStageTable: ~Copyable, PageTable {
  private let tree: TableTree<VTdSecondStage>

  /// Tables without a mapping; `nil` when the pool has no table for the root.
  ///
  /// - Parameters:
  ///   - inputBits: 39, 48 or 57 (CAP.SAGAW).
  ///   - pageSizes: the sizes of leaves to use (CAP.SSLPS), 4 KiB among them.
  package init?(
    pool: TablePool, inputBits: UInt8, pageSizes: PageSizes = PageSizes(rawValue: 1 << 12 | 1 << 21 | 1 << 30)
  ) {
    precondition([39, 48, 57].contains(inputBits), "39, 48 or 57 bits")
    let last: UInt64 = (1 << UInt64(inputBits)) - 1
    guard let tree = TableTree<VTdSecondStage>(pool: pool, inputBits: inputBits, pageSizes: pageSizes, last: last)
    else {
      return nil
    }
    self.tree = tree
  }
}

extension SecondStageTable {
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
