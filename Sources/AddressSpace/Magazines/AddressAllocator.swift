public import CIOMMU
internal import Glibc
public import Synchronization

/// Hands out ranges of an I/O address space to any number of threads.
///
/// **Two tiers.** Below is a ``RangeStore`` behind one spin lock. Above it, each processor keeps released addresses of
/// each power-of-two length up to 2 MiB in two magazines, loaded and previous, and exchanges whole magazines with a
/// depot that all processors share; so addresses that one processor releases and another asks for wander by the
/// magazine. What is cached is an allocation for the store: it hides room, and the store's queries count it.
///
/// **What is held.** Addresses in the depot, and what the magazines of the processors can hold, are bounded in bytes by
/// ``heldFraction`` of all that is allocated, or ``freelyHeldByteCount``: it is decided when a magazine enters the depot, and when
/// one shall grow. A slot begins with small magazines; it gets large ones when it keeps exchanging with the depot.
/// Memory for them is asked for when they are needed; without memory addresses go to the store.
///
/// **Limits.** A cached address is only used when the range ends at the limit or below. When the store has no room, the caches
/// of all processors are emptied into it, once, and it is asked again, unless the caller only probes.
///
/// **Cost.** A few nanoseconds when a magazine answers; else that of the store, O(log n). No call makes a system call, but for
/// memory, and to empty the caches; and no lock is held then.
@safe
@usableFromInline
package struct AddressAllocator: ~Copyable, @unchecked Sendable {
  @usableFromInline let core: UnsafeMutablePointer<AllocatorCore>

  /// An allocator for the whole granules of some ranges.
  ///
  /// - Parameter processors: one more than the highest processor number; those of this machine when `nil`.
  /// - Throws: `granuleTooSmall`, `outOfMemory`.
  package init(
    usable: IOVARanges, granule: PageSize, method: SlotMethod = .best, processors: UInt32? = nil
  ) throws(RangeStoreFailure) {
    let store = try RangeStore(usable: usable, granule: granule)
    guard let stop = Magazine(.small, capacity: 0) else { throw .outOfMemory }
    unsafe core = .allocate(capacity: 1)
    unsafe core.initialize(
      to: AllocatorCore(
        store: store, stop: stop, method: method, processors: processors ?? UInt32(ci_cpu_limit())))
  }

  /// No other thread may be inside; what is still allocated is forgotten.
  deinit {
    unsafe core.deinitialize(count: 1)
    unsafe core.deallocate()
  }
}

// MARK: - Allocating and releasing

extension AddressAllocator {
  /// Chooses an address for a range with natural alignment: its length rounded up to a power of two. A length of up to
  /// 2 MiB is itself rounded up so, and may come from the caches; above, it must be a multiple of the granule.
  ///
  /// - Parameters:
  ///   - limit: the highest address that may be used, inside.
  ///   - mayEmptyCaches: whether all caches are emptied before the answer is that there is no room. Not for a probe
  ///     below a limit that is followed by a request without it.
  /// - Throws: `empty`, `unaligned`, `noSpace`, `outOfMemory`.
  /// - Complexity: O(1) from a magazine, else O(log n); O(cached) when the caches are emptied.
  @inlinable @inline(__always)
  package func allocate(
    byteCount: UInt64, limit: UInt64 = .max, mayEmptyCaches: Bool = true
  ) throws(RangeStoreFailure) -> IOVA {
    try allocate(byteCount: byteCount, limit: limit, mayEmptyCaches: mayEmptyCaches, processor: processor)
  }

  /// The part of ``allocate(byteCount:limit:mayEmptyCaches:)`` that the processor's loaded magazine can answer, with an address
  /// of at least `lowest`; `nil` when it cannot: then ask ``allocateElsewhere(byteCount:limit:lowest:mayEmptyCaches:)``.
  ///
  /// - Complexity: O(1).
  @inlinable @inline(__always)
  package func allocateHere(byteCount: UInt64, limit: UInt64, lowest: UInt64 = 0) -> IOVA? {
    let processor = processor
    guard let address = popHere(byteCount, limit: limit, processor) else { return nil }
    if address.rawValue >= lowest { return address }
    // Back to where it came from; what is asked for may lie below it.
    free(address, byteCount: byteCount, processor: processor)
    return nil
  }

  /// The address on top of the loaded magazine, however low, if it is below `limit`: a few instructions that take no other lock and no
  /// memory, so that a spin lock may be held. What is not wanted is for the caller to free, without one.
  @inlinable @inline(__always)
  package func popHere(byteCount: UInt64, limit: UInt64) -> IOVA? { popHere(byteCount, limit: limit, processor) }

