internal import AddressSpace
internal import Synchronization

/// One table: a view of a granule of a ``TablePool``'s memory, of which hardware may be reading any entry at any time.
///
/// Safe as long as indices are masked to the table's size, which all callers do, and the pool lives.
@safe
package struct Table: BitwiseCopyable, Equatable, @unchecked Sendable {
  /// The entries: atomic, as the hardware's walker and other threads are never stopped.
  let entries: UnsafeMutablePointer<Atomic<UInt64>>

  @inline(__always) init(entries: UnsafeMutablePointer<Atomic<UInt64>>) { unsafe self.entries = unsafe entries }

  package static func == (left: Table, right: Table) -> Bool { unsafe left.entries == right.entries }

  /// Reads an entry, and with it all that was written before a table that it leads to was linked.
  @inline(__always) func load(_ index: Int) -> UInt64 { unsafe entries[index].load(ordering: .acquiring) }

  /// Reads an entry that its reader owns, or of which it only wants to know whether it is 0.
  @inline(__always) func peek(_ index: Int) -> UInt64 { unsafe entries[index].load(ordering: .relaxed) }

  /// Writes an entry after everything that was written before.
  @inline(__always) func store(_ entry: UInt64, at index: Int) {
    unsafe entries[index].store(entry, ordering: .releasing)
  }

  /// Clears an entry that no hardware can see any more.
  func clear(_ index: Int) { unsafe entries[index].store(0, ordering: .relaxed) }

  /// Writes an entry where there is none; what is there otherwise.
  @inline(__always) func link(_ entry: UInt64, at index: Int) -> UInt64? {
    let result = unsafe entries[index].compareExchange(
      expected: 0, desired: entry, successOrdering: .acquiringAndReleasing, failureOrdering: .acquiring)
    return result.exchanged ? nil : result.original
  }

  /// Whether a number of entries are all 0. Without a branch on each, as they nearly always are.
  @inline(__always) func isClear(_ first: Int, _ count: Int) -> Bool {
    var bits: UInt64 = 0
    var index = first
    while index < first &+ count {
      bits |= peek(index)
      index &+= 1
    }
    return bits == 0
  }

  /// The first of a number of entries that is not 0.
  func firstInUse(_ first: Int, _ count: Int) -> Int? {
    for index in first..<first + count where peek(index) != 0 { return index }
    return nil
  }
}

/// Tables that are out of use: a chain through the pool's side array, as hardware may still read the tables themselves.
///
/// A small value, to be kept with whatever waits for an invalidation. It says where a chain is and does not own it: whoever
/// gives it back (``TablePool/give(back:)-(TableList)``) does so once, and uses no copy of it later.
package struct TableList: Equatable, Sendable {
  /// The first and the last table of the chain, by number.
  var first: UInt32 = 0, last: UInt32 = 0
  /// How many tables are in it.
  package var count: UInt32 = 0

  package init() {}

  package var isEmpty: Bool { count == 0 }
}

/// Where the tables of a pool are, in the process's address space and in the one that the hardware walks in: what
/// a walker needs of a pool, without a reference to count.
@safe
struct TableMemory: BitwiseCopyable, @unchecked Sendable {
  let base: UnsafeMutableRawPointer
  /// The address of `base` for the hardware.
  let address: UInt64
  let granule: PageSize
  /// For each table in a chain, the number of the next.
  let links: UnsafeMutablePointer<UInt32>
  /// How many bytes from `base` on can be read.
  let ready: UnsafeMutablePointer<Atomic<UInt64>>

  /// The table at an address that is known to be a table's.
  @inline(__always) func table(at address: UInt64) -> Table {
    table(offset: address &- self.address)
  }

  /// The table at an address that stood where a table's might; `nil` when there is none.
  func table(ifAt address: UInt64) -> Table? {
    let offset = address &- self.address
    guard unsafe offset < ready.pointee.load(ordering: .acquiring), granule.isAligned(offset) else { return nil }
    return table(offset: offset)
  }

  @inline(__always) private func table(offset: UInt64) -> Table {
    let start = unsafe base + Int(truncatingIfNeeded: offset)
    return unsafe Table(entries: start.assumingMemoryBound(to: Atomic<UInt64>.self))
  }

  func table(number: UInt32) -> Table { table(number: UInt64(number)) }

  @inline(__always) func table(number: UInt64) -> Table { table(offset: number &<< UInt64(granule.shift)) }

  @inline(__always) func address(of table: Table) -> UInt64 { address &+ offset(of: table) }

  func number(of table: Table) -> UInt32 { UInt32(truncatingIfNeeded: offset(of: table) >> UInt64(granule.shift)) }

  @inline(__always) private func offset(of table: Table) -> UInt64 {
    unsafe UInt64(UInt(bitPattern: table.entries) &- UInt(bitPattern: base))
  }

  var entryCount: Int { Int(granule.byteCount) / 8 }

  /// Adds a table to a chain.
  func append(_ table: Table, to list: inout TableList) {
    let number = number(of: table)
    if list.isEmpty { list.first = number } else { unsafe links[Int(list.last)] = number }
    list.last = number
    list.count += 1
  }

  /// Adds a chain to another.
  func append(_ other: TableList, to list: inout TableList) {
    guard !other.isEmpty else { return }
    if list.isEmpty { list.first = other.first } else { unsafe links[Int(list.last)] = other.first }
    list.last = other.last
    list.count += other.count
  }

  /// Whether all entries of all tables of a chain are 0.
  func isClear(_ list: TableList) -> Bool {
    var number = list.first
    for place in 0..<list.count {
      guard table(number: number).isClear(0, entryCount) else { return false }
      if place + 1 < list.count { unsafe number = links[Int(number)] }
    }
    return true
  }
}
