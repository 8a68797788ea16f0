import AddressSpace
import AddressSpaceModels
import PageTables
import Synchronization

/// Several threads in one tree, without a lock of the tree's. Each function tells what went wrong.
///
/// The tests run them, and so does the stress program, with ThreadSanitizer.
struct TableThreads {
  let format: TestFormat
  let steps: Int
  private let failures = Failures()

  /// One of each format, and the granules.
  static let formats = TestFormat.all.enumerated().filter { [0, 3, 5, 7, 9].contains($0.offset) }.map(\.element)

  init(_ format: TestFormat, steps: Int) { (self.format, self.steps) = (format, steps) }

  /// All make the same tables at once, for a page each; then one takes all away, and they begin again.
  func oneTableIsLinked() throws -> [String] {
    let space = TestSpace(format), page = format.granule.byteCount, meeting = Meeting(3)
    let levels = Int(space.table.geometry.levels)
    Threads.run(3) { [self] thread in
      for round in 0..<UInt64(steps) {
        let iova = UInt64(thread) * page, address = (round << 8 | UInt64(thread)) * page
        meeting.meet()
        let outcome = space.map(iova, to: address, page), seen = space.table.translate(iova)?.address
        if outcome != .mapped(entryCount: 1) || seen != address {
          failures.add("thread \(thread), round \(round): \(outcome), \(String(describing: seen))")
        }
        meeting.meet()
        if thread > 0 { continue }
        // Who was too late gave a table back.
        let tables = [space.table.tableCount, Int(space.pool.statistics.inUse)]
        let end = space.unmap(0, format.last + 1)
        if tables != [levels, levels] || end != .unmapped(byteCount: 3 * page) {
          failures.add("round \(round): \(tables) tables, \(end)")
        }
      }
    }
    return try verdict(space) + (space.pool.statistics.inUse == 1 ? [] : ["a table is left"])
  }

  /// Pages of one table belong to several threads in turn, and change without pause.
  func neighbours() throws -> [String] {
    let space = TestSpace(format), page = format.granule.byteCount
    Threads.run(4) { [self] thread in
      var random = SplitMix64(seed: UInt64(thread))
      for step in 0..<UInt64(steps) {
        let region = step / 8 % 40 * format.regionByteCount
        let iova = region + (UInt64.random(in: 0..<16, using: &random) * 4 + UInt64(thread)) * page
        let address = (step << 8 | UInt64(thread)) * page
        let outcome = space.map(iova, to: address, page)
        let seen = space.table.translate(iova)?.address
        let end = space.unmap(iova, page)
        if outcome != .mapped(entryCount: 1) || seen != address || end != .unmapped(byteCount: page) {
          return failures.add("thread \(thread), step \(step): \(outcome), \(String(describing: seen)), \(end)")
        }
      }
    }
    return try verdict(space)
  }

  /// As a domain does it: an allocator gives ranges out, of all sizes, and again once they are unmapped; blocks and tables
  /// follow each other; somebody reads, and somebody takes empty tables away.
  func ownersChange() throws -> [String] {
    let space = TestSpace(format, tables: 400), region = format.regionByteCount
    let usable: IOVARanges = [IOVARange(start: IOVA(0), byteCount: 24 * region)!]
    let owners = Owners(try AddressAllocator(usable: usable, granule: format.granule, method: .locked), failures)
    Threads.run(5) { [self] thread in
      var random = SplitMix64(seed: 100 + UInt64(thread))
      switch thread {
      case 0..<3:
        for _ in 0..<steps where !owners.map(space, &random) { break }
        owners.over.wrappingAdd(1, ordering: .relaxed)
      case 3:
        // No claim: whatever comes out, nothing breaks.
        while owners.over.load(ordering: .relaxed) < 3 {
          _ = space.table.translate(.random(in: 0..<24 * region, using: &random))
        }
      default:
        while owners.over.load(ordering: .relaxed) < 3 { owners.reclaim(space) }
      }
    }
    owners.reclaim(space)
    return try verdict(space)
  }

  /// What went wrong, and what is left: nothing is mapped, and each table is known to the tree and to the pool.
  private func verdict(_ space: TestSpace) throws -> [String] {
    let contents = try space.contents(), counts = [space.table.tableCount, Int(space.pool.statistics.inUse)]
    var all = failures.all
    if contents.leaves != [] { all.append("\(contents.leaves.count) leaves are left") }
    if counts != [contents.tables.count, contents.tables.count] {
      all.append("\(contents.tables.count) tables, and \(counts) are known")
    }
    return all
  }
}

/// What went wrong, from any thread.
private final class Failures: Sendable {
  private let list = Mutex<[String]>([])
  var all: [String] { list.withLock { $0 } }
  func add(_ text: String) { list.withLock { $0.append(text) } }
}

/// Who owns which addresses.
private final class Owners: Sendable {
  private let allocator: AddressAllocator
  private let failures: Failures
  /// How many threads are done.
  let over = Atomic<Int>(0)

  init(_ allocator: consuming AddressAllocator, _ failures: Failures) {
    self.allocator = allocator
    self.failures = failures
  }

  private func fail(_ text: String) -> Bool {
    failures.add(text)
    return false
  }

  /// Takes a range, maps it, looks, unmaps it, and gives it back; `false` when something is wrong.
  func map(_ space: TestSpace, _ random: inout SplitMix64) -> Bool {
    let page = space.format.granule.byteCount, region = space.format.regionByteCount
    let isLong = random.once(in: 3)
    let byteCount = isLong ? region : page << UInt64.random(in: 0..<6, using: &random)
    guard let start = try? allocator.allocate(byteCount: byteCount) else { return true }
    let iova = start.rawValue
    // A block every other time.
    let address = (1 << 44) + iova + (random.once(in: 2) ? page : 0)
    let outcome = space.mapAnyway(iova, to: address, byteCount, [.readable, .writable])
    guard case .mapped = outcome else { return fail("map: \(outcome)") }
    for place in [iova, iova + byteCount - 1, iova + byteCount / 2] {
      let seen = space.table.translate(place)
      guard seen?.address == address + (place - iova) else { return fail("translate: \(String(describing: seen))") }
    }
    let end = space.unmap(iova, byteCount)
    guard end == .unmapped(byteCount: byteCount) else { return fail("unmap: \(end)") }
    allocator.free(start, byteCount: byteCount)
    return true
  }

  /// Takes away tables without entries whose region nobody has.
  func reclaim(_ space: TestSpace) {
    var from: UInt64 = 0
    while true {
      switch space.table.findEmptyTable(from: from, limit: 20) {
      case .none: return
      case .more(let next): from = next
      case .found(let iova, let byteCount):
        from = iova + byteCount
        guard let range = IOVARange(start: IOVA(iova), byteCount: byteCount),
          (try? allocator.insert(.init(range: range, kind: .allocation))) != nil
        else { continue }
        var gather = Gather(tracksRanges: false)
        _ = space.table.removeEmptyTable(iova: iova, byteCount: byteCount, into: &gather)
        space.pool.give(back: gather.takeTables())
        _ = allocator.remove(IOVA(iova))
      }
    }
  }
}
