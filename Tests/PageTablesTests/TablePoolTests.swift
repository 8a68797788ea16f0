import AddressSpace
import PageTables
import Testing

/// A pool by itself. What tables do to it is in the suites of maps and unmaps.
struct TablePoolTests {
  @Test(arguments: [12, 14, 16] as [UInt8])
  func takesWhatIsReady(_ shift: UInt8) throws {
    let granule = PageSize(shift: shift)
    let pool = TestMemory(granule, tables: 5).pool(at: 1 << 40, granule)
    #expect(pool.take() == nil)
    #expect(pool.readyByteCount == 0)
    pool.extend(byteCount: 2 * granule.byteCount)
    #expect(pool.readyByteCount == 2 * granule.byteCount)
    let first = try #require(pool.take()), second = try #require(pool.take())
    #expect(pool.take() == nil)
    #expect(pool.address(of: first) == 1 << 40)
    #expect(pool.address(of: second) == 1 << 40 + granule.byteCount)
    pool.extend(byteCount: granule.byteCount)
    #expect(pool.statistics == .init(inUse: 2, ready: 3))
    #expect(pool.statistics.free == 1)
    let third = try #require(pool.take())
    #expect(pool.address(of: third) == 1 << 40 + 2 * granule.byteCount)
    for table in [first, second, third] { pool.give(back: table) }
    #expect(pool.statistics == .init(inUse: 0, ready: 3))
    // What was used last is used first.
    let again = [pool.take(), pool.take(), pool.take()].compactMap { $0 }
    #expect(again == [third, second, first])
    #expect(pool.take() == nil)
    for table in again { pool.give(back: table) }
  }

  @Test func findsTablesByAddress() throws {
    let pool = TestMemory(.fourKiB, tables: 2).pool(at: 1 << 40, .fourKiB)
    pool.extend(byteCount: 0x1000)
    let table = try #require(pool.take())
    #expect(pool.table(at: 1 << 40) == table)
    #expect(pool.table(at: 1 << 40 + 8) == nil)
    #expect(pool.table(at: 1 << 40 + 0x1000) == nil)
    #expect(pool.table(at: 1 << 40 - 0x1000) == nil)
    pool.give(back: table)
  }

  @Test func listsGoBackAtOnce() throws {
    let pool = TestMemory(.fourKiB, tables: 300).pool(at: 1 << 40, .fourKiB)
    pool.extend(byteCount: 300 << 12)
    let format = TestFormat.all.first { $0.name == "second stage, 39 bits, leaves of [12, 21, 30]" }!
    let table = try #require(format.make(pool))
    var lists: [TableList] = []
    for half in 0..<2 as Range<UInt64> {
      let start = half << 30
      #expect(
        table.map(iova: start + 0x1000, to: 0, byteCount: 64 << 21, attributes: .readable)
          == .mapped(entryCount: 64 << 9))
      var gather = Gather(tracksRanges: false)
      #expect(table.unmap(iova: start, byteCount: 1 << 30, into: &gather) == .unmapped(byteCount: 64 << 21))
      lists.append(gather.takeTables())
      // 65 of pages, and the one above.
      #expect(lists.last?.count == 66)
    }
    #expect(pool.statistics.inUse == 1 + 132)
    var all = TableList()
    for list in lists { pool.append(list, to: &all) }
    pool.append(TableList(), to: &all)
    #expect(all.count == 132)
    pool.give(back: all)
    pool.give(back: TableList())
    #expect(pool.statistics.inUse == 1)
    // Each comes out once.
    let taken = (0..<299).compactMap { _ in pool.take() }
    #expect(Set(taken.map { pool.address(of: $0) }).count == 299)
    #expect(pool.take() == nil)
    for table in taken { pool.give(back: table) }
  }
}
