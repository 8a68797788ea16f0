import AddressSpace
import PageTables
import Testing

/// Maps, as the hardware sees them, on every format.
struct MapTests {
  @Test(arguments: TestFormat.all)
  func geometry(_ format: TestFormat) {
    let space = TestSpace(format), table = space.table
    #expect(table.pageSizes == format.pageSizes)
    #expect(table.last == format.last)
    #expect(table.geometry.granule == format.granule)
    #expect(table.root == TestSpace.address)
    #expect(table.tableCount == 1)
    #expect(space.pool.statistics.inUse == 1)
  }

  @Test(arguments: TestFormat.all)
  func onePage(_ format: TestFormat) throws {
    let space = TestSpace(format), page = format.granule.byteCount
    #expect(try space.leaves() == [])
    for iova in [0, page, 77 * page, format.regionByteCount - page, format.last - (page - 1)] {
      let address = (1 << 44) + 5 * page
      #expect(space.map(iova, to: address, page) == .mapped(entryCount: 1))
      let leaf = ReadLeaf(iova: iova, address: address, byteCount: page, allows: .all, isDevice: false, isOwned: false)
      #expect(try space.leaves() == [leaf])
      #expect(try space.walk(iova + page - 1) == leaf)
      // Indices would begin again.
      for above in [format.last + 1, iova | (format.last + 1), .max] { #expect(space.table.translate(above) == nil) }
      #expect(
        space.table.translate(iova + 0x123)
          == LeafTranslation(address: address + 0x123, pageSize: format.granule, attributes: [.readable, .writable]))
      #expect(space.unmap(iova, page) == .unmapped(byteCount: page))
      #expect(try space.leaves() == [])
      #expect(space.table.translate(iova) == nil)
    }
  }

  /// The last address that an entry can lead to.
  @Test(arguments: TestFormat.all)
  func theLastOutput(_ format: TestFormat) throws {
    let space = TestSpace(format), page = format.granule.byteCount
    let lowest = format.lastOutput & ~(format.block - 1)
    #expect(space.map(0, to: format.lastOutput - (page - 1), page) == .mapped(entryCount: 1))
    #expect(try space.walk(0)?.address == format.lastOutput - (page - 1))
    #expect(space.map(format.block, to: lowest, format.block) != .noTables)
    #expect(try space.walk(format.block)?.address == lowest)
    #expect(space.table.translate(format.block + 5)?.address == lowest + 5)
  }

