import AddressSpace
import PageTables

/// Tables whose last mapping went stay linked for the next one there. Before the pool grows, those that nobody needs go back to it.
///
/// So addresses that wander pin no more memory than as many that stay, and neither maps nor unmaps look for anything: it costs who
/// would have to grow the pool, at most every ``Limits/reclaimEnough`` tables.
extension OwnedStage1 where Format: ~Copyable {
  /// What came of it.
  enum Reclaimed {
    /// So many that the pool need not grow, or another thread has just looked.
    case enough
    case some, none
  }

  /// Unlinks tables without entries in whose regions nobody has an address, as many as a bounded search finds, and gives them back
  /// after one invalidation of everything, for all levels. Then the regions are free again.
  ///
  /// When that invalidation fails nothing is given back: the tables wait for the next one, and nobody gets an address where
  /// hardware may still know of them.
  ///
  /// - Complexity: O(``Limits/reclaimSteps`` · log n).
  @inline(never)
  func reclaimTables(for translation: any ProcessOwnedTranslation) -> Reclaimed {
    var search: TableReclaim.Search
    switch reclaim.begin(stage2.descriptor.kernel) {
    case .refused: return .none
    case .over: return .enough
    case .mine(let turn): search = turn
    }
    defer { reclaim.end(search) }
    var removed = unlinkEmptyTables(&search)
    // Also where none was found now: those of a call that failed.
    if search.regions.isEmpty { return .none }
    let count = removed.count
    if reusesTablesEarly {
      tables.pool.give(back: removed)
      removed = TableList()
    }
    // Not put to those that wait: who takes them from there may be slower, and the pool seem empty until then.
    do throws(Errno) { try translation.invalidateAll() } catch {
      keepForLater(removed)
      return .none
    }
    tables.pool.give(back: removed)
    search.release()
    search.regions = []
    let all = tables.readyByteCount / Int(tables.pool.granule.byteCount)
    return count >= min(Limits.reclaimEnough, all / 8) ? .enough : .some
  }

  /// Goes once around at most, twice where it began at the beginning: a table may have become empty by what the first found below it.
  private func unlinkEmptyTables(_ search: inout TableReclaim.Search) -> TableList {
    var gather = Gather(tracksRanges: false), isAround = false
    look: for _ in 0..<Limits.reclaimSteps {
      switch table.findEmptyTable(from: search.from, limit: Limits.reclaimStepTables) {
      case .found(let iova, let byteCount):
        search.from = max(search.from, iova + byteCount)
        guard iova >= TableReclaim.lowest, let region = IOVARange(start: IOVA(iova), byteCount: byteCount),
          search.owner.claim(region)
        else { continue }
        // It was a hint: meanwhile somebody may have come and gone, and the table with him.
        if table.removeEmptyTable(iova: iova, byteCount: byteCount, into: &gather) {
          search.regions.append(region)
        } else {
          search.owner.release(region)
        }
      case .more(let next): search.from = next
      case .none:
        search.from = TableReclaim.lowest
        if isAround { break look }
        isAround = true
      }
    }
    return gather.takeTables()
  }
}