  @inlinable @inline(__always)
  func popHere(_ byteCount: UInt64, limit: UInt64, _ processor: UInt32) -> IOVA? {
    let order = order(byteCount)
    guard unsafe order < core.pointee.classCount else { return nil }
    let (highest, isTooLow) = unsafe limit.subtractingReportingOverflow(
      (core.pointee.granule.byteCount &<< order) &- 1)
    if isTooLow { return nil }
    let slot = unsafe slots(processor) + Int(truncatingIfNeeded: order)
    let address = unsafe Slot.pop(slot, core.pointee.method, cpu: processor, highest: highest)
    return address == Slot.none ? nil : IOVA(address)
  }

  /// The rest of it: from the other magazines, where an address below `lowest` is left for others, or else the highest of all
  /// that are free.
  ///
  /// - Throws: As ``allocate(byteCount:limit:mayEmptyCaches:)``.
  package func allocateElsewhere(
    byteCount: UInt64, limit: UInt64, lowest: UInt64 = 0, mayEmptyCaches: Bool
  ) throws(RangeStoreFailure) -> IOVA {
    try allocateSlowly(
      byteCount, limit: limit, lowest: lowest, mayEmptyCaches: mayEmptyCaches, processor: processor)
  }

  /// Releases a range that ``allocate(byteCount:limit:mayEmptyCaches:)`` gave for the same length. Anything else is not found
  /// out, and given to the next who asks.
  ///
  /// - Complexity: O(1), or O(log n).
  @inlinable @inline(__always)
  package func free(_ start: IOVA, byteCount: UInt64) {
    free(start, byteCount: byteCount, processor: processor)
  }

  /// ``allocate(byteCount:limit:mayEmptyCaches:)`` as if on a processor: for traces that are the same each time, on
  /// the ``SlotMethod/locked`` slots.
  @inlinable @inline(__always)
  package func allocate(
    byteCount: UInt64, limit: UInt64, mayEmptyCaches: Bool, processor: UInt32
  ) throws(RangeStoreFailure) -> IOVA {
    let order = order(byteCount)
    if unsafe order < core.pointee.classCount {
      let (highest, isTooLow) = unsafe limit.subtractingReportingOverflow(
        (core.pointee.granule.byteCount &<< order) &- 1)
      if !isTooLow {
        let slot = unsafe slots(processor) + Int(truncatingIfNeeded: order)
        let address = unsafe Slot.pop(slot, core.pointee.method, cpu: processor, highest: highest)
        if address != Slot.none { return IOVA(address) }
      }
    }
    return try allocateSlowly(byteCount, limit: limit, mayEmptyCaches: mayEmptyCaches, processor: processor)
  }

  /// ``free(_:byteCount:)`` as if on a processor.
  @inlinable @inline(__always)
  package func free(_ start: IOVA, byteCount: UInt64, processor: UInt32) {
    let order = order(byteCount)
    if unsafe order < core.pointee.classCount {
      let slot = unsafe slots(processor) + Int(truncatingIfNeeded: order)
      if unsafe Slot.push(slot, core.pointee.method, cpu: processor, start.rawValue) { return }
    }
    freeSlowly(start, byteCount: byteCount, processor: processor)
  }

  /// The processor that runs this thread.
  @inlinable @inline(__always)
  var processor: UInt32 {
    let cpu = ci_cpu()
    return unsafe cpu < core.pointee.processorCount ? cpu : 0
  }

  /// The exponent of the power of two, in granules, to which a length is rounded; a large one for 0.
  @inlinable @inline(__always)
  func order(_ byteCount: UInt64) -> UInt64 {
    let last = unsafe (byteCount &- 1) &>> UInt64(core.pointee.granule.shift)
    return 63 &- UInt64(truncatingIfNeeded: (last &<< 1 | 1).leadingZeroBitCount)
  }

  /// A processor's slots, by order.
  @inlinable @inline(__always)
  func slots(_ processor: UInt32) -> UnsafeMutablePointer<Slot> {
    unsafe core.pointee.table[Int(processor)].loadAddress()
  }
}

// MARK: - What it is made of

