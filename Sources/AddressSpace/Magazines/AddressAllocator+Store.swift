internal import CIOMMU
internal import Synchronization

// Requests that reach the store, one at a time.

extension AddressAllocator {
  /// Takes the store's lock, for ``store``, with memory at hand for so many insertions, see ``RangeStore/lock(_:insertions:)``.
  /// No system call, and nothing of the allocator's but ``unlockStore()``, may come before it is given back.
  package func lockStore(insertions: Int = 0) {
    let shared = unsafe core.pointee.shared
    unsafe shared.pointee.storePointer.pointee.lock(shared.pointee.storeLock, insertions: insertions)
  }

  package func unlockStore() {
    let shared = unsafe core.pointee.shared
    unsafe shared.pointee.held.store(shared.pointee.store.byteCount(of: .allocation), ordering: .relaxed)
    unsafe shared.pointee.storeLock.unlock()
  }

  /// The store, for several steps with its lock held. What is cached are allocations there, with a tag of 0.
  package var store: UnsafePointer<RangeStore> { unsafe UnsafePointer(core.pointee.shared.pointee.storePointer) }

  /// Calls a function with the store, its lock held.
  private func withStore<Result, Failure: Error>(
    insertions: Int = 0, _ body: (borrowing RangeStore) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    lockStore(insertions: insertions)
    defer { unlockStore() }
    return try unsafe body(core.pointee.shared.pointee.storePointer.pointee)
  }

  /// ``allocate(byteCount:limit:mayEmptyCaches:)`` where the loaded magazine has no answer.
  @inline(never) @usableFromInline
  func allocateSlowly(
    _ byteCount: UInt64, limit: UInt64, lowest: UInt64 = 0, mayEmptyCaches: Bool, processor: UInt32
  ) throws(RangeStoreFailure) -> IOVA {
    let order = order(byteCount)
    guard unsafe order < core.pointee.classCount else {
      return try allocate(RangeStore.Request(byteCount: byteCount, limit: limit), mayEmptyCaches: mayEmptyCaches)
    }
    let rounded = unsafe core.pointee.granule.byteCount << order
    guard limit >= rounded - 1 else { throw .noSpace }
    let address = refill(order, lowest: lowest, highest: limit - (rounded - 1), processor: processor)
    if address != Slot.none { return IOVA(address) }
    return try allocate(RangeStore.Request(byteCount: rounded, limit: limit), mayEmptyCaches: mayEmptyCaches)
  }

  /// ``free(_:byteCount:)`` where the loaded magazine has no room.
  @inline(never) @usableFromInline
  func freeSlowly(_ start: IOVA, byteCount: UInt64, processor: UInt32) {
    let order = order(byteCount)
    if unsafe order < core.pointee.classCount, spill(start.rawValue, order, processor: processor) { return }
    remove(start)
  }
}

// MARK: - Past the caches

extension AddressAllocator {
  /// Chooses an address by a request of any kind, and occupies the range; it is released by ``remove(_:)``.
  ///
  /// - Throws: As ``RangeStore/allocate(_:kind:tag:auxiliary:)``.
  /// - Complexity: O(log n); O(cached) when the caches are emptied.
  package func allocate(
    _ request: RangeStore.Request, kind: RangeStore.Kind = .allocation, tag: UInt64 = 0, auxiliary: UInt32 = 0,
    mayEmptyCaches: Bool = true
  ) throws(RangeStoreFailure) -> IOVA {
    do throws(RangeStoreFailure) {
      return try place(request, kind, tag, auxiliary)
    } catch {
      // Nodes that go give memory back as well as room.
      let isFull = error == .noSpace || error == .fragmented || error == .outOfMemory
      guard isFull, mayEmptyCaches, emptyCaches() else { throw error }
    }
    return try place(request, kind, tag, auxiliary)
  }

  private func place(
    _ request: RangeStore.Request, _ kind: RangeStore.Kind, _ tag: UInt64, _ auxiliary: UInt32
  ) throws(RangeStoreFailure) -> IOVA {
    let shared = unsafe core.pointee.shared
    return try withStore(insertions: 1) { store throws(RangeStoreFailure) in
      unsafe shared.pointee.storeAllocations.wrappingAdd(1, ordering: .relaxed)
      defer { unsafe shared.pointee.visits.store(store.visits, ordering: .relaxed) }
      return try store.allocate(request, kind: kind, tag: tag, auxiliary: auxiliary)
    }
  }

  /// Frees the node that starts at an address and returns it; `nil` when none does. Not for what
  /// ``allocate(byteCount:limit:mayEmptyCaches:)`` gave for 2 MiB or less.
  ///
  /// - Complexity: O(log n).
  @discardableResult
  package func remove(_ start: IOVA) -> RangeStore.Node? { withStore { $0.remove(start) } }

  /// Occupies a range whose address the caller chose. A cached range in the way makes room.
  ///
  /// - Throws: As ``RangeStore/insert(_:limit:)``.
  /// - Complexity: O(log n); O(cached) when something is in the way.
  package func insert(_ node: RangeStore.Node, limit: UInt64 = .max) throws(RangeStoreFailure) {
    do throws(RangeStoreFailure) {
      return try withStore(insertions: 1) { store throws(RangeStoreFailure) in try store.insert(node, limit: limit) }
    } catch {
      guard case .occupied = error, emptyCaches() else { throw error }
    }
    try withStore(insertions: 1) { store throws(RangeStoreFailure) in try store.insert(node, limit: limit) }
  }

