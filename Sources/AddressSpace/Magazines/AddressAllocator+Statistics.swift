internal import Synchronization

extension AddressAllocator {
  /// What is allocated and what is cached, at about the same moment.
  package struct Statistics: Sendable, Equatable {
    /// Bytes of address space of the allocations that somebody has, in whole powers of two where they are cached later.
    package var liveByteCount: UInt64 = 0
    /// Bytes of address space in magazines.
    package var cachedByteCount: UInt64 = 0
    /// The number of allocations that somebody has.
    package var liveCount = 0
    /// The number of addresses in magazines.
    package var cachedCount = 0
    /// Bytes of memory of the magazines, and of what each processor keeps beside.
    package var memoryByteCount = 0
    /// Allocations that no magazine answered.
    package var storeAllocations = 0
    /// Tree nodes that the last of them looked at.
    package var visits = 0
  }

  /// - Complexity: O(processors + magazines in the depot).
  package var statistics: Statistics {
    let (core, shared) = unsafe (core, core.pointee.shared)
    var result = Statistics()
    // First what is cached: what moves into the caches meanwhile is counted as living, not twice.
    forEachSlot { order, loaded, previous in
      let sizeClass = sizeClass(order)
      for magazine in [loaded, previous] {
        guard let magazine, unsafe magazine != core.pointee.stop else { continue }
        result.cachedCount += magazine.count
        result.cachedByteCount += UInt64(magazine.count) * sizeClass.byteCount
        result.memoryByteCount += magazine.size(sizeClass).rawValue
      }
    }
    unsafe shared.pointee.depotLock.lock()
    for order in 0..<(unsafe core.pointee.classCount) {
      let contents = unsafe depot.pointee.contents(sizeClass(order))
      result.cachedCount += contents.count
      result.cachedByteCount += UInt64(contents.count) * sizeClass(order).byteCount
      result.memoryByteCount += contents.memory
    }
    unsafe result.memoryByteCount += depot.pointee.spareByteCount
    unsafe shared.pointee.depotLock.unlock()
    for processor in 0..<(unsafe core.pointee.processorCount) where unsafe slots(processor) != core.pointee.absent {
      result.memoryByteCount += slotsByteCount
    }
    unsafe shared.pointee.storeLock.lock()
    // More may be cached by now than is allocated here.
    unsafe result.liveCount = max(0, shared.pointee.store.count(of: .allocation) - result.cachedCount)
    let allocated = unsafe shared.pointee.store.byteCount(of: .allocation)
    result.liveByteCount = allocated - min(allocated, result.cachedByteCount)
    unsafe result.storeAllocations = shared.pointee.storeAllocations.load(ordering: .relaxed)
    unsafe result.visits = shared.pointee.visits.load(ordering: .relaxed)
    unsafe shared.pointee.storeLock.unlock()
    return result
  }

  /// Calls a function with the magazines of each slot that a processor has, the slot's lock held.
  private func forEachSlot(_ body: (UInt64, Magazine, Magazine?) -> Void) {
    for processor in 0..<(unsafe core.pointee.processorCount) {
      let slots = unsafe slots(processor)
      if unsafe slots == core.pointee.absent { continue }
      for order in 0..<(unsafe core.pointee.classCount) {
        let slot = unsafe slots + Int(order)
        unsafe slot.pointee.lock.lock()
        unsafe body(order, Magazine(slot.pointee.loaded.load(ordering: .relaxed)), slot.pointee.previous)
        unsafe slot.pointee.lock.unlock()
      }
    }
  }

  // MARK: - For tests

  /// The first thing found that must not be; `nil` when all is well. While nobody else uses the allocator.
  ///
  /// - Complexity: O(n).
  package func checkInvariants() -> String? {
    let shared = unsafe core.pointee.shared
    if let failure = unsafe shared.pointee.store.checkInvariants() { return failure }
    var (failure, capacity): (String?, UInt64) = (nil, 0)
    forEachSlot { order, loaded, previous in
      for magazine in [loaded, previous] {
        guard let magazine else { continue }
        capacity += UInt64(magazine.capacity) * sizeClass(order).byteCount
        if magazine.count > magazine.capacity {
          failure = "\(magazine.count) addresses in a magazine of \(magazine.capacity)"
        }
      }
    }
    let counted = unsafe shared.pointee.capacity.load(ordering: .relaxed)
    if capacity != counted { failure = "the slots can hold \(capacity) bytes, counted \(counted)" }
    let held = unsafe shared.pointee.held.load(ordering: .relaxed)
    let allocated = unsafe shared.pointee.store.byteCount(of: .allocation)
    return held == allocated ? failure : "\(allocated) bytes are allocated, counted \(held)"
  }

  /// Lets the store's memory run out after so many more requests for a chunk of it.
  package func limitStoreMemory(toChunks count: Int) {
    lockStore()
    unsafe store.pointee.limitMemory(toChunks: count)
    unlockStore()
  }

  /// Lets the memory of slots and magazines run out after so many more requests for it.
  package func limitMemory(toRequests count: Int) {
    unsafe core.pointee.shared.pointee.memoryBudget.store(count, ordering: .relaxed)
  }
}
