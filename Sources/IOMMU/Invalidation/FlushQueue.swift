import AddressSpace
import CIOMMU
import Synchronization

/// Ranges that were unmapped and wait for a flush, in rings: one a processor, or one for all.
///
/// The protocol is two counters. `started` counts the flushes that were begun, `finished` is the number of the last that
/// was completed. On tables that the kernel owns there is one at a time. An entry notes `started` when it is queued, after its range was unmapped: it
/// may go when `finished` is greater, since then a flush that *started after the unmap* has *finished*.
///
/// The rings' heads live as long as the domain, so that a switch of the protection needs to wait for nobody: it closes
/// each ring under its lock, and whoever comes late finds it closed and looks again what to do.
@safe
final class FlushQueue: @unchecked Sendable {
  /// What waits.
  struct Entry: BitwiseCopyable {
    /// The range.
    var iova: UInt64 = 0, byteCount: UInt64 = 0
    /// How much of the range is not mapped: gaps between the parts of a list.
    var gapByteCount: UInt64 = 0
    /// Memory of the streaming arena to be freed with it; 0 for none.
    var memory: UInt = 0
    /// ``FlushQueue/started`` when it was queued.
    var counter: UInt64 = 0
    /// When it was queued, in nanoseconds.
    var time: UInt64 = 0
    /// On tables that the kernel owns: the flush under way has unmapped it.
    var isUnmapped = false
    /// And where that failed half way, of a range of several areas: how many were unmapped.
    var unmappedAreas: UInt32 = 0
    /// The range came from ``DomainCore/space`` as it is, and goes back there; else the store has a node for it, or several.
    var isRecorded = false
  }

  /// A lock stands beside what it guards, never inside: who changes that as a whole would change the lock as well.
  @safe
  struct Ring: ~Copyable {
    /// With the lock held. It comes first: ThreadSanitizer takes a change of a part for one at the start of the whole.
    var waiting = Waiting()
    let lock = SpinLock()
    /// Threads that give back what they took out.
    let releasing = Atomic<Int>(0)
    /// ``FlushQueue/finished`` when no entry was left that may go: until that changes, none may.
    let settled = Atomic<UInt64>(0)
    // Two rings on one cache line would slow each other down.
    private var padding = InlineArray<6, UInt64>(repeating: 0)

    @safe
    struct Waiting {
      /// False: nothing is queued here, by the protection or because it is being switched.
      var isOpen = false
      /// Of the next entry to go and the next to come; they only grow.
      var head = 0, tail = 0
      /// Up to where finished flushes have covered entries, as far as they have told, and where the flush under way ends.
      var covered = 0, covering = 0
      /// The number of entries minus one.
      var mask = 0
      var entries: UnsafeMutablePointer<Entry>?
    }
  }

  /// What came of queueing.
  enum Appended {
    /// It waits; the entry may go when ``finished`` has reached this number.
    case queued(UInt64)
    case full
    case closed
  }

  let started = Atomic<UInt64>(0), finished = Atomic<UInt64>(0)
  /// Whether somebody flushes. The data path waits for it only where memory must go and no ring has room.
  let isFlushing = Atomic<Bool>(false)
  /// A hint when the oldest entry was queued that no flush has covered, never later than it was; 0 when there is none.
  /// ``refreshOldest()`` makes it exact.
  let oldest = Atomic<UInt64>(0)
  let isTimerArmed = Atomic<Bool>(false)
  /// How long an entry may wait, in nanoseconds.
  let timeout = Atomic<UInt64>(0)

  /// As many as the machine can have processors; made by the first switch to a lazy mode, and seen by whoever sees that.
  private(set) var rings: UnsafeMutablePointer<Ring>?
  let processors: Int
  /// 0 before they are made: whoever sees another number sees them.
  var ringCount: Int { madeCount.load(ordering: .acquiring) }
  private let madeCount = Atomic<Int>(0)

  init(processors: Int) { self.processors = processors }

  deinit {
    unsafe rings?.deinitialize(count: processors)
    unsafe rings?.deallocate()
  }

  /// Makes the rings, closed; one thread at a time.
  func makeRings() {
    guard unsafe rings == nil else { return }
    let new = UnsafeMutablePointer<Ring>.allocate(capacity: processors)
    for index in 0..<processors { unsafe (new + index).initialize(to: Ring()) }
    unsafe rings = unsafe new
    madeCount.store(processors, ordering: .releasing)
  }