  /// Reserves every granule that has an address of a range in it. A cached range in the way makes room.
  ///
  /// - Throws: As ``insert(_:limit:)``, less `unaligned`.
  package func reserve(_ range: IOVARange, tag: UInt64 = 0) throws(RangeStoreFailure) {
    let range = unsafe range.widened(to: core.pointee.granule)
    try insert(RangeStore.Node(range: range, kind: .reservation, tag: tag))
  }

  /// ``RangeStore/unreserve(_:)``.
  package func unreserve(_ range: IOVARange) -> Bool { withStore { $0.unreserve(range) } }

  /// ``RangeStore/find(containing:)``. Cached ranges are found too.
  package func find(containing address: IOVA) -> RangeStore.Node? { withStore { $0.find(containing: address) } }

  /// ``RangeStore/find(overlapping:)``. Cached ranges are found too.
  package func find(overlapping range: IOVARange) -> RangeStore.Node? { withStore { $0.find(overlapping: range) } }

  /// ``RangeStore/next(from:)``. Cached ranges are found too.
  package func next(from address: IOVA) -> RangeStore.Node? { withStore { $0.next(from: address) } }

  /// ``RangeStore/largestFreeByteCount(limit:lowest:)``. Cached ranges are not free.
  package func largestFreeByteCount(limit: UInt64 = .max, lowest: UInt64 = 0) -> UInt64 {
    withStore { $0.largestFreeByteCount(limit: limit, lowest: lowest) }
  }

  /// ``RangeStore/largestFreeOrder(limit:lowest:)``. Cached ranges are not free.
  package func largestFreeOrder(limit: UInt64 = .max, lowest: UInt64 = 0) -> Int? {
    withStore { $0.largestFreeOrder(limit: limit, lowest: lowest) }
  }
}

// MARK: - Emptying the caches

extension AddressAllocator {
  /// Gives all addresses in the magazines of all processors and in the depot back to the store, and their memory back;
  /// `false` when there was none.
  ///
  /// - Complexity: O(c · log n) with c the cached addresses. Calls membarrier(2), with no lock held.
  @discardableResult
  package func emptyCaches() -> Bool {
    let (core, shared) = unsafe (core, core.pointee.shared)
    var (inSlots, others): (Magazine?, Magazine?) = (nil, nil)
    for processor in 0..<(unsafe core.pointee.processorCount) {
      let slots = unsafe slots(processor)
      if unsafe slots == core.pointee.absent { continue }
      for order in 0..<(unsafe core.pointee.classCount) {
        unsafe take(slots + Int(order), sizeClass(order), &inSlots, &others)
      }
    }
    unsafe shared.pointee.depotLock.lock()
    for order in 0..<(unsafe Int(core.pointee.classCount)) {
      unsafe depot.pointee.takeAllFull(order).forEachMagazine { $0.link(to: &others) }
    }
    unsafe shared.pointee.inDepot.store(0, ordering: .relaxed)
    let spares = unsafe depot.pointee.takeAllSpares()
    unsafe shared.pointee.depotLock.unlock()
    let isAny = inSlots != nil || others != nil

    for list in [others, spares.0, spares.1] { list.forEachMagazine { dispose($0) } }
    // Those that were loaded may still be in the hands of a restartable sequence, until the barrier.
    if let first = inSlots {
      if unsafe core.pointee.method == .locked || ci_membarrier_rseq() == 0 {
        inSlots.forEachMagazine { dispose($0) }
      } else {
        unsafe shared.pointee.depotLock.lock()
        unsafe depot.pointee.strand(first)
        unsafe shared.pointee.depotLock.unlock()
      }
    }
    return isAny
  }

  /// Takes both magazines out of a slot.
  private func take(
    _ slot: UnsafeMutablePointer<Slot>, _ sizeClass: SizeClass, _ inSlots: inout Magazine?, _ others: inout Magazine?
  ) {
    let stop = unsafe core.pointee.stop
    unsafe slot.pointee.lock.lock()
    let loaded = unsafe Magazine(slot.pointee.loaded.exchange(stop.pointer, ordering: .acquiringAndReleasing))
    let previous = unsafe slot.pointee.previous
    unsafe slot.pointee.previous = nil
    unsafe slot.pointee.exchanges = 0
    unsafe slot.pointee.lock.unlock()
    let capacity = UInt64(loaded.capacity + (previous?.capacity ?? 0)) * sizeClass.byteCount
    unsafe core.pointee.shared.pointee.capacity.wrappingSubtract(capacity, ordering: .relaxed)
    if loaded != stop { loaded.link(to: &inSlots) }
    previous?.link(to: &others)
  }

  /// Gives the addresses of a magazine that nobody else has back to the store, and leaves it empty.
  func drain(_ magazine: Magazine) {
    // A few at a time: who waits for the lock does not wait for all.
    while !magazine.isEmpty {
      withStore { store in
        for _ in 0..<min(magazine.count, 16) { _ = store.remove(IOVA(magazine.pop(from: 0, to: .max))) }
      }
    }
  }

  private func dispose(_ magazine: Magazine) {
    drain(magazine)
    magazine.deallocate()
  }
}

extension Magazine {
  /// Puts the magazine at the head of a list.
  func link(to list: inout Magazine?) {
    next = list
    list = self
  }
}
