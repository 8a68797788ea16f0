import AddressSpace
import AddressSpaceModels
import PageTables

/// A random trace of maps and unmaps, on tables and on the model side by side.
struct TableTrace {
  private let space: TestSpace
  private var model: NaiveTable
  private var random: SplitMix64
  private let format: TestFormat
  /// Where ranges begin, more or less: at the start and the end of the space, and where tables of each level meet.
  private let anchors: [UInt64]
  /// How often each outcome came about.
  private(set) var counts: [String: Int] = [:]

  struct Difference: Error, CustomStringConvertible { let description: String }

  init(_ format: TestFormat, seed: UInt64) {
    self.format = format
    space = TestSpace(format, tables: 220)
    model = NaiveTable(format)
    random = SplitMix64(seed: seed)
    let region = format.regionByteCount
    let upper = region * (format.granule.byteCount / 8)
    anchors = [0, region, 3 * region, upper, format.last / 2 / upper * upper, format.last - (2 * region - 1)]
      .filter { $0 < format.last }
  }

  mutating func step() throws {
    switch Int.random(in: 0..<20, using: &random) {
    case 0..<9: try map()
    case 9..<12: try unmapOne()
    case 12..<17: try unmapAnywhere()
    case 17: try reclaim()
    default: try translate()
    }
  }

  private mutating func count(_ name: String) { counts[name, default: 0] += 1 }

  private func require<Value: Equatable>(_ seen: Value, _ wanted: Value, _ what: String) throws {
    if seen != wanted { throw Difference(description: "\(what): \(seen), not \(wanted)") }
  }

  // MARK: - Choices

  /// A range of whole granules in the space.
  private mutating func range() -> (iova: UInt64, byteCount: UInt64) {
    let page = format.granule.byteCount, region = format.regionByteCount
    var iova = anchors.randomElement(using: &random)!
    switch Int.random(in: 0..<4, using: &random) {
    case 0: break
    case 1: iova += page * .random(in: 0..<12, using: &random)
    case 2: iova += region - page * .random(in: 1..<6, using: &random)
    default: iova += region * .random(in: 0..<2, using: &random)
    }
    var byteCount: UInt64
    switch Int.random(in: 0..<14, using: &random) {
    case 0..<8: byteCount = page * .random(in: 1..<10, using: &random)
    case 8..<11: byteCount = region
    case 11: byteCount = 2 * region + page * .random(in: 0..<3, using: &random)
    case 12: byteCount = region - page * .random(in: 0..<3, using: &random)
    // A leaf of the largest size, and perhaps a bit.
    default:
      byteCount = PageSizes(rawValue: format.pageSizes).largest!.byteCount + page * .random(in: 0..<2, using: &random)
    }
    // A quarter of a million pages are too many.
    if byteCount > 4 * region && format.block != region { iova &= ~(format.block - 1) }
    iova = min(iova, format.last & ~(page - 1))
    byteCount = min(byteCount, format.last - iova + 1)
    return (iova, byteCount)
  }

  /// Where it leads: so that blocks can be used, or not.
  private mutating func address(_ iova: UInt64, _ byteCount: UInt64) -> UInt64 {
    let largest = PageSizes(rawValue: format.pageSizes).largest!
    let last = min(format.lastOutput, (1 << 45) - 1)
    var address = UInt64.random(in: 0...(last - byteCount - 2 * largest.byteCount), using: &random) & ~largest.mask
    if byteCount < 4 * format.regionByteCount, random.once(in: 4) {
      address += format.granule.byteCount
    } else {
      address |= iova & largest.mask
    }
    return address
  }

  private mutating func attributes() -> LeafAttributes {
    let all: [LeafAttributes] = [.readable, .writable, [.readable, .writable]]
    var attributes = all.randomElement(using: &random)!
    if random.once(in: 4) { attributes.insert(.owned) }
    if random.once(in: 6) { attributes.insert(.device) }
    return attributes
  }
}

// MARK: - Steps

extension TableTrace {
  private mutating func map() throws {
    let (iova, byteCount) = range()
    let address = address(iova, byteCount), attributes = attributes()
    let wanted = model.map(iova, address, byteCount, attributes)
    var outcome = space.map(iova, to: address, byteCount, attributes), isRelinked = false
    while case .mustInvalidate(let unlinked) = outcome {
      count("mustInvalidate")
      try require(unlinked.iova >= iova && unlinked.iova - iova <= byteCount - unlinked.byteCount, true, "region")
      if case .mapped = wanted {
      } else {
        try require(model.overlapping(unlinked.iova, unlinked.iova + unlinked.byteCount - 1).count, 0, "leaves in it")
      }
      // The first invalidation fails, and the next call finds all as it was.
      if isRelinked {
        space.pool.give(back: space.table.takeApart(unlinked))
      } else {
        space.table.relink(unlinked)
        count("relinked")
      }
      isRelinked.toggle()
      outcome = space.map(iova, to: address, byteCount, attributes)
    }
    count("\(outcome)".prefix { $0 != "(" }.description)
    try require(outcome, wanted, "map \(String(iova, radix: 16)) \(byteCount)")
    try look(iova, byteCount)
  }

  private mutating func unmapOne() throws {
    guard let start = model.leaves.keys.sorted().randomElement(using: &random) else { return }
    try unmap(start, model.leaves[start]!.byteCount)
  }

  private mutating func unmapAnywhere() throws {
    let (iova, byteCount) = range()
    try unmap(iova, byteCount)
  }

