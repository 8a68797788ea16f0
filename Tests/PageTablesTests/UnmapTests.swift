import AddressSpace
import PageTables
import Testing

/// Unmaps: what goes, what is counted, and what is gathered.
struct UnmapTests {
  /// Unmaps, and hands the gather's contents out.
  private func gathered(
    _ space: TestSpace, _ iova: UInt64, _ byteCount: UInt64
  ) -> (outcome: UnmapOutcome, runs: [Gather.Run], tables: UInt32, isLeafOnly: Bool) {
    var gather = Gather(tracksRanges: true)
    let outcome = space.table.unmap(iova: iova, byteCount: byteCount, into: &gather)
    let tables = gather.takeTables()
    defer { space.pool.give(back: tables) }
    return (outcome, gather.runs, tables.count, gather.isLeafOnly)
  }

  @Test(arguments: TestFormat.all)
  func ofNothing(_ format: TestFormat) {
    let space = TestSpace(format), page = format.granule.byteCount
    for byteCount in [page, 3 * page, format.regionByteCount, 5 * format.regionByteCount] {
      let result = gathered(space, page, byteCount)
      #expect(result.outcome == .unmapped(byteCount: 0))
      #expect(result.runs == [])
      #expect(result.tables == 0)
      #expect(result.isLeafOnly == true)
    }
  }

