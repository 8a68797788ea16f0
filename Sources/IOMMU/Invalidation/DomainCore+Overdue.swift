import AddressSpace
import CIOMMU
import Synchronization

/// What has waited longer than it may goes before anything else is done.
extension DomainCore {
  /// Whatever has waited longer than it may, since the process was stopped, goes before anything else is done.
  @inline(__always)
  func flushOverdue() {
    if queue.oldest.load(ordering: .relaxed) != 0 { _ = flushOverdue(at: coarseNow()) }
  }

  /// As of a moment; what it is then.
  @inline(__always)
  func flushOverdue(at now: UInt64) -> UInt64 { isFlushDue(at: now) ? flushIfOverdue(at: now) : now }

  /// Whether something may have waited longer than it may.
  @inline(__always)
  var isFlushDue: Bool { queue.oldest.load(ordering: .relaxed) != 0 && isFlushDue(at: coarseNow()) }

  @inline(__always)
  func isFlushDue(at now: UInt64) -> Bool {
    let oldest = queue.oldest.load(ordering: .relaxed)
    return oldest != 0 && isOverdue(oldest, at: now)
  }

  /// The hint may be of an entry that was flushed while its thread was about to give the hint.
  @inline(never)
  private func flushIfOverdue(at now: UInt64) -> UInt64 {
    let oldest = queue.refreshOldest()
    guard oldest != 0, isOverdue(oldest, at: now) else { return now }
    if case .done = flush() { reclaimAll() }
    return coarseNow()
  }

  private func isOverdue(_ time: UInt64, at now: UInt64) -> Bool {
    now > time && now - time > queue.timeout.load(ordering: .relaxed) &+ Limits.overdue
  }

  /// A clock that is cheap to read, a few milliseconds behind.
  @inline(__always)
  func coarseNow() -> UInt64 { isOnLinux ? UInt64(bitPattern: ci_coarse_monotonic_ns()) : kernel.coarseNow() }
}

extension Limits {
  /// How much longer than its timeout an entry may wait before an operation does what the timer should have done, in
  /// nanoseconds: the timer's thread is given the time to wake up.
  package static let overdue: UInt64 = 10_000_000
}
