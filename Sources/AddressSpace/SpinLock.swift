internal import CIOMMU
public import Synchronization

/// A lock for a few dozen instructions: a store of ranges, a magazine, a queue slot.
///
/// It spins and never sleeps: the holder must not make a system call that can sleep. It reads before it
/// tries again, so that waiting threads share the cache line, and waits twice as long after each look, up
/// to 64 pauses, so that many of them do not fight for it.
@usableFromInline
package struct SpinLock: ~Copyable, Sendable {
  /// 0 free, 1 held.
  @usableFromInline let word = Atomic<UInt32>(0)

  @inlinable package init() {}

  /// Takes the lock; waits while another thread has it.
  @inlinable @inline(__always)
  package func lock() {
    if word.exchange(1, ordering: .acquiring) != 0 { wait() }
    Self.noteHeld(1)
  }

  /// ``lock()``, in one order with all other such steps.
  @inlinable @inline(__always)
  package func lockInOrder() {
    if word.exchange(1, ordering: .sequentiallyConsistent) != 0 { wait() }
    Self.noteHeld(1)
  }

  /// Takes the lock if nobody has it.
  @inlinable @inline(__always)
  package func tryLock() -> Bool {
    guard word.exchange(1, ordering: .acquiring) == 0 else { return false }
    Self.noteHeld(1)
    return true
  }

  /// The same for who asks again and again: a lock that is held is only looked at.
  @inlinable
  package func tryLockAgain() -> Bool {
    guard take() else { return false }
    Self.noteHeld(1)
    return true
  }

  @inlinable @inline(__always)
  func take() -> Bool { word.load(ordering: .relaxed) == 0 && word.exchange(1, ordering: .acquiring) == 0 }

  /// Gives the lock back. Only its holder may.
  @inlinable @inline(__always)
  package func unlock() {
    Self.noteHeld(-1)
    word.store(0, ordering: .releasing)
  }

  /// Calls a function with the lock held.
  package func withLock<Result: ~Copyable, Failure: Error>(
    _ body: () throws(Failure) -> Result
  ) throws(Failure) -> Result {
    lock()
    defer { unlock() }
    return try body()
  }

  /// Kept out of line, so that ``lock()`` stays a few instructions at every place that calls it.
  @inline(never)
  @usableFromInline func wait() {
    var pauses = 1
    repeat {
      for _ in 0..<pauses { ci_cpu_pause() }
      pauses = min(pauses * 2, 64)
    } while !take()
  }
}

// MARK: - Who holds one

extension SpinLock {
  /// The spin locks that the calling thread holds, in debug builds; else 0. With one held nothing may be asked of the operating
  /// system, memory neither.
  package static var heldCount: Int { Int(ci_count_spin_locks(0)) }

  @inlinable @inline(__always)
  static func noteHeld(_ change: Int32) {
    #if DEBUG
      countHeld(change)
    #endif
  }

  #if DEBUG
    @usableFromInline static func countHeld(_ change: Int32) { _ = ci_count_spin_locks(change) }
  #endif
}
