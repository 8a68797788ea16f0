internal import AddressSpace
internal import Synchronization

/// The tables of one address space, in any format: the one walker. ``PageTable`` says what may be relied on.
///
/// Generic, and specialised only inside this module, behind one concrete type a format.
@safe
struct TableTree<Format: TableFormat>: ~Copyable, @unchecked Sendable {
  typealias Level = UInt8

  let geometry: TableGeometry
  let pageSizes: PageSizes
  let last: UInt64
  /// The highest level that has leaves.
  let topLeafLevel: Level
  /// The lowest bit of an address that the root's index has.
  let rootShift: UInt8
  let root: Table
  let memory: TableMemory
  let pool: TablePool
  let hints: LeafTableHints
  let writer: PageWriter
  /// How many tables are linked.
  let linked = Atomic<Int>(1)

  /// An empty tree; `nil` when the pool has no table for the root.
  ///
  /// - Parameters:
  ///   - pageSizes: the sizes of leaves to use. The smallest is the granule.
  ///   - last: the highest address that may be mapped.
  init?(pool: TablePool, inputBits: UInt8, pageSizes: PageSizes, last: UInt64) {
    let geometry = TableGeometry(granule: pool.granule, inputBits: inputBits)
    guard let largest = pageSizes.largest, let topLeafLevel = geometry.level(shift: largest.shift) else {
      preconditionFailure("leaves of a size that no level has")
    }
    precondition(pageSizes.smallest == pool.granule && last <= geometry.last)
    precondition(pool.address + (pool.byteCount - 1) <= Format.lastOutput, "tables that no entry can lead to")
    precondition(pool.byteCount >> UInt64(pool.granule.shift) <= 1 << LeafTableHints.numberBits)
    guard let root = pool.take() else { return nil }
    self.geometry = geometry
    self.pageSizes = pageSizes
    self.last = last
    self.topLeafLevel = topLeafLevel
    self.root = root
    hints = LeafTableHints()
    rootShift = geometry.shift(level: geometry.levels - 1)
    self.pool = pool
    memory = pool.memory
    writer = PageWriter(Format.self, hints: hints, memory: pool.memory, geometry: geometry, last: last)
  }

  /// Gives all tables back. No other thread may be inside, and no hardware may walk here any more.
  ///
  /// - Complexity: O(tables).
  deinit {
    hints.deallocate()
    if pool.isAbandoned { return }
    var list = TableList()
    release(root, topLevel, &list)
    pool.give(back: list)
  }

  private func release(_ table: Table, _ level: Level, _ list: inout TableList) {
    for index in 0..<geometry.entryCount {
      let entry = table.peek(index)
      if entry == 0 { continue }
      table.clear(index)
      if level > 0 && Format.isTable(entry) { release(child(entry), level - 1, &list) }
    }
    memory.append(table, to: &list)
  }
}

// MARK: - Geometry

extension TableTree {
  /// How many tables are linked, the root included.
  var tableCount: Int { linked.load(ordering: .relaxed) }

  /// The level of the root.
  @inline(__always) var topLevel: Level { geometry.levels &- 1 }

  /// The place of an address's entry in the table of a level.
  @inline(__always) func index(_ iova: UInt64, _ level: Level) -> Int {
    index(iova, shift: geometry.shift(level: level))
  }

  @inline(__always) func index(_ iova: UInt64, shift: UInt8) -> Int {
    Int(truncatingIfNeeded: iova &>> UInt64(shift)) & (geometry.entryCount &- 1)
  }

  /// The bits of an address below an entry of a level.
  @inline(__always) func mask(_ level: Level) -> UInt64 { (1 &<< UInt64(geometry.shift(level: level))) &- 1 }

  /// Traps unless a range is one of whole granules up to the last address.
  @inline(__always) func check(_ iova: UInt64, _ byteCount: UInt64) {
    precondition((iova | byteCount) & geometry.granule.mask == 0 && byteCount != 0, "a range of whole granules")
    precondition(iova <= last && byteCount &- 1 <= last &- iova, "an address beyond the last")
  }

