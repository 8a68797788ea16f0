internal import CIOMMU
internal import Glibc
internal import Synchronization

// What happens when the loaded magazine does not answer: it is exchanged for the previous one, or for one of the depot.

extension AddressAllocator {
  /// Exchanges with the depot after which a slot gets large magazines.
  static var growth: UInt32 { 4 }

  /// Of all that is allocated, cached addresses are at most so many sixteenths, or ``freelyHeldByteCount``: 3/16 of what
  /// is held are 1.23 of what lives.
  static var heldFraction: UInt64 { 3 }

  /// The bytes of address space that may be cached however little is allocated.
  static var freelyHeldByteCount: UInt64 { 16 << 20 }

  /// Whether so many more bytes may be cached.
  func mayHold(_ byteCount: UInt64) -> Bool {
    let shared = unsafe core.pointee.shared
    let cached =
      unsafe shared.pointee.capacity.load(ordering: .relaxed) + shared.pointee.inDepot.load(ordering: .relaxed)
    let bound = unsafe shared.pointee.held.load(ordering: .relaxed) / 16 * AddressAllocator.heldFraction
    return cached + byteCount <= max(bound, AddressAllocator.freelyHeldByteCount)
  }

  func sizeClass(_ order: UInt64) -> SizeClass { unsafe SizeClass(order: Int(order), granule: core.pointee.granule) }
}

extension AddressAllocator {
  /// The processor to which the thread came when it left another; `nil` when that has no place in the table.
  private func currentProcessor() -> UInt32? {
    let cpu = ci_cpu()
    return unsafe cpu < core.pointee.processorCount ? cpu : nil
  }
}

// MARK: - Popping

extension AddressAllocator {
  /// The depot, to be used with ``SharedState/depotLock`` held.
  var depot: UnsafeMutablePointer<Depot> { unsafe core.pointee.shared.pointee.depot }

  /// Takes an address of `lowest` to `highest` from what the processor or the depot has; ``Slot/none`` when none has.
  func refill(_ order: UInt64, lowest: UInt64, highest: UInt64, processor: UInt32) -> UInt64 {
    let (core, sizeClass) = unsafe (core, sizeClass(order))
    let (stop, method) = unsafe (core.pointee.stop, core.pointee.method)
    var processor = processor
    while true {
      let isInDepot = unsafe core.pointee.shared.pointee.hasFull(sizeClass.order)
      var slot = unsafe slots(processor)
      if unsafe slot == core.pointee.absent {
        guard isInDepot, let made = unsafe makeSlots(processor) else { return Slot.none }
        unsafe slot = made
      }
      unsafe slot += sizeClass.order
      unsafe slot.pointee.lock.lock()
      let isEmpty = unsafe Magazine(slot.pointee.loaded.load(ordering: .relaxed)).isEmpty
      if unsafe isEmpty && !isInDepot && slot.pointee.previous?.isEmpty ?? true {
        unsafe slot.pointee.lock.unlock()
        return Slot.none
      }
      guard var magazine = unsafe Slot.detach(slot, stop, method, cpu: processor) else {
        unsafe slot.pointee.lock.unlock()
        guard let current = currentProcessor() else { return Slot.none }
        processor = current
        continue
      }
      var surplus: Magazine?
      if magazine.isEmpty { magazine = unsafe exchange(empty: magazine, in: slot, sizeClass, &surplus) }
      let address = magazine.pop(from: lowest, to: highest)
      unsafe Slot.load(magazine, in: slot)
      unsafe slot.pointee.lock.unlock()
      surplus?.deallocate()
      return address
    }
  }

  /// With the slot's lock held: what shall be loaded instead of an empty magazine; that one if there is nothing.
  private func exchange(
    empty: Magazine, in slot: UnsafeMutablePointer<Slot>, _ sizeClass: SizeClass, _ surplus: inout Magazine?
  ) -> Magazine {
    let shared = unsafe core.pointee.shared
    var empty: Magazine? = unsafe empty == core.pointee.stop ? nil : empty
    if let previous = unsafe slot.pointee.previous, !previous.isEmpty {
      unsafe slot.pointee.previous = empty
      return previous
    }
    unsafe shared.pointee.depotLock.lock()
    defer { unsafe shared.pointee.depotLock.unlock() }
    guard let full = unsafe depot.pointee.takeFull(sizeClass.order) else {
      return unsafe empty ?? core.pointee.stop
    }
    unsafe shared.pointee.inDepot.wrappingSubtract(UInt64(full.count) * sizeClass.byteCount, ordering: .relaxed)
    if unsafe slot.pointee.previous == nil { unsafe swap(&slot.pointee.previous, &empty) }
    note(in: full, out: empty, sizeClass)
    if let empty, unsafe !depot.pointee.putSpare(empty, empty.size(sizeClass)) { surplus = empty }
    unsafe slot.pointee.exchanges = min(slot.pointee.exchanges + 1, AddressAllocator.growth)
    return full
  }

  /// Counts what the slots can hold when a magazine comes to one and another leaves it.
  private func note(in added: Magazine, out removed: Magazine?, _ sizeClass: SizeClass) {
    let change = UInt64(added.capacity) &- UInt64(removed?.capacity ?? 0)
    if change != 0 {
      unsafe core.pointee.shared.pointee.capacity.wrappingAdd(change &* sizeClass.byteCount, ordering: .relaxed)
    }
  }
}

// MARK: - Pushing

