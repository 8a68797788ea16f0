package import AddressSpace
internal import Synchronization

/// Memory for page tables: contiguous in this process, and contiguous in the address space in which the hardware walks,
/// so that a pointer becomes an address by one addition.
///
/// The caller reserves addresses for all tables that there may ever be, and makes them ready bit by bit: it pins and registers
/// the next bytes of the reservation, by system calls of its own, and then tells the pool (``extend(byteCount:)``). The pool
/// itself calls nobody.
///
/// A free table is all zero. Memory is so when it is made ready, and whoever gives a table back has cleared it: an unmap
/// visits every entry that it drops anyway. A debug build checks it.
///
/// Free tables are chained through an array beside them, never through their own memory, and it all happens under
/// a spin lock: a table is taken once for 2 MiB of addresses or so, and is off the fast path.
@safe
package final class TablePool: @unchecked Sendable {
  /// What the lock guards.
  private struct State {
    /// Tables that were given back.
    var free = TableList()
    /// The lowest number that was never taken.
    var fresh: UInt64 = 0
    /// How many are taken.
    var inUse: UInt64 = 0
  }

  let memory: TableMemory
  /// How many bytes of addresses are reserved.
  package let byteCount: UInt64
  private let state: UnsafeMutablePointer<State>
  private let lock = SpinLock()
  private let owner: (any AnyObject & Sendable)?
  private let abandoned = Atomic<Bool>(false)

  /// A pool in which no table is ready yet.
  ///
  /// - Parameters:
  ///   - base: the start of the reservation, which outlives the pool and all tables of it.
  ///   - address: where the hardware finds it.
  ///   - byteCount: the length of the reservation; with all else a multiple of the granule. At most 2³² tables.
  ///   - owner: what gives the reservation up in its deinit, if anything does: kept as long as the pool, which its trees keep.
  package init(
    base: UnsafeMutableRawPointer, address: UInt64, byteCount: UInt64, granule: PageSize,
    owner: (any AnyObject & Sendable)? = nil
  ) {
    let bits = UInt64(UInt(bitPattern: base)) | address | byteCount
    precondition(granule.isAligned(bits), "a pool of tables is made of whole granules")
    precondition(byteCount != 0 && byteCount >> UInt64(granule.shift) <= 1 << 32 && address <= .max - byteCount)
    (self.byteCount, self.owner) = (byteCount, owner)
    // A page of it is backed once it is written to; what is read was written before.
    let links = UnsafeMutablePointer<UInt32>.allocate(capacity: Int(byteCount >> UInt64(granule.shift)))
    let ready = UnsafeMutablePointer<Atomic<UInt64>>.allocate(capacity: 1)
    unsafe ready.initialize(to: Atomic(0))
    unsafe memory = TableMemory(base: base, address: address, granule: granule, links: links, ready: ready)
    unsafe state = .allocate(capacity: 1)
    unsafe state.initialize(to: State())
  }

  deinit {
    unsafe assert(state.pointee.inUse == 0 || isAbandoned, "a pool went before its tables came back")
    unsafe state.deallocate()
    unsafe memory.ready.deallocate()
    unsafe memory.links.deallocate()
  }

  /// Says that the memory is not to be looked at any more, as in a fork, which does not have it: trees leave their tables.
  package func abandon() { abandoned.store(true, ordering: .relaxed) }

  /// Whether ``abandon()`` was called.
  var isAbandoned: Bool { abandoned.load(ordering: .relaxed) }

  /// The size of a table.
  package var granule: PageSize { memory.granule }
  /// Where the hardware finds the start of the reservation.
  package var address: UInt64 { memory.address }
  /// How many bytes are ready: where the next ``extend(byteCount:)`` begins.
  package var readyByteCount: UInt64 { unsafe memory.ready.pointee.load(ordering: .acquiring) }
}

// MARK: - Taking and giving back

extension TablePool {
  /// Makes the next bytes of the reservation ready. They are zero, pinned, and reachable for the hardware by now.
  ///
  /// One caller at a time, since only one can have prepared the bytes that follow.
  package func extend(byteCount more: UInt64) {
    lock.withLock {
      let ready = unsafe memory.ready.pointee.load(ordering: .relaxed)
      precondition(granule.isAligned(more) && more <= byteCount - ready, "more than was reserved")
      unsafe memory.ready.pointee.store(ready + more, ordering: .releasing)
    }
  }

  /// Takes a table, all of whose entries are 0; `nil` when none is ready: ``extend(byteCount:)`` the pool, and try again.
  ///
  /// - Complexity: O(1).
  package func take() -> Table? {
    lock.lock()
    defer { lock.unlock() }
    let table: Table
    if unsafe state.pointee.free.count > 0 {
      table = unsafe memory.table(number: state.pointee.free.first)
      unsafe state.pointee.free.count -= 1
      if unsafe state.pointee.free.count > 0 {
        unsafe state.pointee.free.first = memory.links[Int(state.pointee.free.first)]
      }
    } else {
      let fresh = unsafe state.pointee.fresh
      let ready = unsafe memory.ready.pointee.load(ordering: .relaxed)
      guard fresh < ready >> UInt64(granule.shift) else { return nil }
      table = memory.table(number: UInt32(fresh))
      unsafe state.pointee.fresh = fresh + 1
    }
    unsafe state.pointee.inUse += 1
    assert(table.isClear(0, memory.entryCount), "a free table is all zero")
    return table
  }

  /// Gives back a table that hardware can no longer reach, cleared.
  ///
  /// - Complexity: O(1).
  package func give(back table: Table) {
    var list = TableList()
    memory.append(table, to: &list)
    give(back: list)
  }

  /// Gives back tables that hardware can no longer reach: once the invalidation after they were unlinked has completed.
  ///
  /// - Complexity: O(1), however many they are.
  package func give(back list: TableList) {
    guard !list.isEmpty else { return }
    assert(memory.isClear(list), "a table is cleared before it is given back")
    var list = list
    lock.lock()
    defer { lock.unlock() }
    unsafe precondition(state.pointee.inUse >= list.count, "a table was given back twice")
    unsafe state.pointee.inUse -= UInt64(list.count)
    // In front, so that what was used last is used next.
    unsafe memory.append(state.pointee.free, to: &list)
    unsafe state.pointee.free = list
  }

  /// Adds a chain of tables that wait for the same invalidation to another.
  ///
  /// - Complexity: O(1).
  package func append(_ other: TableList, to list: inout TableList) { memory.append(other, to: &list) }

  /// The table at an address of the hardware's; `nil` when no table that is ready is there.
  package func table(at address: UInt64) -> Table? { memory.table(ifAt: address) }

  /// Where the hardware finds a table.
  package func address(of table: Table) -> UInt64 { memory.address(of: table) }
}

// MARK: - Statistics

extension TablePool {
  /// How many tables a pool has.
  package struct Statistics: Equatable, Sendable {
    /// Taken, and not yet given back.
    package var inUse: UInt64
    /// Ready, whether taken or not.
    package var ready: UInt64
    /// Ready and not taken.
    package var free: UInt64 { ready - inUse }

    package init(inUse: UInt64, ready: UInt64) { (self.inUse, self.ready) = (inUse, ready) }
  }

  package var statistics: Statistics {
    lock.withLock {
      let ready = unsafe memory.ready.pointee.load(ordering: .relaxed) >> UInt64(granule.shift)
      return unsafe Statistics(inUse: state.pointee.inUse, ready: ready)
    }
  }
}