  /// The ring for a topology on the processor that runs this.
  @inline(__always)
  func ring(_ mode: LazyMode) -> UnsafeMutablePointer<Ring> { unsafe ring(isSingle: mode == .single) }

  /// The same, for who has seen that there are rings.
  @inline(__always)
  func ring(isSingle: Bool) -> UnsafeMutablePointer<Ring> {
    let rings = unsafe rings.unsafelyUnwrapped
    return unsafe isSingle ? rings : rings + min(Int(truncatingIfNeeded: ci_cpu()), processors &- 1)
  }

  /// A flush is over. One that began later may have been quicker: it covers what this one covers.
  ///
  /// Who then looks at ``WithheldMemory`` sees what was added by a thread that did not see this.
  func finish(_ number: UInt64) {
    var last = finished.load(ordering: .relaxed)
    while last < number {
      let result = finished.weakCompareExchange(expected: last, desired: number, ordering: .releasing)
      if result.exchanged { break }
      last = result.original
    }
    atomicMemoryFence(ordering: .sequentiallyConsistent)
  }

  /// Queues an entry at the end of a ring, where it is made. Its range was unmapped before.
  @inline(__always)
  func append(_ entry: @autoclosure () -> Entry, to ring: UnsafeMutablePointer<Ring>) -> Appended {
    // What was cleared is visible before the counter is read. On x86 the exchange that takes the lock sees to it.
    #if arch(x86_64)
      unsafe ring.pointee.lock.lockInOrder()
    #else
      atomicMemoryFence(ordering: .sequentiallyConsistent)
      unsafe ring.pointee.lock.lock()
    #endif
    defer { unsafe ring.pointee.lock.unlock() }
    guard unsafe ring.pointee.waiting.isOpen else { return .closed }
    let tail = unsafe ring.pointee.waiting.tail, mask = unsafe ring.pointee.waiting.mask
    guard unsafe tail &- ring.pointee.waiting.head < mask else { return .full }
    var entry = entry()
    let counter = started.load(ordering: .relaxed)
    entry.counter = counter
    unsafe ring.pointee.waiting.entries.unsafelyUnwrapped[tail & mask] = entry
    unsafe ring.pointee.waiting.tail = tail &+ 1
    return .queued(counter &+ 1)
  }

  /// Takes entries that may go out of a ring, as many as fit into `batch`; how many. After giving them back, the caller
  /// takes itself off ``Ring/releasing``.
  @inline(__always)
  func take(from ring: UnsafeMutablePointer<Ring>, _ batch: inout Batch) -> Int {
    let finished = finished.load(ordering: .acquiring)
    unsafe ring.pointee.lock.lock()
    defer { unsafe ring.pointee.lock.unlock() }
    let waiting = unsafe ring.pointee.waiting, most = min(Batch.count, waiting.tail &- waiting.head)
    var count = 0
    while count < most {
      let entry = unsafe waiting.entries.unsafelyUnwrapped + (waiting.head &+ count) & waiting.mask
      guard unsafe entry.pointee.counter < finished else { break }
      unsafe batch[unchecked: count] = unsafe entry.pointee
      count &+= 1
    }
    unsafe ring.pointee.waiting.head = waiting.head &+ count
    if count < Batch.count { unsafe ring.pointee.settled.store(finished, ordering: .relaxed) }
    if count > 0 { unsafe ring.pointee.releasing.wrappingAdd(1, ordering: .relaxed) }
    return count
  }

  /// A few at a time, so that a ring's lock is held for a moment only.
  typealias Batch = InlineArray<16, Entry>

  /// Entries in all rings.
  var count: Int {
    var count = 0
    for index in 0..<ringCount {
      let ring = unsafe rings! + index
      unsafe ring.pointee.lock.lock()
      count += unsafe ring.pointee.waiting.tail - ring.pointee.waiting.head
      unsafe ring.pointee.lock.unlock()
    }
    return count
  }
}

/// Where an unmap's range goes; what the data path reads of a ``Protection``.
enum LazyMode: UInt8, AtomicRepresentable {
  case strict, perCPU, single
}

/// Which calls go the short way (`DomainCore+Here.swift`): a number for each of a few cases, which the shortest code tells apart.
enum HereMode {
  static var none: UInt8 { 0 }
  /// Maps do.
  static var strict: UInt8 { 1 }
  /// Unmaps do as well: from here on.
  static var lazy: UInt8 { 2 }
  static var single: UInt8 { 3 }

  static func of(_ mode: LazyMode) -> UInt8 {
    switch mode {
    case .strict: strict
    case .perCPU: lazy
    case .single: single
    }
  }
}