extension AddressAllocator {
  /// Puts an address where the processor has room, or makes some; `false` when there is no memory for it.
  func spill(_ address: UInt64, _ order: UInt64, processor: UInt32) -> Bool {
    let (core, sizeClass) = unsafe (core, sizeClass(order))
    let (stop, method) = unsafe (core.pointee.stop, core.pointee.method)
    var processor = processor
    // A magazine for which memory was asked, without a lock held.
    var fresh: Magazine?
    while true {
      var slot = unsafe slots(processor)
      if unsafe slot == core.pointee.absent {
        guard let made = unsafe makeSlots(processor) else { break }
        unsafe slot = made
      }
      unsafe slot += sizeClass.order
      unsafe slot.pointee.lock.lock()
      guard let full = unsafe Slot.detach(slot, stop, method, cpu: processor) else {
        unsafe slot.pointee.lock.unlock()
        guard let current = currentProcessor() else { break }
        processor = current
        continue
      }
      var surplus: Magazine?
      let size = unsafe wantedSize(slot, sizeClass)
      guard let magazine = unsafe exchange(full: full, in: slot, size, sizeClass, &fresh, &surplus) else {
        unsafe Slot.load(full, in: slot)
        unsafe slot.pointee.lock.unlock()
        fresh = makeMagazine(size, sizeClass)
        if fresh == nil { break }
        continue
      }
      _ = magazine.push(address)
      unsafe Slot.load(magazine, in: slot)
      unsafe slot.pointee.lock.unlock()
      if let surplus { retire(surplus, sizeClass) }
      fresh?.deallocate()
      return true
    }
    fresh?.deallocate()
    return false
  }

  /// With the slot's lock held: what shall be loaded instead of a full magazine; `nil` when that needs an empty one and there
  /// is none. The previous magazine, if it is full too, goes to the depot, or is surplus.
  private func exchange(
    full: Magazine, in slot: UnsafeMutablePointer<Slot>, _ size: Magazine.Size, _ sizeClass: SizeClass,
    _ fresh: inout Magazine?, _ surplus: inout Magazine?
  ) -> Magazine? {
    if !full.isFull { return full }
    let shared = unsafe core.pointee.shared
    let loaded: Magazine? = unsafe full == core.pointee.stop ? nil : full
    let previous = unsafe slot.pointee.previous
    if let previous, !previous.isFull {
      unsafe slot.pointee.previous = loaded
      return previous
    }
    unsafe shared.pointee.depotLock.lock()
    defer { unsafe shared.pointee.depotLock.unlock() }
    guard let empty = unsafe fresh ?? depot.pointee.takeSpare(size) else { return nil }
    if fresh == nil { empty.capacity = sizeClass.capacity(size) }
    fresh = nil
    unsafe slot.pointee.previous = loaded
    if let previous {
      if mayHold(UInt64(empty.capacity) * sizeClass.byteCount) {
        unsafe shared.pointee.inDepot.wrappingAdd(UInt64(previous.count) * sizeClass.byteCount, ordering: .relaxed)
        unsafe depot.pointee.putFull(previous, sizeClass.order)
        unsafe slot.pointee.exchanges = min(slot.pointee.exchanges + 1, AddressAllocator.growth)
      } else {
        surplus = previous
      }
    }
    note(in: empty, out: previous, sizeClass)
    return empty
  }

  /// Gives the addresses of a magazine that nobody else has back to the store, and keeps its memory or gives that back too.
  private func retire(_ magazine: Magazine, _ sizeClass: SizeClass) {
    let shared = unsafe core.pointee.shared
    drain(magazine)
    unsafe shared.pointee.depotLock.lock()
    let isKept = unsafe depot.pointee.putSpare(magazine, magazine.size(sizeClass))
    unsafe shared.pointee.depotLock.unlock()
    if !isKept { magazine.deallocate() }
  }

  /// The size of the next magazine of a slot.
  private func wantedSize(_ slot: UnsafeMutablePointer<Slot>, _ sizeClass: SizeClass) -> Magazine.Size {
    guard unsafe slot.pointee.exchanges == AddressAllocator.growth else { return .small }
    let more = UInt64(sizeClass.capacity(.large) - sizeClass.capacity(.small)) * sizeClass.byteCount
    return mayHold(more) ? .large : .small
  }
}

// MARK: - Memory

extension AddressAllocator {
  /// Whether memory may be asked for: always, but in tests.
  private func mayAsk() -> Bool {
    unsafe core.pointee.shared.pointee.memoryBudget.wrappingSubtract(1, ordering: .relaxed).newValue >= 0
  }

  @inline(never)
  private func makeMagazine(_ size: Magazine.Size, _ sizeClass: SizeClass) -> Magazine? {
    mayAsk() ? Magazine(size, capacity: sizeClass.capacity(size)) : nil
  }

  /// A processor's slots, which it has none of yet; `nil` when there is no memory.
  @inline(never)
  private func makeSlots(_ processor: UInt32) -> UnsafeMutablePointer<Slot>? {
    let count = unsafe Int(core.pointee.classCount)
    var memory: UnsafeMutableRawPointer?
    // Whole cache lines, two by two as they are fetched, so that no processor waits for another's.
    guard mayAsk(), unsafe posix_memalign(&memory, 128, slotsByteCount) == 0, let block = unsafe memory else {
      return nil
    }
    let slots = unsafe block.bindMemory(to: Slot.self, capacity: count)
    for order in 0..<count { unsafe (slots + order).initialize(to: Slot(core.pointee.stop)) }
    let (isMine, other) = unsafe core.pointee.table[Int(processor)].compareExchange(
      expected: core.pointee.absent, desired: slots, ordering: .acquiringAndReleasing)
    if isMine { return unsafe slots }
    // Another thread was faster.
    unsafe slots.deinitialize(count: count)
    unsafe Glibc.free(slots)
    return unsafe other
  }

  /// The bytes of memory of a processor's slots.
  var slotsByteCount: Int { unsafe (Int(core.pointee.classCount) * MemoryLayout<Slot>.stride + 127) & ~127 }
}