/// The parts of an ``AddressAllocator`` that do not change, so that all processors may keep them in their caches.
@safe
@usableFromInline
struct AllocatorCore: ~Copyable {
  @usableFromInline let method: SlotMethod
  @usableFromInline let granule: PageSize
  /// The number of lengths that are cached.
  @usableFromInline let classCount: UInt64
  /// One more than the highest processor number.
  @usableFromInline let processorCount: UInt32
  /// The slots of each processor.
  @usableFromInline let table: UnsafeMutablePointer<Atomic<UnsafeMutablePointer<Slot>>>
  /// The slots of all processors that have none yet: with nothing to pop and no room to push.
  let absent: UnsafeMutablePointer<Slot>
  /// What is loaded where nothing is.
  let stop: Magazine
  /// What changes.
  let shared: UnsafeMutablePointer<SharedState>

  init(store: consuming RangeStore, stop: Magazine, method: SlotMethod, processors: UInt32) {
    let classCount = SizeClass.count(store.granule)
    self.method = method
    granule = store.granule
    self.classCount = UInt64(classCount)
    processorCount = processors
    self.stop = stop
    unsafe absent = .allocate(capacity: max(classCount, 1))
    for order in 0..<classCount { unsafe (absent + order).initialize(to: Slot(stop)) }
    unsafe table = .allocate(capacity: Int(processorCount))
    for index in 0..<Int(processorCount) { unsafe (table + index).initialize(to: Atomic(absent)) }
    let memory = UnsafeMutableRawPointer.allocate(
      byteCount: (MemoryLayout<SharedState>.size + 127) & ~127, alignment: 128)
    unsafe shared = memory.bindMemory(to: SharedState.self, capacity: 1)
    unsafe shared.initialize(to: SharedState(store: store, classCount: classCount))
  }

  deinit {
    for index in 0..<Int(processorCount) {
      let slots = unsafe table[index].load(ordering: .acquiring)
      if unsafe slots == absent { continue }
      for order in 0..<Int(classCount) {
        let loaded = unsafe Magazine(slots[order].loaded.load(ordering: .relaxed))
        if loaded != stop { loaded.deallocate() }
        unsafe slots[order].previous?.deallocate()
      }
      unsafe slots.deinitialize(count: Int(classCount))
      unsafe Glibc.free(slots)
    }
    unsafe table.deinitialize(count: Int(processorCount))
    unsafe table.deallocate()
    unsafe absent.deinitialize(count: Int(classCount))
    unsafe absent.deallocate()
    unsafe shared.deinitialize(count: 1)
    unsafe shared.deallocate()
    stop.deallocate()
  }
}

/// The parts of an ``AddressAllocator`` that all processors change.
@safe
struct SharedState: ~Copyable {
  /// Guards the store, and changes of the next two.
  let storeLock = SpinLock()
  let storePointer: UnsafeMutablePointer<RangeStore>
  /// Allocations that the store was asked for, and the nodes that the last one visited.
  let storeAllocations = Atomic<Int>(0)
  let visits = Atomic<Int>(0)
  /// The bytes that are allocated in the store, cached ones as well; written with the store's lock held.
  let held = Atomic<UInt64>(0)
  /// The bytes of address space that the magazines of all slots can hold.
  let capacity = Atomic<UInt64>(0)
  /// The bytes of address space in the depot; written with its lock held.
  let inDepot = Atomic<UInt64>(0)
  /// For tests: how many times memory may still be asked for before it "runs out".
  let memoryBudget = Atomic<Int>(.max)
  /// Guards the depot. A lock stands beside what it guards, never inside: who changes that as a whole would change it as well.
  let depotLock = SpinLock()
  let depot: UnsafeMutablePointer<Depot>
  /// The depot's counts of full magazines, which are looked at without the lock.
  private let fullCounts: UnsafeMutablePointer<Atomic<Int>>

  init(store: consuming RangeStore, classCount: Int) {
    unsafe storePointer = .allocate(capacity: 1)
    unsafe storePointer.initialize(to: store)
    unsafe fullCounts = .allocate(capacity: classCount)
    for order in 0..<classCount { unsafe (fullCounts + order).initialize(to: Atomic(0)) }
    unsafe depot = .allocate(capacity: 1)
    unsafe depot.initialize(to: Depot(classCount: classCount, fullCounts: fullCounts))
  }

  deinit {
    unsafe depot.deinitialize(count: 1)
    unsafe depot.deallocate()
    unsafe storePointer.deinitialize(count: 1)
    unsafe storePointer.deallocate()
  }

  /// Whether the depot may have a full magazine of a size.
  func hasFull(_ order: Int) -> Bool { unsafe fullCounts[order].load(ordering: .relaxed) != 0 }

  var store: RangeStore {
    @inline(__always) _read { yield unsafe storePointer.pointee }
  }
}