  /// Whether a range has its leaves in one table of the lowest level, and does not fill it.
  @inline(__always) func isInOneTable(_ iova: UInt64, _ byteCount: UInt64) -> Bool {
    let mask = mask(1)
    return (iova ^ (iova &+ byteCount &- 1)) & ~mask == 0 && byteCount <= mask
  }
}

// MARK: - Descending

extension TableTree {
  /// The table that an entry leads to.
  @inline(__always) func child(_ entry: UInt64) -> Table { memory.table(at: entry & Format.addressMask) }

  /// What the lowest table covers, as a number.
  @inline(__always) func region(_ iova: UInt64) -> UInt64 { iova &>> UInt64(geometry.shift(level: 1)) }

  /// The lowest table on the way to an address that the caller owns; `nil` where there is none.
  @inline(__always) func findLowest(_ iova: UInt64) -> Table? {
    if let number = hints.find(region(iova)) { return memory.table(number: number) }
    return findAndNote(iova)
  }

  @inline(never) private func findAndNote(_ iova: UInt64) -> Table? {
    guard let table = find(iova, 0) else { return nil }
    hints.note(region(iova), number: memory.number(of: table))
    return table
  }

  /// The same, made where there is none, as ``make(_:_:)``.
  @inline(__always) func makeLowest(_ iova: UInt64) -> Table? {
    if let number = hints.find(region(iova)) { return memory.table(number: number) }
    return makeAndNote(iova)
  }

  @inline(never) private func makeAndNote(_ iova: UInt64) -> Table? {
    guard let table = make(iova, 0) else { return nil }
    hints.note(region(iova), number: memory.number(of: table))
    return table
  }

  /// The table of a level on the way to an address that the caller owns; `nil` where there is none.
  @inline(__always) func find(_ iova: UInt64, _ level: Level) -> Table? {
    var table = root
    var shift = rootShift
    let end = geometry.shift(level: level)
    while shift != end {
      let entry = table.load(index(iova, shift: shift))
      guard Format.isTable(entry) else { return nil }
      table = child(entry)
      shift &-= geometry.bitsPerLevel
    }
    return table
  }

  /// The same, with tables linked where there are none; `nil` where a leaf is in the way, or the pool is empty: then
  /// ``obstacle(_:_:)`` tells which.
  @inline(__always) func make(_ iova: UInt64, _ level: Level) -> Table? {
    var table = root
    var shift = rootShift
    let end = geometry.shift(level: level)
    while shift != end {
      let index = index(iova, shift: shift)
      let entry = table.load(index)
      if Format.isTable(entry) {
        table = child(entry)
      } else {
        guard entry == 0, let next = link(table, index) else { return nil }
        table = next
      }
      shift &-= geometry.bitsPerLevel
    }
    return table
  }

  /// Links a new table, or takes that of a thread that was faster.
  @inline(never)
  private func link(_ table: Table, _ index: Int) -> Table? {
    guard let new = pool.take() else { return nil }
    if let entry = table.link(Format.table(at: memory.address(of: new)), at: index) {
      pool.give(back: new)
      return Format.isTable(entry) ? child(entry) : nil
    }
    linked.wrappingAdd(1, ordering: .relaxed)
    return new
  }

  /// The leaf at an address that the caller owns.
  func leaf(at iova: UInt64) -> (entry: UInt64, level: Level)? {
    var table = root
    var level = topLevel
    while true {
      let entry = table.load(index(iova, level))
      if entry == 0 { return nil }
      if level == 0 || !Format.isTable(entry) { return (entry, level) }
      table = child(entry)
      level -= 1
    }
  }

  /// The address of the first leaf below a table that the caller owns whole.
  func firstLeaf(_ table: Table, _ level: Level, start: UInt64) -> UInt64? {
    if level == 0 {
      return table.firstInUse(0, geometry.entryCount).map { start + UInt64($0) << UInt64(geometry.granule.shift) }
    }
    for index in 0..<geometry.entryCount {
      let entry = table.load(index)
      if entry == 0 { continue }
      let start = start + UInt64(index) << UInt64(geometry.shift(level: level))
      guard Format.isTable(entry) else { return start }
      if let leaf = firstLeaf(child(entry), level - 1, start: start) { return leaf }
    }
    return nil
  }
}
