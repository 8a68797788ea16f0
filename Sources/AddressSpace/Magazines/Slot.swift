public import CIOMMU
internal import Synchronization

/// The magazines of one size of range on one processor.
///
/// **Loaded** is popped from and pushed onto by the processor's own threads, in one of two ways that the allocator chooses
/// when it is made: with the lock held (the reference), or by a restartable sequence without the lock. **Everything else**
/// is done with the lock held, above all any change of what is loaded. In the second way a loaded magazine that is
/// taken out is owned only after
///
/// - a restartable sequence on the slot's processor took it out (``detach(_:_:_:cpu:)``), or
/// - a membarrier(2) since (``AddressAllocator/emptyCaches()``).
@safe
@usableFromInline
struct Slot: ~Copyable {
  /// What threads pop from and push onto; the stop magazine, which is empty and full, when there is none. It comes first: the
  /// restartable sequences take its address for the slot's.
  let loaded: Atomic<UnsafeMutablePointer<ci_magazine>>
  /// A magazine that is full or empty, mostly.
  var previous: Magazine?
  let lock = SpinLock()
  /// Exchanges with the depot, up to ``AddressAllocator/growth``.
  var exchanges: UInt32 = 0

  init(_ stop: Magazine) {
    unsafe loaded = unsafe Atomic(stop.pointer)
    previous = nil
  }

  /// No address: no range starts there, as a granule has 4 bytes or more.
  @inlinable static var none: UInt64 { .max }
}

/// How the loaded magazine is kept to one thread at a time.
@usableFromInline
package enum SlotMethod: Sendable {
  /// A spin lock in each slot: works everywhere.
  case locked
  /// Restartable sequences.
  case restartable

  /// The faster one that works here: with glibc's registration for rseq(2) and with membarrier(2), the second. The variable
  /// SWIFT_IOMMU_RSEQ=0 in the environment forbids it.
  package static let best: SlotMethod = ci_rseq_usable() != 0 ? .restartable : .locked
}

// MARK: - The two functions

extension Slot {
  /// Takes an address that is at most `highest` from the loaded magazine; ``Slot/none`` when the last one is not, when there is
  /// none, or when the thread left the processor.
  @inlinable @inline(__always)
  static func pop(_ slot: UnsafeMutablePointer<Slot>, _ method: SlotMethod, cpu: UInt32, highest: UInt64) -> UInt64 {
    method == .restartable ? unsafe ci_rseq_pop(slot, cpu, highest) : unsafe popLocked(slot, highest: highest)
  }

  /// A function of its own: what waiting for a lock needs is no burden to who takes none.
  @inline(never) @usableFromInline
  static func popLocked(_ slot: UnsafeMutablePointer<Slot>, highest: UInt64) -> UInt64 {
    unsafe slot.pointee.lock.lock()
    let address = unsafe Magazine(slot.pointee.loaded.load(ordering: .relaxed)).popLast(highest)
    unsafe slot.pointee.lock.unlock()
    return address
  }

  /// Puts an address onto the loaded magazine; `false` when it is full, or when the thread left the processor.
  @inlinable @inline(__always)
  static func push(_ slot: UnsafeMutablePointer<Slot>, _ method: SlotMethod, cpu: UInt32, _ address: UInt64) -> Bool {
    method == .restartable
      ? unsafe ci_rseq_push(slot, cpu, address) != 0 : unsafe pushLocked(slot, address)
  }

  @inline(never) @usableFromInline
  static func pushLocked(_ slot: UnsafeMutablePointer<Slot>, _ address: UInt64) -> Bool {
    unsafe slot.pointee.lock.lock()
    let isDone = unsafe Magazine(slot.pointee.loaded.load(ordering: .relaxed)).push(address)
    unsafe slot.pointee.lock.unlock()
    return isDone
  }
}

// MARK: - With the lock held

extension Slot {
  /// Takes the loaded magazine out, so that the caller owns it; `nil` when the thread left the processor: then the slot is
  /// not its own any more.
  static func detach(
    _ slot: UnsafeMutablePointer<Slot>, _ stop: Magazine, _ method: SlotMethod, cpu: UInt32
  ) -> Magazine? {
    let magazine = unsafe Magazine(slot.pointee.loaded.load(ordering: .relaxed))
    guard method == .restartable, magazine != stop else { return magazine }
    return unsafe ci_rseq_swap(slot, cpu, magazine.pointer, stop.pointer) != 0 ? magazine : nil
  }

  /// Loads a magazine, which from then on is no longer the caller's.
  static func load(_ magazine: Magazine, in slot: UnsafeMutablePointer<Slot>) {
    unsafe slot.pointee.loaded.store(magazine.pointer, ordering: .releasing)
  }
}
