import AddressSpace
import PageTables

extension TestMemory {
  /// A pool in which none of it is ready.
  func pool(at address: UInt64, _ granule: PageSize) -> TablePool {
    unsafe TablePool(base: base, address: address, byteCount: byteCount, granule: granule, owner: self)
  }
}

/// Tables of a format with nothing mapped, and their pool.
final class TestSpace: @unchecked Sendable {
  let format: TestFormat
  let pool: TablePool
  private let memory: TestMemory
  private var boxed: TestTable?

  /// Where the hardware finds the memory.
  static let address: UInt64 = 0x12_3450_0000

  /// - Parameter tables: how many there are, the root included.
  init(_ format: TestFormat, tables: Int = 96) {
    self.format = format
    memory = TestMemory(format.granule, tables: tables)
    pool = memory.pool(at: Self.address, format.granule)
    pool.extend(byteCount: memory.byteCount)
    boxed = format.make(pool)
  }

  /// The end of the tables, before that of the pool.
  func destroy() { boxed = nil }

  var table: TestTable { boxed! }

  var reader: TableReader {
    TableReader(levels: format.levels(), memory: memory, address: Self.address)
  }
  func walk(_ iova: UInt64) throws -> ReadLeaf? { try reader.walk(iova, root: table.root) }
  /// The words of the tables' memory, to be spoilt.
  subscript(word: Int) -> UInt64 {
    get { unsafe memory.base.load(fromByteOffset: word * 8, as: UInt64.self) }
    set { unsafe memory.base.storeBytes(of: newValue, toByteOffset: word * 8, as: UInt64.self) }
  }
  func contents() throws -> TableReader.Contents { try reader.contents(root: table.root) }
  func leaves() throws -> [ReadLeaf] { try contents().leaves }

  /// Takes tables from the pool until so many are left.
  func leave(_ count: UInt64) -> [Table] {
    var taken: [Table] = []
    while pool.statistics.free > count, let table = pool.take() { taken.append(table) }
    return taken
  }
}

extension TestSpace {
  func map(
    _ iova: UInt64, to address: UInt64, _ byteCount: UInt64, _ attributes: LeafAttributes = [.readable, .writable]
  ) -> MapOutcome {
    table.map(iova: iova, to: address, byteCount: byteCount, attributes: attributes)
  }

  /// Maps, with what a caller does when a table without leaves is in the way.
  func mapAnyway(
    _ iova: UInt64, to address: UInt64, _ byteCount: UInt64, _ attributes: LeafAttributes = [.readable, .writable]
  ) -> MapOutcome {
    while true {
      let outcome = map(iova, to: address, byteCount, attributes)
      guard case .mustInvalidate(let unlinked) = outcome else { return outcome }
      pool.give(back: table.takeApart(unlinked))
    }
  }

  /// Unmaps, and gives the tables back as if the invalidation had been made.
  func unmap(_ iova: UInt64, _ byteCount: UInt64) -> UnmapOutcome {
    var gather = Gather(tracksRanges: false)
    let outcome = table.unmap(iova: iova, byteCount: byteCount, into: &gather)
    pool.give(back: gather.takeTables())
    return outcome
  }
}

extension Gather {
  /// Its runs.
  var runs: [Run] { (0..<count).map { self[$0] } }
}

extension ReadLeaf {
  /// What the leaf allows, in the words of the tables.
  var attributes: LeafAttributes {
    var attributes: LeafAttributes = []
    if allows.contains(.read) { attributes.insert(.readable) }
    if allows.contains(.write) { attributes.insert(.writable) }
    if isDevice { attributes.insert(.device) }
    if isOwned { attributes.insert(.owned) }
    return attributes
  }
}
