internal import AddressSpace

// By any thread, on any address: an entry may change while it is read, and a table become part of another tree. So the address
// of a table is looked at before it is followed, and what comes out is a hint unless the caller owns the address.

extension TableTree {
  /// ``PageTable/translate(_:)``.
  func translate(_ iova: UInt64) -> LeafTranslation? {
    guard iova <= last else { return nil }
    var table = root
    var level = topLevel
    while true {
      let entry = table.load(index(iova, level))
      if entry == 0 { return nil }
      if level == 0 || !Format.isTable(entry) { return translation(iova, entry, level) }
      guard let next = memory.table(ifAt: entry & Format.addressMask) else { return nil }
      table = next
      level -= 1
    }
  }

  private func translation(_ iova: UInt64, _ entry: UInt64, _ level: Level) -> LeafTranslation? {
    let mask = mask(level), pageSize = PageSize(shift: geometry.shift(level: level))
    // What is no leaf of this level was written for another.
    guard pageSizes.contains(pageSize) else { return nil }
    return LeafTranslation(
      address: entry & Format.addressMask & ~mask | iova & mask, pageSize: pageSize,
      attributes: Format.attributes(of: entry))
  }
}

// MARK: - Tables without entries

extension TableTree {
  /// ``PageTable/findEmptyTable(from:limit:)``.
  func findEmptyTable(from iova: UInt64, limit: Int) -> EmptyTableSearch {
    guard iova <= last else { return .none }
    // One way from the root to the leaves has to be within the limit, or the search would stay where it is.
    var budget = max(limit, Int(topLevel) + 1)
    return search(root, topLevel, start: 0, from: iova, &budget) ?? .none
  }

  /// Looks at a table and at those below it, from an address on; `nil` when there is nothing, and the search goes on behind.
  private func search(
    _ table: Table, _ level: Level, start: UInt64, from iova: UInt64, _ budget: inout Int
  ) -> EmptyTableSearch? {
    guard budget > 0 else { return .more(from: start) }
    budget -= 1
    guard table.firstInUse(0, geometry.entryCount) != nil else {
      return level == topLevel ? nil : .found(iova: start, byteCount: mask(level + 1) + 1)
    }
    if level == 0 { return nil }
    let shift = UInt64(geometry.shift(level: level))
    for index in (iova > start ? Int((iova - start) >> shift) : 0)..<geometry.entryCount {
      let entry = table.load(index)
      guard entry != 0, Format.isTable(entry), let below = memory.table(ifAt: entry & Format.addressMask) else {
        continue
      }
      let place = start + UInt64(index) << shift
      if let outcome = search(below, level - 1, start: place, from: iova, &budget) { return outcome }
    }
    return nil
  }

  /// ``PageTable/removeEmptyTable(iova:byteCount:into:)``.
  func removeEmptyTable(_ iova: UInt64, _ byteCount: UInt64, into gather: inout Gather) -> Bool {
    check(iova, byteCount)
    guard let size = PageSize(byteCount: byteCount), size.isAligned(iova),
      let level = geometry.level(shift: size.shift), level > 0, let above = find(iova, level)
    else { return false }
    let entry = above.load(index(iova, level))
    guard Format.isTable(entry), firstLeaf(child(entry), level - 1, start: iova) == nil else { return false }
    _ = clear(iova, iova + mask(level), into: &gather)
    return true
  }
}
