internal import AddressSpace
internal import Synchronization

// MARK: - In one table

extension TableTree {
  /// ``PageTable/unmap(iova:byteCount:into:)``.
  @inline(__always)
  func unmap(_ iova: UInt64, _ byteCount: UInt64, into gather: inout Gather) -> UnmapOutcome {
    check(iova, byteCount)
    guard isInOneTable(iova, byteCount), let table = findLowest(iova) else {
      return unmapParts(iova, iova &+ byteCount &- 1, into: &gather)
    }
    let count = Int(truncatingIfNeeded: byteCount &>> UInt64(geometry.granule.shift))
    return .unmapped(byteCount: clearPages(table, index(iova, 0), count, iova, into: &gather))
  }

  /// ``PageTable/clear(iova:byteCount:)``.
  @inline(__always)
  func clearInOneTable(_ iova: UInt64, _ byteCount: UInt64) -> UInt64? {
    check(iova, byteCount)
    guard isInOneTable(iova, byteCount), let table = findLowest(iova) else { return nil }
    var place = index(iova, 0), mapped: UInt64 = 0, left = byteCount
    while left > 0 {
      let entry = table.peek(place)
      if entry != 0 {
        assert(entry & Format.ownedBit == 0, "memory of the mapping's own")
        table.store(0, at: place)
        mapped &+= geometry.granule.byteCount
      }
      place &+= 1
      left &-= geometry.granule.byteCount
    }
    return mapped
  }

  /// Clears pages of one table; returns how many bytes were mapped.
  @inline(__always)
  private func clearPages(
    _ table: Table, _ first: Int, _ count: Int, _ iova: UInt64, into gather: inout Gather
  ) -> UInt64 {
    let shift = UInt64(geometry.granule.shift)
    var seen: UInt64 = 0
    // Where the pages before the current one begin that were mapped without a gap.
    var runStart = iova
    var byteCount: UInt64 = 0
    var place = iova
    var index = first
    while index < first &+ count {
      let entry = table.peek(index)
      if entry == 0 {
        if place != runStart { gather.add(runStart, place &- runStart, leafShift: geometry.granule.shift) }
        byteCount &+= place &- runStart
        runStart = place &+ (1 &<< shift)
      } else {
        table.store(0, at: index)
        seen |= entry
      }
      place &+= 1 &<< shift
      index &+= 1
    }
    if place != runStart { gather.add(runStart, place &- runStart, leafShift: geometry.granule.shift) }
    if seen & Format.ownedBit != 0 { gather.sawOwned = true }
    return byteCount &+ (place &- runStart)
  }
}

// MARK: - In several

extension TableTree {
  /// Looks whether an end cuts a leaf, which only one that is larger than a granule can be; then clears all.
  @inline(never)
  private func unmapParts(_ iova: UInt64, _ last: UInt64, into gather: inout Gather) -> UnmapOutcome {
    if let leaf = leaf(at: iova), iova & mask(leaf.level) != 0 { return cut(iova, leaf.level) }
    if let leaf = leaf(at: last), last & mask(leaf.level) != mask(leaf.level) { return cut(last, leaf.level) }
    return .unmapped(byteCount: clear(iova, last, into: &gather))
  }

  private func cut(_ iova: UInt64, _ level: Level) -> UnmapOutcome {
    .cuts(iova: iova & ~mask(level), leaf: PageSize(shift: geometry.shift(level: level)))
  }

  /// Clears a range whose ends cut no leaf, and unlinks the tables all of whose region it has; returns how many bytes were mapped.
  func clear(_ iova: UInt64, _ last: UInt64, into gather: inout Gather) -> UInt64 {
    clear(root, topLevel, iova, last, into: &gather)
  }

  /// The part of it below one table, from one of its addresses to another.
  private func clear(
    _ table: Table, _ level: Level, _ iova: UInt64, _ last: UInt64, into gather: inout Gather
  ) -> UInt64 {
    if level == 0 {
      let count = index(last, 0) - index(iova, 0) + 1
      return clearPages(table, index(iova, 0), count, iova, into: &gather)
    }
    var byteCount: UInt64 = 0
    var start = iova
    for index in index(iova, level)...index(last, level) {
      let end = min(start | mask(level), last)
      byteCount += clearEntry(table, index, level, start, end, into: &gather)
      start = end &+ 1
    }
    return byteCount
  }

  /// The part of it below one entry.
  private func clearEntry(
    _ table: Table, _ index: Int, _ level: Level, _ start: UInt64, _ end: UInt64, into gather: inout Gather
  ) -> UInt64 {
    let entry = table.load(index)
    if entry == 0 { return 0 }
    let isWhole = end &- start == mask(level)
    guard Format.isTable(entry) else {
      assert(isWhole, "the ends were looked at")
      table.store(0, at: index)
      if entry & Format.ownedBit != 0 { gather.sawOwned = true }
      gather.add(start, mask(level) + 1, leafShift: geometry.shift(level: level))
      return mask(level) + 1
    }
    let below = child(entry)
    guard isWhole else { return clear(below, level - 1, start, end, into: &gather) }
    // The way there goes first. Hardware that is past it sees each entry either as it was or gone.
    table.store(0, at: index)
    return takeApart(below, level, start, end, into: &gather)
  }

  /// Clears a table that was unlinked, and all below it. Its entry was of this level and all of this range.
  func takeApart(
    _ below: Table, _ level: Level, _ start: UInt64, _ end: UInt64, into gather: inout Gather
  ) -> UInt64 {
    let ranges = gather.rangeCount
    let byteCount = clear(below, level - 1, start, end, into: &gather)
    // What is cached of the way to this table goes with any address below it, so that there has to be one.
    if gather.rangeCount == ranges {
      gather.add(start, geometry.granule.byteCount, leafShift: geometry.granule.shift)
    }
    if level == 1 { hints.forget(region(start)) }
    gather.add(below, of: memory)
    linked.wrappingSubtract(1, ordering: .relaxed)
    return byteCount
  }
}
