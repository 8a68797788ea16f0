import AddressSpace
import PageTables

/// Page tables of any format, behind a reference: expectations cannot hold what is not copyable.
class TestTable: @unchecked Sendable {
  var geometry: TableGeometry { fatalError() }
  var pageSizes: UInt64 { fatalError() }
  var last: UInt64 { fatalError() }
  var root: UInt64 { fatalError() }
  var tableCount: Int { fatalError() }
  var writer: PageWriter { fatalError() }

  func map(iova: UInt64, to address: UInt64, byteCount: UInt64, attributes: LeafAttributes) -> MapOutcome {
    fatalError()
  }
  func takeApart(_ unlinked: UnlinkedTables) -> TableList { fatalError() }
  func relink(_ unlinked: UnlinkedTables) { fatalError() }
  func unmap(iova: UInt64, byteCount: UInt64, into gather: inout Gather) -> UnmapOutcome { fatalError() }
  func mapPages(iova: UInt64, to address: UInt64, byteCount: UInt64, attributes: LeafAttributes) -> Bool {
    fatalError()
  }
  func clear(iova: UInt64, byteCount: UInt64) -> UInt64? { fatalError() }
  func translate(_ iova: UInt64) -> LeafTranslation? { fatalError() }
  func findEmptyTable(from iova: UInt64, limit: Int) -> EmptyTableSearch { fatalError() }
  func removeEmptyTable(iova: UInt64, byteCount: UInt64, into gather: inout Gather) -> Bool { fatalError() }
}

/// Those of one format.
final class TestTableOf<Table: PageTable & ~Copyable>: TestTable, @unchecked Sendable {
  private let table: Table

  init(_ table: consuming Table) { self.table = table }

  override var geometry: TableGeometry { table.geometry }
  override var pageSizes: UInt64 { table.pageSizes.rawValue }
  override var last: UInt64 { table.last }
  override var root: UInt64 { table.root }
  override var tableCount: Int { table.tableCount }
  override var writer: PageWriter { table.writer }

  override func map(iova: UInt64, to address: UInt64, byteCount: UInt64, attributes: LeafAttributes) -> MapOutcome {
    table.map(iova: iova, to: address, byteCount: byteCount, attributes: attributes)
  }

  override func takeApart(_ unlinked: UnlinkedTables) -> TableList { table.takeApart(unlinked) }

  override func relink(_ unlinked: UnlinkedTables) { table.relink(unlinked) }

  override func unmap(iova: UInt64, byteCount: UInt64, into gather: inout Gather) -> UnmapOutcome {
    table.unmap(iova: iova, byteCount: byteCount, into: &gather)
  }

  override func mapPages(iova: UInt64, to address: UInt64, byteCount: UInt64, attributes: LeafAttributes) -> Bool {
    table.mapPages(iova: iova, to: address, byteCount: byteCount, attributes: attributes)
  }

  override func clear(iova: UInt64, byteCount: UInt64) -> UInt64? { table.clear(iova: iova, byteCount: byteCount) }

  override func translate(_ iova: UInt64) -> LeafTranslation? { table.translate(iova) }

  override func findEmptyTable(from iova: UInt64, limit: Int) -> EmptyTableSearch {
    table.findEmptyTable(from: iova, limit: limit)
  }

  override func removeEmptyTable(iova: UInt64, byteCount: UInt64, into gather: inout Gather) -> Bool {
    table.removeEmptyTable(iova: iova, byteCount: byteCount, into: &gather)
  }
}
