import IOMMU

// Page tables, read from memory where they are not cached. Levels are counted from 0, whose entries lead to pages.

extension VTd {
  /// The address in an entry: as many bits as memory has.
  private static let addressMask: UInt64 = 0x000f_ffff_ffff_f000
  private static let present: UInt64 = 1, accessed: UInt64 = 1 << 5, dirty: UInt64 = 1 << 6, large: UInt64 = 1 << 7

  @inline(__always)
  private static func shift(_ level: UInt8) -> UInt64 { 12 + 9 * UInt64(level) }

  @inline(__always)
  private static func walkTag(_ domain: UInt16, _ shift: UInt64) -> UInt64 { UInt64(domain) | shift << 32 }

  /// The deepest table that is known on the way to an address.
  @inline(__always)
  private static func deepest(
    in cache: TaggedCache<TablePointer>, _ domain: UInt16, _ address: UInt64, levels: UInt8
  ) -> (level: UInt8, pointer: TablePointer)? {
    for level in 0..<levels - 1 {
      let shift = shift(level + 1)
      if let slot = cache.find(tag: walkTag(domain, shift), address: address >> shift) { return (level, cache[slot]) }
    }
    return nil
  }

  /// Where a walk begins: there, else at the first table.
  private mutating func start(
    _ known: (level: UInt8, pointer: TablePointer)?, table: UInt64, levels: UInt8
  ) -> (level: UInt8, pointer: TablePointer) {
    if let known {
      counters.walkCache.hits += 1
      return known
    }
    counters.walkCache.misses += 1
    return (levels - 1, TablePointer(table: table, permissions: [.read, .write], level: levels - 1, granuleShift: 12))
  }
}

// MARK: - Second stage

extension VTd {
  /// What the second stage makes of an address that the first has led to; nil where nothing is mapped.
  @inline(__always)
  private mutating func second(_ entry: PASIDEntry, _ address: UInt64) -> TranslationCache.Entry? {
    if let cached = stage2.find(entry.domain, 0, address) {
      counters.stage2Cache.hits += 1
      return cached
    }
    counters.stage2Cache.misses += 1
    return walkSecond(entry, address)
  }

  /// Tables of the kernel's, which are right: that an entry has no reserved bit set is not looked at.
  @inline(never)
  mutating func walkSecond(_ entry: PASIDEntry, _ address: UInt64) -> TranslationCache.Entry? {
    let levels = entry.secondStageLevels
    guard address >> Self.shift(levels) == 0 else { return nil }
    var (level, pointer) = start(
      Self.deepest(in: secondWalks, entry.domain, address, levels: levels), table: entry.secondStageTable,
      levels: levels)
    while true {
      let shift = Self.shift(level)
      let word = read(UInt(pointer.table) + UInt(address >> shift & 511) * 8)
      guard word & 3 != 0 else { return nil }
      pointer.permissions.formIntersection(.init(rawValue: UInt8(word & 3)))
      if level == 0 || word & Self.large != 0 {
        let found = TranslationCache.Entry(
          host: UInt((word & Self.addressMask).rounded(downTo: shift)), ipa: address.rounded(downTo: shift), stage1: [],
          stage2: pointer.permissions, leafShift: UInt8(shift), granuleShift: 12, level: level, shift: UInt8(shift))
        stage2.fill(entry.domain, 0, address, found)
        return found
      }
      (pointer.table, pointer.level) = (word & Self.addressMask, level)
      secondWalks.fill(tag: Self.walkTag(entry.domain, shift), address: address >> shift, pointer)
      level -= 1
    }
  }

  private mutating func read(_ place: UInt) -> UInt64 {
    counters.descriptorReads += 1
    time += costs.walkLevel
    return TableMemory.word(place)
  }
}

// MARK: - First stage

extension VTd {
  /// A write by a translation that was cached before the leaf's dirty flag was set: the leaf is looked at again.
  @inline(never)
  mutating func walkForWriting(_ entry: PASIDEntry, _ input: UInt64) throws(VTdFault) -> TranslationCache.Entry {
    iotlb.invalidate(.init(domain: entry.domain, space: Self.pasid), Span64(start: input, last: input))
    return try walk(entry, input, isWrite: true)
  }

