import IOMMU

// Configuration and page tables, read from memory where they are not cached.

extension SMMU {
  /// The stream table entry of a stream. One that is not there aborts.
  @inline(__always)
  mutating func entry(_ stream: UInt32, _ input: UInt64) throws(SMMUFault) -> StreamTableEntry {
    if let slot = entries.find(tag: 0, address: UInt64(stream)) {
      counters.configurationCache.hits += 1
      return entries[slot]
    }
    counters.configurationCache.misses += 1
    guard let entry = streamTable[stream] else { throw SMMUFault(kind: nil, address: input) }
    entries.fill(tag: 0, address: UInt64(stream), entry)
    return entry
  }

  /// The context descriptor of a stream, fetched through stage 2. Only a good one is kept.
  @inline(__always)
  mutating func context(
    _ stream: UInt32, _ entry: StreamTableEntry, _ input: UInt64,
    over domains: DomainTable
  ) throws(SMMUFault) -> ContextDescriptor {
    if let slot = contexts.find(tag: 0, address: UInt64(stream)) {
      counters.configurationCache.hits += 1
      return contexts[slot]
    }
    return try fetchContext(stream, entry, input, over: domains)
  }

  @inline(never)
  private mutating func fetchContext(
    _ stream: UInt32, _ entry: StreamTableEntry, _ input: UInt64,
    over domains: DomainTable
  ) throws(SMMUFault) -> ContextDescriptor {
    counters.configurationCache.misses += 1
    let pointer = entry.contextPointer
    guard let area = area(entry, pointer, over: domains) else {
      throw SMMUFault(kind: .translation, address: input, reading: .context, isStage2: true, ipa: pointer)
    }
    guard !area.isDoorbell else { throw SMMUFault(kind: .contextFetch, address: input, ipa: pointer) }
    let base = area.host + UInt(pointer - area.start)
    var words = InlineArray<4, UInt64>(repeating: 0)
    for index in 0..<4 { words[index] = TableMemory.word(base + UInt(index) * 8) }
    guard let context = ContextDescriptor(words, registers) else { throw SMMUFault(kind: .badCD, address: input) }
    contexts.fill(tag: 0, address: UInt64(stream), context)
    return context
  }

  /// The area of stage 2 that has an address: from the cache, else from the kernel's map.
  @inline(__always)
  mutating func area(
    _ entry: StreamTableEntry, _ ipa: UInt64, over domains: DomainTable
  ) -> Stage2Cache.Area? {
    if let area = stage2.find(entry.vmid, ipa) {
      counters.stage2Cache.hits += 1
      return area
    }
    return findArea(entry, ipa, over: domains)
  }

  @inline(never)
  private mutating func findArea(
    _ entry: StreamTableEntry, _ ipa: UInt64, over domains: DomainTable
  ) -> Stage2Cache.Area? {
    counters.stage2Cache.misses += 1
    let area: Stage2Cache.Area
    if ipa >> 12 == Doorbell.page >> 12 {
      // The kernel maps the doorbell of interrupts into every stage 2.
      area = Stage2Cache.Area(
        vmid: entry.vmid, start: Doorbell.page, last: Doorbell.page | 0xfff, host: Doorbell.host,
        permissions: [.read, .write])
    } else {
      guard let found = domains.area(entry.stage2, at: ipa, near: &lastArea) else { return nil }
      area = Stage2Cache.Area(
        vmid: entry.vmid, start: found.start, last: found.last, host: found.value.host,
        permissions: found.value.permissions)
    }
    stage2.fill(area)
    return area
  }

  /// Walks stage 1, each table by way of stage 2, from the deepest table that the walk cache knows. Fills both caches; what is
  /// not there, or was not accessed yet (AF), is not cached.
  @inline(never)
  mutating func walk(
    _ address: UInt64, _ input: UInt64, _ entry: StreamTableEntry, _ context: ContextDescriptor,
    over domains: DomainTable
  ) throws(SMMUFault) -> SMMUTLB.Entry {
    func fault(_ kind: SMMUEvent.Kind) -> SMMUFault {
      SMMUFault(kind: kind, address: input, isRecorded: context.recordsFaults)
    }
    var (level, pointer) = start(address, entry, context)
    let tableBits = (UInt64(1) << 48) - (1 << UInt64(context.granuleShift))
    while true {
      let shift = context.shift(of: level)
      let isFirst = level == context.startLevel
      let indexBits = isFirst ? UInt64(context.inputBits) - shift : UInt64(context.granuleShift - 3)
      let place = pointer.table + (address >> shift & (1 << indexBits - 1)) << 3
      guard let area = area(entry, place, over: domains) else {
        throw SMMUFault(kind: .translation, address: input, reading: .table, isStage2: true, ipa: place)
      }
      guard !area.isDoorbell else { throw SMMUFault(kind: .walkAbort, address: input, reading: .table) }
      var descriptor = TableMemory.word(area.host + UInt(place - area.start))
      if context.isBigEndian { descriptor = descriptor.byteSwapped }
      counters.descriptorReads += 1
      time += costs.walkLevel
      guard descriptor & 1 == 1, level < 3 || descriptor & 2 == 2 else { throw fault(.translation) }
      guard level < 3, descriptor & 2 == 2 else {
        return try leaf(descriptor, at: level, pointer.permissions, address, input, entry, context, over: domains)
      }
      pointer.table = descriptor & tableBits
      guard pointer.table <= context.outputLast else { throw fault(.addressSize) }
      if !context.ignoresTablePermissions {
        // APTable: bit 61 takes from unprivileged accesses everything, bit 62 the right to write.
        if descriptor >> 61 & 1 == 1 { pointer.permissions = [] }
        if descriptor >> 62 & 1 == 1 { pointer.permissions.remove(.write) }
      }
      (pointer.level, pointer.granuleShift) = (level, context.granuleShift)
      walks.fill(tag: Self.walkTag(entry.vmid, context.asid, shift), address: address >> shift, pointer)
      level += 1
    }
  }

