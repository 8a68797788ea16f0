internal import AddressSpace

// MARK: - In one table

extension TableTree {
  /// ``PageTable/map(iova:to:byteCount:attributes:)``.
  @inline(__always)
  func map(_ iova: UInt64, _ address: UInt64, _ byteCount: UInt64, _ attributes: LeafAttributes) -> MapOutcome {
    check(iova, address, byteCount, attributes)
    guard isInOneTable(iova, byteCount) else { return mapParts(iova, address, byteCount, attributes) }
    guard let table = makeLowest(iova) else { return obstacle(iova, 0) }
    let first = index(iova, 0), count = pageCount(byteCount)
    guard table.isClear(first, count) else { return occupied(table, first, count, iova) }
    fill(table, first, count, Format.leaf(attributes, isBlock: false) | address, step: geometry.granule.byteCount)
    return .mapped(entryCount: count)
  }

  /// ``PageTable/mapPages(iova:to:byteCount:attributes:)``.
  @inline(__always)
  func mapInOneTable(
    _ iova: UInt64, _ address: UInt64, _ byteCount: UInt64, _ attributes: LeafAttributes
  ) -> Bool {
    check(iova, address, byteCount, attributes)
    guard isInOneTable(iova, byteCount), let table = makeLowest(iova) else { return false }
    let first = index(iova, 0), count = pageCount(byteCount)
    guard table.isClear(first, count) else { return false }
    fill(table, first, count, Format.leaf(attributes, isBlock: false) | address, step: geometry.granule.byteCount)
    return true
  }

  @inline(__always)
  private func pageCount(_ byteCount: UInt64) -> Int {
    Int(truncatingIfNeeded: byteCount &>> UInt64(geometry.granule.shift))
  }

  /// Traps unless a map is one of whole granules, all of which entries can lead to.
  @inline(__always)
  private func check(_ iova: UInt64, _ address: UInt64, _ byteCount: UInt64, _ attributes: LeafAttributes) {
    check(iova, byteCount)
    precondition(address & geometry.granule.mask == 0 && attributes.isPresent, "whole granules, to be reached somehow")
    precondition(address <= Format.lastOutput && byteCount &- 1 <= Format.lastOutput &- address)
  }

  /// Writes leaves that lead to consecutive addresses.
  @inline(__always)
  private func fill(_ table: Table, _ first: Int, _ count: Int, _ entry: UInt64, step: UInt64) {
    var entry = entry
    var index = first
    while index < first &+ count {
      table.store(entry, at: index)
      entry &+= step
      index &+= 1
    }
  }

  /// Why ``make(_:_:)`` found no way.
  @inline(never)
  private func obstacle(_ iova: UInt64, _ level: Level) -> MapOutcome {
    guard let leaf = leaf(at: iova), leaf.level > level else { return .noTables }
    return .exists(iova: iova)
  }

  /// Which of some pages is mapped.
  @inline(never)
  private func occupied(_ table: Table, _ first: Int, _ count: Int, _ iova: UInt64) -> MapOutcome {
    let index = table.firstInUse(first, count) ?? first
    return .exists(iova: iova + UInt64(index - first) << UInt64(geometry.granule.shift))
  }
}

// MARK: - In several

/// Leaves of one size whose entries lie in one table.
private struct Run {
  var level: UInt8
  var count: Int
  var byteCount: UInt64
}

extension TableTree {
  /// First looks at all, and links the tables; then writes all.
  @inline(never)
  private func mapParts(
    _ iova: UInt64, _ address: UInt64, _ byteCount: UInt64, _ attributes: LeafAttributes
  ) -> MapOutcome {
    var done: UInt64 = 0
    while done < byteCount {
      let run = run(iova + done, address + done, byteCount - done)
      if let failure = prepare(run, at: iova + done) { return failure }
      done += run.byteCount
    }
    done = 0
    var entryCount = 0
    while done < byteCount {
      let run = run(iova + done, address + done, byteCount - done)
      guard let table = find(iova + done, run.level) else { preconditionFailure("a table of an owned range went") }
      let entry = Format.leaf(attributes, isBlock: run.level > 0) | (address + done)
      fill(table, index(iova + done, run.level), run.count, entry, step: mask(run.level) + 1)
      done += run.byteCount
      entryCount += run.count
    }
    return .mapped(entryCount: entryCount)
  }

  /// The leaves to begin a range with: of the largest size that divides both addresses and fits, to the end of the range or of the
  /// table. There, if not before, a larger size may divide them; before, none can, since it is at least what the table covers.
  private func run(_ iova: UInt64, _ address: UInt64, _ byteCount: UInt64) -> Run {
    var level = topLeafLevel
    while level > 0 && ((iova | address) & mask(level) != 0 || byteCount <= mask(level) || !isLeafLevel(level)) {
      level -= 1
    }
    let shift = UInt64(geometry.shift(level: level))
    let count = min(Int(byteCount >> shift), geometry.entryCount - index(iova, level))
    return Run(level: level, count: count, byteCount: UInt64(count) << shift)
  }

  private func isLeafLevel(_ level: Level) -> Bool {
    pageSizes.contains(PageSize(shift: geometry.shift(level: level)))
  }

  /// Links the table for some leaves and makes sure that their entries are free; what stands in the way otherwise.
  private func prepare(_ run: Run, at iova: UInt64) -> MapOutcome? {
    guard let table = make(iova, run.level) else { return obstacle(iova, run.level) }
    let first = index(iova, run.level)
    if table.isClear(first, run.count) { return nil }
    if run.level == 0 { return occupied(table, first, run.count, iova) }
    for place in 0..<run.count where table.peek(first + place) != 0 {
      return cleared(table, first + place, run.level, iova + UInt64(place) << UInt64(geometry.shift(level: run.level)))
    }
    return nil
  }

  /// A block is to go where an entry is: that of a leaf stays, a table without leaves is unlinked.
  private func cleared(_ table: Table, _ index: Int, _ level: Level, _ start: UInt64) -> MapOutcome {
    let entry = table.load(index)
    guard Format.isTable(entry) else { return .exists(iova: start) }
    if let leaf = firstLeaf(child(entry), level - 1, start: start) { return .exists(iova: leaf) }
    table.store(0, at: index)
    return .mustInvalidate(UnlinkedTables(iova: start, byteCount: mask(level) + 1, entry: entry))
  }

  /// ``PageTable/takeApart(_:)``.
  func takeApart(_ unlinked: UnlinkedTables) -> TableList {
    var gather = Gather(tracksRanges: false)
    let level = level(of: unlinked)
    _ = takeApart(child(unlinked.entry), level, unlinked.iova, unlinked.iova + mask(level), into: &gather)
    return gather.takeTables()
  }

  /// ``PageTable/relink(_:)``.
  func relink(_ unlinked: UnlinkedTables) {
    let level = level(of: unlinked)
    guard let table = find(unlinked.iova, level) else { preconditionFailure("a table of an owned range went") }
    table.store(unlinked.entry, at: index(unlinked.iova, level))
  }

  /// That of the entry which led to them.
  private func level(of unlinked: UnlinkedTables) -> Level {
    geometry.level(shift: UInt8(unlinked.byteCount.trailingZeroBitCount))!
  }
}