  @Test(arguments: TestFormat.all)
  func holes(_ format: TestFormat) throws {
    let space = TestSpace(format), page = format.granule.byteCount, shift = format.granule.shift
    for (start, count) in [(4, 2), (7, 1), (9, 3)] as [(UInt64, UInt64)] {
      #expect(space.map(start * page, to: page, count * page) == .mapped(entryCount: Int(count)))
    }
    let result = gathered(space, 3 * page, 8 * page)
    #expect(result.outcome == .unmapped(byteCount: 5 * page))
    #expect(
      result.runs == [
        .init(start: 4 * page, byteCount: 2 * page, leafShift: shift),
        .init(start: 7 * page, byteCount: page, leafShift: shift),
        .init(start: 9 * page, byteCount: 2 * page, leafShift: shift),
      ])
    #expect(try space.leaves().map(\.iova) == [11 * page])
    #expect(result.isLeafOnly == true)
  }

  /// A table goes when all of its region does, and stays when a page is left out, even empty.
  @Test(arguments: TestFormat.all)
  func tables(_ format: TestFormat) throws {
    let space = TestSpace(format), page = format.granule.byteCount, region = format.regionByteCount
    let entries = Int(region / page)
    #expect(space.map(region, to: page, region) == .mapped(entryCount: entries))
    let tables = space.table.tableCount
    var result = gathered(space, region, region - page)
    #expect(result.outcome == .unmapped(byteCount: region - page))
    #expect(result.tables == 0)
    result = gathered(space, 2 * region - page, page)
    #expect(result.outcome == .unmapped(byteCount: page))
    #expect(result.tables == 0)
    #expect(try space.leaves() == [])
    #expect(space.table.tableCount == tables)
    // An empty one goes with its region. What is cached of the way to it goes with an address in it.
    result = gathered(space, region, region)
    #expect(result.outcome == .unmapped(byteCount: 0))
    #expect(result.tables == 1)
    #expect(result.isLeafOnly == false)
    #expect(result.runs == [.init(start: region, byteCount: page, leafShift: format.granule.shift)])
    #expect(space.table.tableCount == tables - 1)
    // Full ones are one run, in leaves of one size.
    #expect(space.map(region, to: page, 2 * region) == .mapped(entryCount: 2 * entries))
    result = gathered(space, region, 2 * region)
    #expect(result.outcome == .unmapped(byteCount: 2 * region))
    #expect(result.tables == 2)
    #expect(result.runs == [.init(start: region, byteCount: 2 * region, leafShift: format.granule.shift)])
    #expect(space.pool.statistics.inUse == UInt64(tables - 1))
  }

  /// Tables above those of pages go with all below them, each once.
  @Test(arguments: TestFormat.all)
  func branches(_ format: TestFormat) throws {
    let page = format.granule.byteCount, upper = format.regionByteCount * (page / 8)
    guard 4 * upper <= format.last else { return }
    let space = TestSpace(format)
    for place in [0, upper - page, upper + page, 2 * upper - page, 3 * upper] {
      #expect(space.map(place, to: page, page) == .mapped(entryCount: 1))
    }
    let before = try space.contents()
    let result = gathered(space, upper, upper)
    #expect(result.outcome == .unmapped(byteCount: 2 * page))
    #expect(result.tables == 3)
    #expect(result.runs.map(\.start) == [upper + page, 2 * upper - page])
    #expect(try space.leaves().map(\.iova) == [0, upper - page, 3 * upper])
    #expect(try space.contents().tables.count == before.tables.count - 3)
    // The whole space: only the root stays.
    let rest = gathered(space, 0, format.last + 1)
    #expect(rest.outcome == .unmapped(byteCount: 3 * page))
    #expect(space.table.tableCount == 1)
    #expect(space.pool.statistics.inUse == 1)
  }

  @Test(arguments: TestFormat.all.filter { $0.pageSizes.nonzeroBitCount > 1 })
  func cuts(_ format: TestFormat) throws {
    let space = TestSpace(format), page = format.granule.byteCount, block = format.block
    #expect(space.map(block, to: 0, block) == .mapped(entryCount: 1))
    #expect(space.map(block - page, to: page, page) == .mapped(entryCount: 1))
    #expect(space.map(2 * block, to: page, page) == .mapped(entryCount: 1))
    let before = try space.leaves()
    let cut = UnmapOutcome.cuts(iova: block, leaf: PageSize(byteCount: block)!)
    for (iova, byteCount) in [
      (block, page), (block + page, page), (2 * block - page, page), (block - page, 2 * page),
      (2 * block - page, 2 * page),
      (block, block - page), (block + page, block), (block - page, block), (block + page, block - 2 * page),
      (0, 2 * block - page), (block + block / 2, 3 * block),
    ] {
      let result = gathered(space, iova, byteCount)
      #expect(result.outcome == cut)
      #expect(result.runs == [])
      #expect(result.tables == 0)
    }
    #expect(try space.leaves() == before)
    let result = gathered(space, block - page, block + 2 * page)
    #expect(result.outcome == .unmapped(byteCount: block + 2 * page))
    #expect(
      result.runs.map(\.leafShift) == [format.granule.shift, UInt8(block.trailingZeroBitCount), format.granule.shift])
    #expect(try space.leaves() == [])
  }

  /// One gather for several unmaps; and one that tracks nothing.
  @Test(arguments: TestFormat.all)
  func aListCostsOneGather(_ format: TestFormat) {
    let space = TestSpace(format), page = format.granule.byteCount
    var gather = Gather(tracksRanges: true), lazy = Gather(tracksRanges: false)
    for place in 0..<200 as Range<UInt64> {
      let attributes: LeafAttributes = place == 150 ? [.readable, .owned] : .readable
      #expect(space.map(place * page, to: place * page, page, attributes) == .mapped(entryCount: 1))
    }
    for place in 0..<100 as Range<UInt64> {
      #expect(space.table.unmap(iova: place * page, byteCount: page, into: &gather) == .unmapped(byteCount: page))
      let other = (100 + place) * page
      #expect(space.table.unmap(iova: other, byteCount: page, into: &lazy) == .unmapped(byteCount: page))
    }
    #expect(gather.runs == [.init(start: 0, byteCount: 100 * page, leafShift: format.granule.shift)])
    #expect(gather.rangeCount == 100)
    #expect(gather.sawOwned == false)
    #expect(lazy.rangeCount == 0)
    #expect(lazy.isEmpty == true)
    #expect(lazy.sawOwned == true)
  }
}