  @Test(arguments: TestFormat.all)
  func attributes(_ format: TestFormat) throws {
    let space = TestSpace(format), page = format.granule.byteCount
    for bits in 0..<16 as Range<UInt8> where bits & 3 != 0 {
      let attributes = LeafAttributes(rawValue: bits)
      let place = UInt64(bits) * page, blockPlace = format.block * UInt64(1 + bits)
      #expect(space.map(place, to: page, page, attributes) == .mapped(entryCount: 1))
      let leaf = try #require(try space.walk(place))
      #expect(leaf.attributes == format.expressible(attributes))
      #expect(space.table.translate(place)?.attributes == format.expressible(attributes))
      guard format.block.trailingZeroBitCount < 30 else { continue }
      #expect(space.map(blockPlace, to: 0, format.block, attributes) != .noTables)
      #expect(try space.walk(blockPlace)?.attributes == format.expressible(attributes))
      #expect(space.table.translate(blockPlace)?.attributes == format.expressible(attributes))
      var gather = Gather(tracksRanges: true)
      #expect(
        space.table.unmap(iova: blockPlace, byteCount: format.block, into: &gather)
          == .unmapped(byteCount: format.block))
      #expect(gather.sawOwned == attributes.contains(.owned))
      space.pool.give(back: gather.takeTables())
      gather = Gather(tracksRanges: false)
      #expect(space.table.unmap(iova: place, byteCount: page, into: &gather) == .unmapped(byteCount: page))
      #expect(gather.sawOwned == attributes.contains(.owned))
    }
  }

  /// Ranges in pages of 4 KiB, and the sizes that the kernel would choose: 4 KiB, 2 MiB, 1 GiB.
  @Test(
    arguments: [
      (0, 0, 1, [(12, 1)]),
      (0, 0, 511, [(12, 511)]),
      (0, 0, 512, [(21, 1)]),
      (0, 512, 512, [(21, 1)]),
      (0, 1, 512, [(12, 512)]),
      (1, 1, 512, [(12, 512)]),
      (1, 0, 1024, [(12, 1024)]),
      (511, 511, 514, [(12, 1), (21, 1), (12, 1)]),
      (1, 513, 1534, [(12, 511), (21, 1), (12, 511)]),
      (0, 512, 1030, [(21, 2), (12, 6)]),
      (0, 0, 262_144, [(30, 1)]),
      (0, 512, 262_144, [(21, 512)]),
      (262_143, 262_143, 262_657, [(12, 1), (30, 1), (21, 1)]),
      (261_632, 785_920, 263_169, [(21, 1), (30, 1), (21, 1), (12, 1)]),
    ] as [(UInt64, UInt64, UInt64, [(Int, Int)])])
  func sizes(_ iova: UInt64, _ address: UInt64, _ pages: UInt64, _ sizes: [(Int, Int)]) throws {
    let model = NaiveTable.sizes(
      1 << 12 | 1 << 21 | 1 << 30, iova: iova << 12, address: address << 12, byteCount: pages << 12)
    var merged: [(Int, Int)] = []
    for (size, count) in model {
      if merged.last?.0 == size.trailingZeroBitCount {
        merged[merged.count - 1].1 += Int(count)
      } else {
        merged.append((size.trailingZeroBitCount, Int(count)))
      }
    }
    #expect(merged.elementsEqual(sizes, by: ==))
    for format in TestFormat.all where format.pageSizes == 1 << 12 | 1 << 21 | 1 << 30 {
      let space = TestSpace(format)
      #expect(
        space.map(iova << 12, to: address << 12, pages << 12) == .mapped(entryCount: sizes.reduce(0) { $0 + $1.1 }))
      var place = iova << 12
      var leaves = try space.leaves()[...]
      for (shift, count) in sizes {
        for leaf in leaves.prefix(count) {
          #expect(
            leaf.byteCount == 1 << UInt64(shift) && leaf.iova == place
              && leaf.address &- place == (address &- iova) << 12)
          place += leaf.byteCount
        }
        leaves = leaves.dropFirst(count)
      }
      #expect(leaves.isEmpty == true)
    }
  }

  /// One descent a table of leaves is not to be seen; that leaves are consecutive across tables is.
  @Test(arguments: TestFormat.all)
  func acrossTables(_ format: TestFormat) throws {
    let space = TestSpace(format), page = format.granule.byteCount
    let iova = format.regionByteCount - 3 * page
    #expect(space.map(iova, to: 9 * page, 6 * page) == .mapped(entryCount: 6))
    let leaves = try space.leaves()
    #expect(leaves.map(\.iova) == (0..<6).map { iova + $0 * page })
    #expect(leaves.map(\.address) == (9..<15).map { $0 * page })
    #expect(space.unmap(iova, 6 * page) == .unmapped(byteCount: 6 * page))
  }
}

/// Maps that find something there.
struct OccupiedTests {
  @Test(arguments: TestFormat.all)
  func nothingOfAFailedMapStays(_ format: TestFormat) throws {
    let space = TestSpace(format), page = format.granule.byteCount, region = format.regionByteCount
    #expect(space.map(region + 2 * page, to: page, page) == .mapped(entryCount: 1))
    let before = try space.leaves()
    let exists = MapOutcome.exists(iova: region + 2 * page)
    // The same page, a run in its table, one that begins before it in another table, and blocks around it.
    #expect(space.map(region + 2 * page, to: 0, page) == exists)
    #expect(space.map(region, to: page, 5 * page) == exists)
    #expect(space.map(page, to: 0, 2 * region) == exists)
    #expect(space.mapAnyway(0, to: 0, 2 * region) == exists)
    #expect(space.map(region, to: 0, region) == exists)
    #expect(space.map(0, to: page, 2 * region) == exists)
    #expect(try space.leaves() == before)
    // Beside it there is room.
    #expect(space.map(region + 3 * page, to: 0, page) == .mapped(entryCount: 1))
    #expect(space.map(region + page, to: 0, page) == .mapped(entryCount: 1))
  }

