import PageTables
import Testing

/// What a gather makes of runs that are added to it.
struct GatherTests {
  private typealias Run = Gather.Run

  /// Runs that go in, as first page, number of pages, shift; and what is kept.
  @Test(
    arguments: [
      ([], []),
      ([(1, 1, 12)], [(1, 1, 12)]),
      // One after the other, upwards and downwards.
      ([(1, 1, 12), (2, 3, 12)], [(1, 4, 12)]),
      ([(5, 2, 12), (4, 1, 12), (2, 2, 12)], [(2, 5, 12)]),
      ([(5, 1, 12), (4, 1, 12), (6, 1, 12)], [(4, 3, 12)]),
      // A gap; and what continues not the last but the one before.
      ([(1, 1, 12), (3, 1, 12)], [(1, 1, 12), (3, 1, 12)]),
      ([(1, 1, 12), (9, 1, 12), (2, 1, 12)], [(1, 1, 12), (9, 1, 12), (2, 1, 12)]),
      // Neighbours in leaves of another size.
      ([(0, 512, 21), (512, 512, 21), (1024, 1, 12)], [(0, 1024, 21), (1024, 1, 12)]),
      ([(512, 512, 21), (511, 1, 12)], [(512, 512, 21), (511, 1, 12)]),
    ] as [([(UInt64, UInt64, UInt8)], [(UInt64, UInt64, UInt8)])])
  func merges(_ added: [(UInt64, UInt64, UInt8)], _ kept: [(UInt64, UInt64, UInt8)]) {
    var gather = Gather(tracksRanges: true)
    for run in added { gather.add(run.0 << 12, run.1 << 12, leafShift: run.2) }
    #expect(gather.runs == kept.map { Run(start: $0.0 << 12, byteCount: $0.1 << 12, leafShift: $0.2) })
    #expect(gather.rangeCount == added.count)
    #expect(gather.isEmpty == added.isEmpty)
    #expect(gather.isLeafOnly == true)
    #expect(gather.isEverything == false)
    #expect(gather.takeTables().isEmpty == true)
  }

  @Test func overflows() {
    var gather = Gather(tracksRanges: true)
    for place in 0..<UInt64(Gather.capacity) { gather.add(place << 13, 1 << 12, leafShift: 12) }
    #expect(gather.count == 16)
    #expect(gather.isEverything == false)
    gather.add(15 << 13 | 1 << 12, 1 << 12, leafShift: 12)
    #expect(gather.count == 16)
    gather.add(1 << 30, 1 << 12, leafShift: 12)
    #expect(gather.isEverything == true)
    #expect(gather.count == 0)
    #expect(gather.isEmpty == false)
    // It stays so.
    gather.add(1 << 31, 1 << 12, leafShift: 12)
    #expect(gather.isEverything == true)
    #expect(gather.count == 0)
    #expect(gather.rangeCount == 19)
  }

  @Test func tracksNothingWhenLazy() {
    var gather = Gather(tracksRanges: false)
    for place in 0..<100 as Range<UInt64> { gather.add(place << 13, 1 << 12, leafShift: 12) }
    #expect(gather.isEmpty == true)
    #expect(gather.rangeCount == 0)
    #expect(gather.count == 0)
    #expect(gather.isEverything == false)
  }
}
