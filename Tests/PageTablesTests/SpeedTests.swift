import AddressSpace
import Glibc
import PageTables
import Testing

/// Prints what calls cost, in thread CPU time, the least of many slices. Nothing is asserted: times are no test.
/// Only in a release build, and only with `SPEED` in the environment.
@Suite(.enabled(if: environment("SPEED") != nil))
struct SpeedTests {
  /// How many tables of pages calls go round in.
  private static let ring: UInt64 = 16

  @Test func smmu() {
    for format in TestFormat.all.prefix(6) where format.granule == .fourKiB || format.last >> 40 != 0 {
      let space = TestSpace(format)
      if let table = SMMUTable(pool: space.pool, inputBits: UInt8(64 - format.last.leadingZeroBitCount)) {
        for pages in [1, 2, 4, 16, 64, 256, 511] as [UInt64] {
          let times = (measure(table, format, pages, false), measure(table, format, pages, true))
          print(
            "\(format.name), \(pages) pages: map \(times.0.map), unmap \(times.0.unmap), tracked \(times.1.unmap) ns")
        }
        pair(table, format)
      }
    }
  }

  /// The least times of a map and of an unmap.
  private func measure(
    _ table: borrowing SMMUTable, _ format: TestFormat, _ pages: UInt64, _ tracks: Bool
  ) -> (map: Double, unmap: Double) {
    let page = format.granule.byteCount, region = format.regionByteCount
    // So many pages each that they fill a table at most.
    let count = 512 / pages
    var times = (map: Double.infinity, unmap: Double.infinity)
    for _ in 0..<200 {
      times.map = min(
        times.map,
        nanoseconds(count * Self.ring) { place in
          let iova = place % Self.ring * region + place / Self.ring * pages * page
          _ = table.map(iova: iova, to: place * page, byteCount: pages * page, attributes: [.readable, .writable])
        })
      times.unmap = min(
        times.unmap,
        nanoseconds(count * Self.ring) { place in
          let iova = place % Self.ring * region + place / Self.ring * pages * page
          var gather = Gather(tracksRanges: tracks)
          _ = table.unmap(iova: iova, byteCount: pages * page, into: &gather)
        })
    }
    return times
  }

  /// The same page again and again.
  private func pair(_ table: borrowing SMMUTable, _ format: TestFormat) {
    let page = format.granule.byteCount
    var (lazy, tracked, hit) = (Double.infinity, Double.infinity, Double.infinity)
    for _ in 0..<100 {
      for tracks in [false, true] {
        let time = nanoseconds(10_000) { _ in
          _ = table.map(iova: 256 * page, to: page, byteCount: page, attributes: [.readable, .writable])
          var gather = Gather(tracksRanges: tracks)
          _ = table.unmap(iova: 256 * page, byteCount: page, into: &gather)
        }
        if tracks { tracked = min(tracked, time) } else { lazy = min(lazy, time) }
      }
      _ = table.map(iova: 256 * page, to: page, byteCount: page, attributes: .readable)
      hit = min(
        hit,
        nanoseconds(10_000) { place in
          if table.translate(256 * page + place % page)?.address == 0 { fatalError() }
        })
      var gather = Gather(tracksRanges: false)
      _ = table.unmap(iova: 256 * page, byteCount: page, into: &gather)
    }
    print("\(format.name): a pair of one page \(lazy), tracked \(tracked), translate \(hit) ns")
  }

  private func nanoseconds(_ count: UInt64, _ body: (UInt64) -> Void) -> Double {
    let start = cpuTime()
    for place in 0..<count { body(place) }
    let time = cpuTime() - start
    // The clock of a virtual machine is set now and then.
    return time > 0 ? Double(time * 100 / Int(count)) / 100 : .infinity
  }

  private func cpuTime() -> Int {
    var time = timespec()
    unsafe clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return time.tv_sec * 1_000_000_000 + time.tv_nsec
  }
}