  @Test(arguments: TestFormat.all.filter { $0.pageSizes.nonzeroBitCount > 1 })
  func blocksAreInTheWay(_ format: TestFormat) throws {
    let space = TestSpace(format), page = format.granule.byteCount, block = format.block
    #expect(space.map(2 * block, to: 0, block) == .mapped(entryCount: 1))
    let before = try space.leaves()
    #expect(before.count == 1)
    #expect(space.map(2 * block, to: block, block) == .exists(iova: 2 * block))
    #expect(space.map(2 * block + 7 * page, to: 0, page) == .exists(iova: 2 * block + 7 * page))
    #expect(space.map(2 * block + 7 * page, to: 0, 2 * page) == .exists(iova: 2 * block + 7 * page))
    #expect(space.map(2 * block - page, to: 0, 2 * page) == .exists(iova: 2 * block))
    #expect(try space.leaves() == before)
  }

  /// A block goes where a table was emptied page by page; at every size of block.
  @Test(arguments: TestFormat.all.filter { $0.pageSizes.nonzeroBitCount > 1 })
  func blocksReplaceEmptyTables(_ format: TestFormat) throws {
    for shift in Int(format.granule.shift) + 1..<40 where format.pageSizes >> UInt64(shift) & 1 != 0 {
      let space = TestSpace(format), page = format.granule.byteCount, block: UInt64 = 1 << UInt64(shift)
      // Pages in several of its tables, a neighbour, and one page that stays for a while.
      let places = [block, block + page, 2 * block - page, block + block / 2]
      for place in places { #expect(space.map(place, to: 0, page) == .mapped(entryCount: 1)) }
      #expect(space.map(2 * block, to: 0, page) == .mapped(entryCount: 1))
      for place in places.dropLast() { #expect(space.unmap(place, page) == .unmapped(byteCount: page)) }
      let before = try space.contents()
      #expect(space.map(block, to: 0, block) == .exists(iova: block + block / 2))
      #expect(try space.contents().tables == before.tables)
      #expect(space.unmap(block + block / 2, page) == .unmapped(byteCount: page))

      let tables = try space.contents().tables.count
      guard case .mustInvalidate(let unlinked) = space.map(block, to: 3 * block, block) else {
        Issue.record("a table is in the way")
        return
      }
      #expect(unlinked.iova == block)
      #expect(unlinked.byteCount == block)
      // Unlinked, and nobody's until it is given back: nothing stands there now.
      let left = try space.contents().tables.count
      #expect(left < tables && space.pool.statistics.inUse == UInt64(tables))
      #expect(try space.walk(block) == nil)
      #expect(try space.leaves().map(\.iova) == [2 * block])
      let taken = space.table.takeApart(unlinked)
      #expect(Int(taken.count) == tables - left && space.table.tableCount == left)
      space.pool.give(back: taken)
      #expect(space.map(block, to: 3 * block, block) == .mapped(entryCount: 1))
      #expect(try space.walk(2 * block - 1)?.byteCount == block)
      #expect(space.pool.statistics.inUse == UInt64(space.table.tableCount))
    }
  }

  /// When the invalidation fails, what was unlinked is linked again: each of the tables is where hardware may have cached it, and
  /// serves the next pages there; at every size of block.
  @Test(arguments: TestFormat.all.filter { $0.pageSizes.nonzeroBitCount > 1 })
  func unlinkedTablesAreLinkedAgain(_ format: TestFormat) throws {
    for shift in Int(format.granule.shift) + 1..<40 where format.pageSizes >> UInt64(shift) & 1 != 0 {
      let space = TestSpace(format), page = format.granule.byteCount, block: UInt64 = 1 << UInt64(shift)
      let places = [block, 2 * block - page, block + block / 2]
      for place in places { #expect(space.map(place, to: 0, page) == .mapped(entryCount: 1)) }
      for place in places { #expect(space.unmap(place, page) == .unmapped(byteCount: page)) }
      let before = try space.contents().tables, count = space.table.tableCount
      for _ in 0..<2 {
        guard case .mustInvalidate(let unlinked) = space.map(block, to: 3 * block, block) else {
          Issue.record("a table is in the way")
          return
        }
        space.table.relink(unlinked)
        #expect(try space.contents().tables == before)
        #expect(space.table.tableCount == count && space.pool.statistics.inUse == UInt64(count))
      }
      for place in places { #expect(space.map(place, to: page, page) == .mapped(entryCount: 1)) }
      #expect(try space.contents().tables == before && space.leaves().map(\.iova) == places.sorted())
      for place in places { #expect(space.unmap(place, page) == .unmapped(byteCount: page)) }
      #expect(space.mapAnyway(block, to: 3 * block, block) == .mapped(entryCount: 1))
      #expect(space.pool.statistics.inUse == UInt64(space.table.tableCount))
    }
  }
}
