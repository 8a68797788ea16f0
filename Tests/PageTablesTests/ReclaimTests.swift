import AddressSpace
import PageTables
import Testing

/// Tables without entries are found by anyone and removed by the owner of their region.
struct ReclaimTests {
  @Test(arguments: TestFormat.all)
  func findsAndRemoves(_ format: TestFormat) throws {
    let space = TestSpace(format), table = space.table
    let page = format.granule.byteCount, region = format.regionByteCount
    #expect(table.findEmptyTable(from: 0, limit: 10) == .none)
    for place in [1, 3, 5] as [UInt64] { #expect(space.map(place * region, to: 0, page) == .mapped(entryCount: 1)) }
    #expect(table.findEmptyTable(from: 0, limit: 100) == .none)
    #expect(space.unmap(region, page) == .unmapped(byteCount: page))
    #expect(space.unmap(5 * region, page) == .unmapped(byteCount: page))
    #expect(table.findEmptyTable(from: 0, limit: 100) == .found(iova: region, byteCount: region))
    #expect(table.findEmptyTable(from: 2 * region - 1, limit: 100) == .found(iova: region, byteCount: region))
    #expect(table.findEmptyTable(from: 2 * region, limit: 100) == .found(iova: 5 * region, byteCount: region))
    #expect(table.findEmptyTable(from: 6 * region, limit: 100) == .none)
    #expect(table.findEmptyTable(from: format.last, limit: 100) == .none)
    #expect(table.findEmptyTable(from: .max, limit: 100) == .none)

    var gather = Gather(tracksRanges: true)
    // One with a leaf, none at all, and regions that no table has.
    #expect(table.removeEmptyTable(iova: 3 * region, byteCount: region, into: &gather) == false)
    #expect(table.removeEmptyTable(iova: 2 * region, byteCount: region, into: &gather) == false)
    #expect(table.removeEmptyTable(iova: region, byteCount: page, into: &gather) == false)
    #expect(table.removeEmptyTable(iova: region, byteCount: 2 * region, into: &gather) == false)
    #expect(table.removeEmptyTable(iova: region + page, byteCount: region, into: &gather) == false)
    #expect(gather.isEmpty == true)
    let tables = table.tableCount
    #expect(table.removeEmptyTable(iova: region, byteCount: region, into: &gather) == true)
    #expect(gather.isLeafOnly == false)
    #expect(gather.runs.map(\.start) == [region])
    #expect(table.tableCount == tables - 1)
    #expect(table.removeEmptyTable(iova: region, byteCount: region, into: &gather) == false)
    // It is the pool's again only once it is given back.
    #expect(space.pool.statistics.inUse == UInt64(tables))
    space.pool.give(back: gather.takeTables())
    #expect(space.pool.statistics.inUse == UInt64(tables - 1))
    #expect(try space.leaves().map(\.iova) == [3 * region])
  }

  /// A table above those of pages goes with those below it, when none of them has a leaf.
  @Test(arguments: TestFormat.all)
  func removesBranches(_ format: TestFormat) throws {
    let page = format.granule.byteCount, upper = format.regionByteCount * (page / 8)
    guard 2 * upper <= format.last else { return }
    let space = TestSpace(format), places = [upper, upper + 5 * format.regionByteCount]
    for place in places { #expect(space.map(place, to: 0, page) == .mapped(entryCount: 1)) }
    let tables = space.table.tableCount
    var gather = Gather(tracksRanges: true)
    #expect(space.unmap(places[0], page) == .unmapped(byteCount: page))
    #expect(space.table.removeEmptyTable(iova: upper, byteCount: upper, into: &gather) == false)
    #expect(space.table.tableCount == tables)
    #expect(space.unmap(places[1], page) == .unmapped(byteCount: page))
    #expect(space.table.removeEmptyTable(iova: upper, byteCount: upper, into: &gather) == true)
    #expect(space.table.tableCount == tables - 3)
    // An address below each, so that nothing is left that is cached of the way there.
    #expect(gather.runs.map(\.start) == places)
    let removed = gather.takeTables()
    #expect(removed.count == 3)
    space.pool.give(back: removed)
    // Now the table above those is empty, where that is not the root.
    let isRoot = space.table.geometry.levels == 3
    #expect(
      space.table.findEmptyTable(from: 0, limit: 100)
        == (isRoot ? .none : .found(iova: 0, byteCount: upper * (page / 8))))
  }

  /// However little is looked at in a step, all are found.
  @Test(arguments: TestFormat.all)
  func goesOn(_ format: TestFormat) throws {
    let space = TestSpace(format), page = format.granule.byteCount, region = format.regionByteCount
    let places = (0..<30).map { ($0 * 7 % 60) * region } + [format.last - (region - 1)]
    for place in places { #expect(space.map(place, to: 0, page) == .mapped(entryCount: 1)) }
    for place in places where place / region % 2 == 1 {
      #expect(space.unmap(place, page) == .unmapped(byteCount: page))
    }
    var found: [UInt64] = [], from: UInt64 = 0, steps = 0
    search: while true {
      steps += 1
      switch space.table.findEmptyTable(from: from, limit: 1) {
      case .found(let iova, let byteCount):
        found.append(iova)
        #expect(byteCount == region)
        from = iova + byteCount
        if from > format.last { break search }
      case .more(let next):
        #expect(next > from)
        from = next
      case .none: break search
      }
      guard steps < 200 else { break }
    }
    #expect(found == places.filter { $0 / region % 2 == 1 }.sorted())
    #expect(steps > 10 && steps < 100)
  }
}
