import AddressSpace
import PageTables

/// What the page tables alone cost, natively: `table_call` a call with one leaf, `table_leaf` each leaf of a run of 256.
///
/// Thread CPU time, the slower of a map and an unmap; medians of rounds, each over tables that are there.
enum TableEngine {
  private static let rounds = 61, calls = 16 * 512

  static func run(pages: UInt64) throws -> Measurement {
    let memory = Memory(tables: 96), pool = memory.pool
    guard let table = SMMUTable(pool: pool, inputBits: 48) else { throw Failure(description: "no tables") }
    let count = UInt64(calls) / pages
    var maps: [Double] = [], unmaps: [Double] = []
    for round in 0...rounds {
      let map = time(count) { place in
        let iova = address(place, pages)
        if case .mapped = table.map(
          iova: iova, to: iova & 0xffff_ffff, byteCount: pages << 12, attributes: LeafAttributes(rawValue: 3))
        {
          return true
        }
        return false
      }
      let unmap = time(count) { place in
        var gather = Gather(tracksRanges: true)
        if case .unmapped(let done) = table.unmap(iova: address(place, pages), byteCount: pages << 12, into: &gather) {
          return done == pages << 12
        }
        return false
      }
      if round == 0 { continue }  // makes the tables
      guard let map, let unmap else { throw Failure(description: "a call did not do what it should") }
      maps.append(map / Double(pages))
      unmaps.append(unmap / Double(pages))
    }
    let (map, unmap) = (median(maps), median(unmaps))
    return Measurement(
      value: max(map, unmap), anchor: pages == 1 ? "a map, ns" : "a leaf of a map, ns", anchorValue: map,
      repeats: rounds)
  }

  /// Each call in another table of pages than the last, 16 of them in turn.
  private static func address(_ place: UInt64, _ pages: UInt64) -> UInt64 {
    1 << 32 + (place % 16) << 21 + (place / 16) * (pages << 12)
  }

  /// Nanoseconds a call; nil when one of them said no.
  private static func time(_ count: UInt64, _ body: (UInt64) -> Bool) -> Double? {
    let began = cpuTime()
    var isGood = true
    for place in 0..<count where !body(place) { isGood = false }
    let time = Double(cpuTime() - began)
    return isGood ? time / Double(count) : nil
  }

  /// Memory for tables.
  @safe
  private final class Memory: @unchecked Sendable {
    private let base: UnsafeMutableRawPointer, byteCount: Int

    init(tables: Int) {
      byteCount = tables * 4096
      unsafe base = .allocate(byteCount: byteCount, alignment: 4096)
      unsafe base.initializeMemory(as: UInt8.self, repeating: 0, count: byteCount)
    }

    deinit { unsafe base.deallocate() }

    /// All of it, ready.
    var pool: TablePool {
      let pool = unsafe TablePool(
        base: base, address: 1 << 40, byteCount: UInt64(byteCount), granule: .fourKiB, owner: self)
      pool.extend(byteCount: UInt64(byteCount))
      return pool
    }
  }
}
