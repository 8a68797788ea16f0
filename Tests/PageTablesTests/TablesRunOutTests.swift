import AddressSpace
import Glibc
import PageTables
import Testing

/// A pool that has only so many tables.
struct TablesRunOutTests {
  /// For every number of tables that is too few: nothing is mapped, nothing is lost, and with more it goes on.
  @Test(arguments: TestFormat.all)
  func atEveryPoint(_ format: TestFormat) throws {
    let page = format.granule.byteCount, region = format.regionByteCount
    // Two tables of pages on different branches, as far apart as can be.
    let iova = (format.last + 1) / 2 - 2 * page
    for isLong in [false, true] {
      var tooFew = 0
      for count in 0..<20 as Range<UInt64> {
        let space = TestSpace(format, tables: 40)
        let taken = space.leave(count)
        let byteCount = isLong ? region + 4 * page : page
        let outcome = space.map(iova, to: page, byteCount)
        if outcome == .noTables {
          tooFew += 1
          #expect(try space.leaves() == [])
          #expect(space.pool.statistics.free == 0)
        }
        #expect(try space.contents().tables.count == space.table.tableCount)
        #expect(space.pool.statistics.inUse == UInt64(space.table.tableCount + taken.count))
        for table in taken { space.pool.give(back: table) }
        if outcome == .noTables {
          #expect(space.map(iova, to: page, byteCount) == .mapped(entryCount: Int(byteCount / page)))
        } else {
          #expect(outcome == .mapped(entryCount: Int(byteCount / page)))
        }
        #expect(try space.leaves().count == Int(byteCount / page))
        space.destroy()
        #expect(space.pool.statistics.inUse == 0)
      }
      // One a level below the root, and the long one has another branch, and three tables of pages.
      let levels = TableGeometry(granule: format.granule, inputBits: UInt8(format.levels()[0].high + 1)).levels
      #expect(tooFew == Int(levels - 1) * (isLong ? 2 : 1) + (isLong ? 1 : 0))
    }
  }

  @Test(arguments: TestFormat.all)
  func noRoot(_ format: TestFormat) {
    let space = TestSpace(format, tables: 1)
    #expect(format.make(space.pool) == nil)
    #expect(space.pool.statistics.inUse == 1)
  }

  /// Tables that cannot be made keep no memory: in a process of its own, where nobody else asks for any.
  @Test func noRootAndNothingElse() async {
    await #expect(processExitsWith: .success) {
      let format = TestFormat.all[0], space = TestSpace(format, tables: 1)
      var before = 0
      for round in 0..<40_000 {
        // The first rounds may fill caches.
        if round == 1000 { before = Self.residentPages() }
        guard format.make(space.pool) == nil else { fatalError("tables without a root") }
      }
      // Half a KiB each would be 20 MiB.
      let kept = Self.residentPages() - before
      if kept > 1024 { fatalError("\(kept) pages are kept") }
    }
  }

  /// Pages of memory that this process has now.
  private static func residentPages() -> Int {
    let file = unsafe open("/proc/self/statm", O_RDONLY)
    defer { close(file) }
    var bytes = [UInt8](repeating: 0, count: 128)
    let count = unsafe read(file, &bytes, bytes.count)
    let words = String(decoding: bytes.prefix(max(count, 0)), as: UTF8.self).split(separator: " ")
    guard words.count > 1, let pages = Int(words[1]) else { fatalError("no statm") }
    return pages
  }
}
