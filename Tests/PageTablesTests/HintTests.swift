import AddressSpace
import PageTables
import Testing

/// Reading where one owns nothing: a table may have become another's, or memory for anything. It is looked at, and not believed.
struct HintTests {
  @Test(arguments: TestFormat.all)
  func anAddressThatIsNoTables(_ format: TestFormat) throws {
    let space = TestSpace(format), page = format.granule.byteCount, iova = 3 * format.regionByteCount
    #expect(space.map(iova, to: 0, page) == .mapped(entryCount: 1))
    let entries = Int(page / 8)
    let place = try #require((0..<entries).first { space[$0] != 0 })
    let entry = space[place]
    // It leads to the pool's second table. Now to before the pool, behind it, and to where no table begins in it.
    for distance in [0 &- 2 * page, 95 * page, 0x4_0000_0000, page / 2] as [UInt64] {
      // Bits below a page are no address.
      if distance < 0x1000 { continue }
      space[place] = entry &+ distance
      #expect(space.table.translate(iova) == nil)
      #expect(space.table.findEmptyTable(from: 0, limit: 100) == .none)
    }
    space[place] = entry
    #expect(space.table.translate(iova)?.address == 0)
  }

  /// What was given back is read as what it is by then: here as nothing.
  @Test(arguments: TestFormat.all)
  func anyWords(_ format: TestFormat) throws {
    let space = TestSpace(format, tables: 30)
    let table = space.table, root = Int(format.granule.byteCount / 8)
    #expect(space.map(0, to: 0, format.granule.byteCount) == .mapped(entryCount: 1))
    let words = (0..<30 * root).map { space[$0] }
    // The tables' addresses with each of the low bits: tables that lead to each other, in circles too.
    for index in 0..<29 * root {
      let address = TestSpace.address + UInt64(index % 31) * format.granule.byteCount
      space[index] = address | UInt64(truncatingIfNeeded: index &* 7) & 0xff
    }
    for index in 0..<2_000 as Range<UInt64> {
      let iova = index &* 0x9e37_79b9_7f4a_7c15 & format.last
      if let found = table.translate(iova) { #expect(format.pageSizes & found.pageSize.byteCount != 0) }
      _ = table.findEmptyTable(from: iova, limit: 20)
    }
    for index in words.indices { space[index] = words[index] }
  }
}