  private mutating func unmap(_ iova: UInt64, _ byteCount: UInt64) throws {
    let (wanted, gone) = model.unmap(iova, byteCount)
    let tables = space.table.tableCount
    var gather = Gather(tracksRanges: random.once(in: 2))
    let outcome = space.table.unmap(iova: iova, byteCount: byteCount, into: &gather)
    let removed = gather.takeTables()
    count("\(outcome)".prefix { $0 != "(" }.description)
    try require(outcome, wanted, "unmap \(String(iova, radix: 16)) \(byteCount)")
    try require(gather.sawOwned, gone.contains { $0.leaf.attributes.contains(.owned) }, "owned")
    try require(tables - space.table.tableCount, Int(removed.count), "tables that went")
    try require(gather.isLeafOnly, removed.isEmpty, "leaf only")
    if gather.tracksRanges && !gather.isEverything {
      try check(gather.runs, gone, tables: UInt64(removed.count), from: iova, to: iova + (byteCount - 1))
    } else {
      try require(gather.count, 0, "runs")
    }
    space.pool.give(back: removed)
    try look(iova, byteCount)
  }

  /// Every leaf that went is in a run of its size, and there is no more but a page for a table that had none.
  private func check(
    _ runs: [Gather.Run], _ gone: [(start: UInt64, leaf: NaiveTable.Leaf)], tables: UInt64, from iova: UInt64,
    to last: UInt64
  ) throws {
    for (start, leaf) in gone {
      let isIn = runs.contains {
        1 << UInt64($0.leafShift) == leaf.byteCount && $0.start <= start && start - $0.start < $0.byteCount
      }
      try require(isIn, true, "a run with \(String(start, radix: 16))")
    }
    let total = runs.reduce(0 as UInt64) { $0 + $1.byteCount }
    let mapped = gone.reduce(0 as UInt64) { $0 + $1.leaf.byteCount }
    try require(total >= mapped && total <= mapped + tables * format.granule.byteCount, true, "bytes of runs")
    try require(runs.allSatisfy { $0.start >= iova && $0.start + ($0.byteCount - 1) <= last }, true, "runs inside")
  }

  private mutating func reclaim() throws {
    var place: UInt64 = 0
    while true {
      switch space.table.findEmptyTable(from: place, limit: .random(in: 1..<40, using: &random)) {
      case .none: return
      case .more(let next):
        try require(next > place, true, "the search goes on")
        place = next
      case .found(let iova, let byteCount):
        count("reclaimed")
        try require(model.overlapping(iova, iova + byteCount - 1).count, 0, "leaves in an empty table")
        var gather = Gather(tracksRanges: true)
        try require(space.table.removeEmptyTable(iova: iova, byteCount: byteCount, into: &gather), true, "removed")
        try require(gather.isLeafOnly, false, "leaf only")
        try require(
          gather.runs, [.init(start: iova, byteCount: format.granule.byteCount, leafShift: format.granule.shift)], "run"
        )
        space.pool.give(back: gather.takeTables())
        place = iova
      }
    }
  }

  private mutating func translate() throws {
    let (iova, byteCount) = range()
    try look(iova, byteCount)
    let inside = iova + .random(in: 0..<byteCount, using: &random)
    let found = model.leaf(at: inside)
    let wanted = found.map {
      LeafTranslation(
        address: $0.leaf.address + (inside - $0.start), pageSize: PageSize(byteCount: $0.leaf.byteCount)!,
        attributes: $0.leaf.attributes)
    }
    try require(space.table.translate(inside), wanted, "translate \(String(inside, radix: 16))")
  }

  // MARK: - As hardware sees it

  /// Both ends of a range, and beside them.
  private func look(_ iova: UInt64, _ byteCount: UInt64) throws {
    let last = iova + (byteCount - 1)
    for place in [iova, last, iova &- 1, last + 1, iova + byteCount / 2] where place <= format.last {
      let wanted = model.leaf(at: place).map { read($0.start, $0.leaf) }
      try require(try space.walk(place), wanted, "walk to \(String(place, radix: 16))")
    }
  }

  private func read(_ start: UInt64, _ leaf: NaiveTable.Leaf) -> ReadLeaf {
    var allows: Access = []
    if leaf.attributes.contains(.readable) { allows.insert(.read) }
    if leaf.attributes.contains(.writable) { allows.insert(.write) }
    return ReadLeaf(
      iova: start, address: leaf.address, byteCount: leaf.byteCount, allows: allows,
      isDevice: leaf.attributes.contains(.device), isOwned: leaf.attributes.contains(.owned))
  }

  /// All of it; and that no table is lost.
  func lookAtAll() throws {
    let contents = try space.contents()
    try require(contents.leaves.count, model.leaves.count, "leaves")
    for leaf in contents.leaves {
      try require(leaf, model.leaves[leaf.iova].map { read(leaf.iova, $0) } ?? leaf, "leaf")
      try require(model.leaves[leaf.iova] != nil, true, "a leaf at \(String(leaf.iova, radix: 16))")
    }
    try require(contents.tables.count, space.table.tableCount, "tables")
    try require(UInt64(contents.tables.count), space.pool.statistics.inUse, "tables of the pool")
  }

  /// The end of the tables, with all that is mapped in them: all come back.
  func end() throws {
    space.destroy()
    try require(space.pool.statistics.inUse, 0, "tables after the end")
  }
}
