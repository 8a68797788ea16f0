import AddressSpace
import CIOMMU

/// What the data path counts, kept apart by processor: two of them write to no common cache line.
///
/// A thread takes the slot of its processor, or any other that is free where that one is taken: who holds it may have been
/// preempted. Nobody waits for a second slot with one held, but for ``sum()`` and its like, which take all, in order.
@safe
struct DomainSlots: @unchecked Sendable {
  /// Behind its lock, which is held for a few instructions.
  struct Slot: ~Copyable {
    /// With the lock held; beside it, since ``DomainSlots/withAll(_:)`` and the like change it as a whole.
    var tally = Tally()
    var hit = StandingHit()
    fileprivate let lock = SpinLock()
  }

  struct Tally: BitwiseCopyable {
    /// Calls into the translation that began here and have not ended.
    var inFlight: UInt32 = 0
    /// No further call begins.
    var isClosed = false
    /// There is an index of host addresses, of which a mapping that begins or ends has to tell.
    var isIndexed = false
    var counts = Counts()
  }

  /// Sums over all slots mean something; those of one may be below zero, and wrap.
  struct Counts: BitwiseCopyable {
    /// As in ``DMAStatistics``.
    var maps: UInt64 = 0, unmaps: UInt64 = 0, systemCalls: UInt64 = 0, liveBytes: UInt64 = 0, queuedBytes: UInt64 = 0
  }

  /// Two cache lines, which are fetched together.
  static var stride: Int { 128 }
  /// More processors than these share: 16 KiB a domain are enough.
  private static var most: Int { 128 }

  private let memory: UnsafeMutableRawPointer
  /// A power of two, minus one.
  private let mask: Int

  init(processors: Int) {
    let wanted = min(max(processors, 1), Self.most)
    let count = 1 << (Int.bitWidth - (wanted - 1).leadingZeroBitCount)
    mask = count - 1
    assert(MemoryLayout<Slot>.size <= Self.stride)
    unsafe memory = .allocate(byteCount: count * Self.stride, alignment: Self.stride)
    for index in 0..<count { unsafe slot(index).initialize(to: Slot()) }
  }

  func deallocate() {
    for index in 0...mask { unsafe slot(index).deinitialize(count: 1) }
    unsafe memory.deallocate()
  }

  @inline(__always)
  private func slot(_ index: Int) -> UnsafeMutablePointer<Slot> {
    unsafe (memory + index &* Self.stride).assumingMemoryBound(to: Slot.self)
  }

  /// That of the processor that this thread is on at the moment.
  @inline(__always)
  var own: UnsafeMutablePointer<Slot> { unsafe slot(Int(truncatingIfNeeded: ci_cpu()) & mask) }
}

// MARK: - One slot

extension DomainSlots {
  /// Takes a slot; ``Slot/unlock()`` gives it back.
  @inline(__always)
  func lock() -> UnsafeMutablePointer<Slot> {
    let index = Int(truncatingIfNeeded: ci_cpu()) & mask
    let own = unsafe slot(index)
    return unsafe own.pointee.lock.tryLock() ? own : lockAnother(index)
  }

  @inline(never)
  private func lockAnother(_ taken: Int) -> UnsafeMutablePointer<Slot> {
    var index = taken
    while true {
      index = (index + 1) & mask
      if unsafe slot(index).pointee.lock.tryLockAgain() { return unsafe slot(index) }
      ci_cpu_pause()
    }
  }

  /// Ends a call that ``Slot/inFlight`` has counted; whether there is an index of host addresses.
  @inline(__always)
  @discardableResult
  func leave(_ slot: UnsafeMutablePointer<Slot>, systemCalls: UInt64 = 0) -> Bool {
    unsafe slot.pointee.relock()
    unsafe slot.pointee.tally.inFlight &-= 1
    unsafe slot.pointee.tally.counts.systemCalls &+= systemCalls
    let isIndexed = unsafe slot.pointee.tally.isIndexed
    unsafe slot.pointee.unlock()
    return isIndexed
  }

  /// Counts something, on whichever slot.
  func count(_ body: (inout Counts) -> Void) {
    let slot = unsafe lock()
    unsafe body(&slot.pointee.tally.counts)
    unsafe slot.pointee.unlock()
  }
}

extension DomainSlots.Slot {
  /// Gives the slot back.
  @inline(__always)
  func unlock() { lock.unlock() }

  /// Takes the slot if nobody has it.
  @inline(__always)
  func tryLock() -> Bool { lock.tryLock() }

  /// Takes the slot on which a call was begun.
  @inline(__always)
  func relock() { lock.lock() }
}

// MARK: - All slots

extension DomainSlots {
  /// Calls a function with each slot while all are held: no call begins or ends meanwhile.
  private func withAll(_ body: (inout Tally) -> Void) {
    for index in 0...mask { unsafe slot(index).pointee.lock.lock() }
    for index in 0...mask { unsafe body(&slot(index).pointee.tally) }
    for index in 0...mask { unsafe slot(index).pointee.unlock() }
  }

  /// The sums, all as of one moment.
  func sum() -> Counts {
    var sum = Counts()
    withAll { tally in
      sum.maps &+= tally.counts.maps
      sum.unmaps &+= tally.counts.unmaps
      sum.systemCalls &+= tally.counts.systemCalls
      sum.liveBytes &+= tally.counts.liveBytes
      sum.queuedBytes &+= tally.counts.queuedBytes
    }
    return sum
  }

  /// Lets no further call begin; nor is a slot's hit made use of, once ``DomainCore/withoutHits(_:)`` was called after this.
  func close() { withAll { $0.isClosed = true } }

  /// What ``withAllHits(_:)`` shows.
  @safe
  struct Hits: ~Copyable {
    fileprivate let slots: DomainSlots

    /// Gives all ranges what the slots have counted of them, and leaves the slots without.
    func foldAll() {
      for index in 0...slots.mask { unsafe slots.slot(index).pointee.hit.fold() }
    }
  }

  /// Calls a function while all slots are held.
  func withAllHits<Result>(_ body: (borrowing Hits) -> Result) -> Result {
    for index in 0...mask { unsafe slot(index).pointee.lock.lock() }
    defer { for index in 0...mask { unsafe slot(index).pointee.unlock() } }
    return body(Hits(slots: self))
  }

  /// Whether a call is under way.
  var isAnyInFlight: Bool {
    var isAny = false
    withAll { if $0.inFlight != 0 { isAny = true } }
    return isAny
  }

  /// From now on, whoever has entered or ended a mapping tells the index: a mapping whose record came or went before this
  /// call is seen in the table, and one whose thread takes a slot after it sees the mark.
  func setIndexed() { withAll { $0.isIndexed = true } }

  /// Who has given a slot back before this has done so for whoever looks after it, and who takes one later sees what was written
  /// before it.
  func passAll() { withAll { _ in } }

  /// The domain is closed: nothing waits any more.
  func clearQueued() { withAll { $0.counts.queuedBytes = 0 } }
}
