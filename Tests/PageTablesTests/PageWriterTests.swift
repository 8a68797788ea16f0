import AddressSpace
import PageTables
import Testing

/// Pages of one table, written where the table is known, and where it has to be found first.
@Suite struct PageWriterTests {
  /// An address in a region's table, with pages of that table before and after it.
  private static func middle(_ format: TestFormat) -> UInt64 {
    5 * format.regionByteCount + 8 * format.granule.byteCount
  }

  @Test(arguments: TestFormat.all)
  func nothingIsKnownAtFirst(_ format: TestFormat) throws {
    let space = TestSpace(format), page = format.granule.byteCount, iova = Self.middle(format)
    #expect(!space.table.writer.map(iova, to: page, byteCount: page, canWrite: true))
    #expect(space.table.writer.clear(iova, byteCount: page) == nil)
    #expect(space.table.tableCount == 1)
    #expect(try space.leaves().isEmpty)
  }

  /// What has to be found is known from then on, to all copies; the reader sees what was written, bit by bit.
  @Test(arguments: TestFormat.all, [false, true])
  func whatWasFoundIsKnown(_ format: TestFormat, _ canWrite: Bool) throws {
    let space = TestSpace(format), page = format.granule.byteCount, iova = Self.middle(format)
    let writer = space.table.writer
    #expect(space.table.mapPages(iova: iova, to: 7 * page, byteCount: page, attributes: .readable))
    for count in [1, 4, 2] as [UInt64] {
      let start = iova + count * page
      #expect(writer.map(start, to: 32 * page, byteCount: count * page, canWrite: canWrite))
      for index in 0..<count {
        let leaf = try #require(try space.walk(start + index * page))
        #expect(leaf.address == (32 + index) * page && leaf.byteCount == page)
        #expect(leaf.attributes == format.expressible(canWrite ? [.readable, .writable] : .readable))
      }
      #expect(writer.clear(start, byteCount: count * page) == count * page)
      #expect(try space.leaves().count == 1)
    }
    #expect(space.table.clear(iova: iova, byteCount: page) == page)
    #expect(try space.leaves().isEmpty)
  }

  /// Where one page of several is taken, nothing is written.
  @Test(arguments: TestFormat.all)
  func whatIsInTheWayStays(_ format: TestFormat) throws {
    let space = TestSpace(format), page = format.granule.byteCount, iova = Self.middle(format)
    #expect(space.map(iova + 3 * page, to: 0, page, .readable) == .mapped(entryCount: 1))
    #expect(!space.table.mapPages(iova: iova, to: page, byteCount: 4 * page, attributes: .readable))
    let before = try space.leaves()
    for count in [1, 2, 4] as [UInt64] {
      #expect(!space.table.writer.map(iova + (4 - count) * page, to: page, byteCount: count * page, canWrite: true))
      #expect(try space.leaves() == before)
    }
    #expect(space.table.writer.clear(iova, byteCount: 4 * page) == page, "with gaps")
    #expect(space.table.writer.clear(iova, byteCount: 4 * page) == 0)
  }

  /// A range that fills its table is a block, or takes the table along: that is not done here. A table that went is known no more.
  @Test(arguments: TestFormat.all)
  func whatFillsATable(_ format: TestFormat) throws {
    let space = TestSpace(format), page = format.granule.byteCount, region = format.regionByteCount
    let start = 5 * region, writer = space.table.writer
    #expect(space.table.mapPages(iova: start, to: 0, byteCount: page, attributes: .readable))
    #expect(space.table.clear(iova: start, byteCount: page) == page)
    #expect(!writer.map(start, to: 0, byteCount: region, canWrite: true))
    #expect(!space.table.mapPages(iova: start, to: 0, byteCount: region, attributes: .readable))
    #expect(writer.clear(start, byteCount: region) == nil)
    #expect(writer.map(start, to: 0, byteCount: page, canWrite: true))
    #expect(space.unmap(start, region) == .unmapped(byteCount: page))
    #expect(!writer.map(start, to: 0, byteCount: page, canWrite: true), "its table went")
    #expect(writer.clear(start, byteCount: page) == nil)
  }
}