  /// Where a walk begins: below the deepest table descriptor that is cached, else at the first table.
  private mutating func start(
    _ address: UInt64, _ entry: StreamTableEntry, _ context: ContextDescriptor
  ) -> (level: UInt8, TablePointer) {
    var level: UInt8 = 3
    while level > context.startLevel {
      let shift = context.shift(of: level - 1)
      if let slot = walks.find(tag: Self.walkTag(entry.vmid, context.asid, shift), address: address >> shift) {
        counters.walkCache.hits += 1
        if level == 3 { counters.lastTables.hits += 1 }
        return (level, walks[slot])
      }
      if level == 3 { counters.lastTables.misses += 1 }
      level -= 1
    }
    counters.walkCache.misses += 1
    let first = TablePointer(
      table: context.table, permissions: [.read, .write], level: level, granuleShift: context.granuleShift)
    return (level, first)
  }

  @inline(__always)
  static func walkTag(_ vmid: UInt16, _ asid: UInt16, _ shift: UInt64) -> UInt64 {
    UInt64(vmid) | UInt64(asid) << 16 | shift << 32
  }

  /// A block or page: its permissions, and its place by stage 2.
  private mutating func leaf(
    _ descriptor: UInt64, at level: UInt8, _ allowed: SimulatedIOMMU.Permissions, _ address: UInt64,
    _ input: UInt64, _ entry: StreamTableEntry, _ context: ContextDescriptor,
    over domains: DomainTable
  ) throws(SMMUFault) -> SMMUTLB.Entry {
    func fault(_ kind: SMMUEvent.Kind) -> SMMUFault {
      SMMUFault(kind: kind, address: input, isRecorded: context.recordsFaults)
    }
    // Blocks are at level 2, with 4 KiB granules at level 1 too.
    guard level >= 2 || level == 1 && context.granuleShift == 12 else { throw fault(.translation) }
    let shift = context.shift(of: level), size = UInt64(1) << shift
    let output = descriptor & ((1 << 48) - size)
    guard output <= context.outputLast else { throw fault(.addressSize) }
    guard descriptor >> 10 & 1 == 1 else { throw fault(.access) }
    let ipa = output | address & (size - 1)
    guard let area = area(entry, ipa, over: domains) else {
      throw SMMUFault(kind: .translation, address: input, isStage2: true, ipa: ipa)
    }
    // AP[1]: for unprivileged accesses too, which those of PCI devices are; AP[2]: read only.
    var permissions = descriptor >> 6 & 1 == 1 ? allowed : []
    if descriptor >> 7 & 1 == 1 { permissions.remove(.write) }
    let own = Self.entryShift(shift, ipa, area), start = ipa.rounded(downTo: own)
    let found = SMMUTLB.Entry(
      host: area.host &+ UInt(truncatingIfNeeded: start &- area.start), ipa: start, stage1: permissions,
      stage2: area.permissions, leafShift: UInt8(shift), granuleShift: context.granuleShift, level: level,
      shift: UInt8(own))
    tlb.fill(entry.vmid, context.asid, address, isGlobal: descriptor >> 11 & 1 == 0, found)
    return found
  }

  /// The largest entry that has one translation in both stages: the leaf, else as large a page as lies within the area.
  private static func entryShift(_ leaf: UInt64, _ ipa: UInt64, _ area: Stage2Cache.Area) -> UInt64 {
    func fits(_ shift: UInt64) -> Bool {
      let start = ipa.rounded(downTo: shift)
      return start >= area.start && start | (1 << shift - 1) <= area.last
    }
    if fits(leaf) { return leaf }
    return smallerSizes.first { $0 < leaf && fits($0) } ?? 12
  }

  /// The sizes of pages and blocks below the largest, as binary logarithms.
  private static let smallerSizes: [UInt64] = [25, 21, 16, 14]
}

/// Where devices write to interrupt: the translation register of the interrupt controller.
enum Doorbell {
  /// Where the kernel puts its page in every stage 2: the software MSI window.
  static let page: UInt64 = 0x800_0000
  /// The register in the page.
  static let offset: UInt64 = 0x40
  /// What stands for the page where memory of this process has an address: none that it can have.
  static let host: UInt = 0xffff_ffff_ffff_0000
  /// Whether a translated address is in the page.
  static func contains(_ address: UInt) -> Bool { address >= host }
}

extension Stage2Cache.Area {
  var isDoorbell: Bool { host == Doorbell.host }
}
