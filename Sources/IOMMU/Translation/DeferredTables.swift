import PageTables
import Synchronization

/// Tables that were taken out of a page table, and that hardware may still walk: they wait for an invalidation of everything.
final class DeferredTables: Sendable {
  private let list = Mutex(TableList())
  /// Nothing needs the lock where there are none.
  private let count = Atomic<Int>(0)

  func add(_ tables: TableList, in pool: TablePool) {
    if tables.isEmpty { return }
    list.withLock { pool.append(tables, to: &$0) }
    count.wrappingAdd(1, ordering: .releasing)
  }

  var isEmpty: Bool { count.load(ordering: .acquiring) == 0 }

  /// Takes all that were added before.
  func takeAll() -> TableList {
    if count.load(ordering: .acquiring) == 0 { return TableList() }
    return list.withLock { list in
      count.store(0, ordering: .relaxed)
      defer { list = TableList() }
      return list
    }
  }
}
