import AddressSpace
import IOMMU
import PageTables

/// Page tables of a domain that the simulated kernel's VT-d driver writes, and the hardware walks: first stage or second.
protocol DriverTable: AnyObject {
  /// The first table, by its address in this process, which is what the hardware takes for memory's.
  var root: UInt64 { get }
  /// How many tables a walk to a page reads.
  var levels: UInt8 { get }
  /// What the process maps by way of the kernel. A table that was emptied and stands in the way of a larger leaf goes first;
  /// `invalidate` is told of its addresses, before its memory is used again.
  func map(_ span: Span64, to host: UInt, _ permissions: SimulatedIOMMU.Permissions, invalidate: (Span64) -> Void)
  /// Clears a range; whether tables were freed. They are used again after `invalidate`, which is told of that.
  func unmap(_ span: Span64, invalidate: (_ freesTables: Bool) -> Void)
}

/// Memory of the simulated kernel for page tables: none of it is in the process's way, and little of it is touched.
final class DriverTables {
  /// 65,536 tables: with pages of 4 KiB they lead to 128 GiB.
  private static let byteCount = 256 << 20
  let pool: TablePool

  private final class Reservation: Sendable {
    let base: UInt

    init() {
      guard
        let base = try? HostSystem.map(byteCount: DriverTables.byteCount, descriptor: -1, offset: 0, isWritable: true)
      else { preconditionFailure("the simulated kernel has no memory for page tables") }
      self.base = base
    }

    deinit { HostSystem.unmap(base, byteCount: DriverTables.byteCount) }
  }

  init() {
    let memory = Reservation(), length = UInt64(Self.byteCount)
    unsafe pool = TablePool(
      base: UnsafeMutableRawPointer(bitPattern: memory.base)!, address: UInt64(memory.base), byteCount: length,
      granule: .fourKiB, owner: memory)
    pool.extend(byteCount: length)
  }

  /// Empty second-stage tables, with the leaves that hardware has.
  func makeSecondStage(_ registers: VTdRegisters) -> any DriverTable {
    var sizes: UInt64 = 1 << 12
    if registers.has2MiBSecondStagePages { sizes |= 1 << 21 }
    if registers.has1GiBSecondStagePages { sizes |= 1 << 30 }
    let bits = UInt8(12 + 9 * registers.usedSecondStageLevels)
    return StageTable(
      SecondStageTable(pool: pool, inputBits: bits, pageSizes: PageSizes(rawValue: sizes))!, pool: pool)
  }

  /// Empty first-stage tables.
  func makeFirstStage(_ registers: VTdRegisters) -> any DriverTable {
    let levels: UInt8 = registers.hasFiveLevelFirstStage ? 5 : 4
    return StageTable(
      FirstStageTable(pool: pool, levels: levels, hasGiBLeaves: registers.has1GiBFirstStagePages)!, pool: pool)
  }
}

/// The same for a format.
private final class StageTable<Format: PageTable & ~Copyable>: DriverTable {
  private let table: Format
  private let pool: TablePool

  init(_ table: consuming Format, pool: TablePool) {
    self.table = table
    self.pool = pool
  }

  var root: UInt64 { table.root }
  var levels: UInt8 { table.geometry.levels }

  func map(_ span: Span64, to host: UInt, _ permissions: SimulatedIOMMU.Permissions, invalidate: (Span64) -> Void) {
    while true {
      switch table.map(
        iova: span.start, to: UInt64(host), byteCount: span.last - span.start + 1,
        attributes: LeafAttributes(rawValue: permissions.rawValue))
      {
      case .mapped: return
      case .mustInvalidate(let unlinked):
        invalidate(Span64(start: unlinked.iova, last: unlinked.iova + (unlinked.byteCount - 1)))
        pool.give(back: table.takeApart(unlinked))
      case .exists(let iova): preconditionFailure("the IOAS has two areas at \(iova)")
      case .noTables: preconditionFailure("the simulated kernel has no memory for page tables")
      }
    }
  }

  func unmap(_ span: Span64, invalidate: (_ freesTables: Bool) -> Void) {
    var gather = Gather(tracksRanges: false)
    _ = table.unmap(iova: span.start, byteCount: span.last - span.start + 1, into: &gather)
    let tables = gather.takeTables()
    invalidate(!tables.isEmpty)
    pool.give(back: tables)
  }
}