  /// Walks the first stage, where it is nested each table by way of the second, from the deepest table that the walk cache knows.
  /// Fills both caches; what is not there is not cached.
  @inline(never)
  mutating func walk(_ entry: PASIDEntry, _ input: UInt64, isWrite: Bool) throws(VTdFault) -> TranslationCache.Entry {
    let levels = entry.firstStageLevels
    var (level, pointer) = start(
      Self.deepest(in: firstWalks, entry.domain, input, levels: levels), table: entry.firstStageTable, levels: levels)
    while true {
      let shift = Self.shift(level)
      let place = try place(
        entry, pointer.table + (input >> shift & 511) * 8, input, isRoot: level == levels - 1)
      let found = read(place.host)
      counters.firstStageReads += 1
      guard found & Self.present != 0 else { throw VTdFault(reason: .firstNotPresent, address: input) }
      guard !isReserved(found, level) else { throw VTdFault(reason: .firstReserved, address: input) }
      guard found >> 2 & 1 == 1 else { throw VTdFault(reason: .supervisor, address: input) }
      let isLeaf = level == 0 || found & Self.large != 0
      let mayWrite = pointer.permissions.contains(.write) && found >> 1 & 1 == 1
      let flags = Self.accessed | (isLeaf && isWrite && mayWrite ? Self.dirty : 0)
      // An entry that changes meanwhile is read again.
      guard let word = try set(flags, in: found, at: place, input) else { continue }
      if !mayWrite { pointer.permissions.remove(.write) }
      if isLeaf { return try leaf(entry, word, level, pointer.permissions, input) }
      (pointer.table, pointer.level) = (word & Self.addressMask, level)
      firstWalks.fill(tag: Self.walkTag(entry.domain, shift), address: input >> shift, pointer)
      level -= 1
    }
  }

  /// Where an entry of a first-stage table lies in memory, and whether hardware may write to it.
  private mutating func place(
    _ entry: PASIDEntry, _ address: UInt64, _ input: UInt64, isRoot: Bool
  ) throws(VTdFault) -> (host: UInt, isWritable: Bool) {
    guard entry.kind == .nested else { return (UInt(address), true) }
    guard address <= registers.secondStageLast else { throw VTdFault(reason: .firstBeyondWidth, address: input) }
    guard let second = second(entry, address), second.stage2.contains(.read) else {
      throw VTdFault(reason: isRoot ? .rootUnreadable : .tableUnreadable, address: input)
    }
    return (second.place(of: address).host, second.stage2.contains(.write))
  }

  /// Bits that have to be 0: of what only a leaf may say, of a leaf's address, and execute-disable, as no request executes.
  private func isReserved(_ word: UInt64, _ level: UInt8) -> Bool {
    if word >> 63 == 1 { return true }
    guard level > 0, word & Self.large != 0 else { return false }
    guard level == 1 || level == 2 && registers.has1GiBFirstStagePages else { return true }
    // Bit 12 is the memory type's.
    return (word & (1 << Self.shift(level) - 1)) >> 13 != 0
  }

  /// Sets flags in an entry as it was read; nil where it is another one by now.
  private mutating func set(
    _ flags: UInt64, in word: UInt64, at place: (host: UInt, isWritable: Bool), _ input: UInt64
  ) throws(VTdFault) -> UInt64? {
    guard word & flags != flags else { return word }
    guard place.isWritable else { throw VTdFault(reason: .tableUnwritable, address: input) }
    guard TableMemory.exchange(place.host, word, word | flags) else { return nil }
    counters.flagUpdates += 1
    return word | flags
  }

  /// A leaf: its rights, and where it leads, where it is nested by the second stage.
  private mutating func leaf(
    _ entry: PASIDEntry, _ word: UInt64, _ level: UInt8, _ allowed: SimulatedIOMMU.Permissions, _ input: UInt64
  ) throws(VTdFault) -> TranslationCache.Entry {
    let shift = Self.shift(level), output = (word & Self.addressMask).rounded(downTo: shift)
    let address = output | input & (1 << shift - 1)
    var found = TranslationCache.Entry(
      host: UInt(output), ipa: output, stage1: allowed, stage2: [.read, .write], leafShift: UInt8(shift),
      granuleShift: 12, level: level, shift: UInt8(shift))
    if word & Self.dirty != 0 { found.stage1.insert(.dirty) }
    if entry.kind == .nested {
      guard address <= registers.secondStageLast else { throw VTdFault(reason: .firstBeyondWidth, address: input) }
      guard let second = second(entry, address) else {
        throw VTdFault(reason: .secondPermission, address: input, isAbsent: true)
      }
      found.shift = min(found.shift, second.shift)
      found.ipa = address.rounded(downTo: UInt64(found.shift))
      (found.host, found.stage2) = (second.place(of: found.ipa).host, second.stage2)
    }
    iotlb.fill(entry.domain, Self.pasid, input, found)
    return found
  }
}
