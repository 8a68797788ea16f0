import Synchronization

/// A domain's side of the ``FlushTimer``.
extension DomainCore {
  /// Something waits since just now, and no timer was armed: arms it. Where it cannot be had nothing may wait, and all that does
  /// is taken out of reach at once; the next that comes to wait tries again.
  ///
  /// - Precondition: The caller has entered.
  @inline(never)
  func armOrFlush(after nanoseconds: UInt64) { if !armTimer(after: nanoseconds) { flushUnwatched() } }

  private func armTimer(after nanoseconds: UInt64) -> Bool {
    guard !queue.isTimerArmed.exchange(true, ordering: .acquiringAndReleasing) else { return true }
    guard let errno = FlushTimer.arm(self, after: nanoseconds) else { return true }
    queue.isTimerArmed.store(false, ordering: .sequentiallyConsistent)
    locked { $0.statistics.timerFailures += 1 }
    if !isTimerMissed.exchange(true, ordering: .relaxed) {
      untoldErrno.store(errno.rawValue, ordering: .releasing)
    }
    return false
  }

  /// Who saw the timer armed that could not be had, and so left his range to it, has queued it before his ring's lock is taken
  /// here: the flush is numbered after that.
  private func flushUnwatched() {
    _ = emptyCache()
    guard queue.count > 0, flushAll() == nil else { return }
    reclaimAll()
  }

  /// Nothing waits any more, so nothing needs to be called.
  func disarmTimer() {
    guard queue.isTimerArmed.load(ordering: .acquiring) else { return }
    FlushTimer.disarm(self)
    queue.isTimerArmed.store(false, ordering: .sequentiallyConsistent)
    // Queued meanwhile, and left to the timer that is gone.
    if queue.count > 0 { armOrFlush(after: queue.timeout.load(ordering: .relaxed)) }
    if cache.count > 0 { armOrFlush(after: cache.timeout.load(ordering: .relaxed)) }
  }

  /// The timeout is over for what was queued first. Where that was flushed since, it is not over for what was queued later:
  /// under load full rings flush, and the timer does not. When this is to be called again, in nanoseconds from now.
  func timerFired() -> UInt64? {
    // Before the flush: what is queued from here on arms the timer anew.
    queue.isTimerArmed.store(false, ordering: .sequentiallyConsistent)
    guard isOwner, enter() else { return nil }
    defer { leave() }
    guard queue.count > 0 else { return tearDownWhenDue().flatMap(rearmed) }
    let oldest = queue.refreshOldest(), timeout = queue.timeout.load(ordering: .relaxed), now = coarseNow()
    if oldest > now || now - oldest < timeout { return rearmed(after: timeout - (now - min(oldest, now))) }
    switch flush() {
    case .done:
      reclaimAll()
      return nil
    // The flush under way may not cover what this is about.
    case .busy, .failed: return rearmed(after: timeout)
    }
  }

  /// The thread that has called arms it for itself, if nobody else has done so since.
  private func rearmed(after nanoseconds: UInt64) -> UInt64? {
    queue.isTimerArmed.exchange(true, ordering: .acquiringAndReleasing) ? nil : nanoseconds
  }

  /// Tells once that the timer could not be had. Whoever calls this has left: a handler may close the device.
  @inline(__always)
  func tellOfTimer() { if untoldErrno.load(ordering: .relaxed) != 0 { tellOfTimerNow() } }

  @inline(never)
  private func tellOfTimerNow() {
    let errno = untoldErrno.exchange(0, ordering: .acquiringAndReleasing)
    if errno == 0 { return }
    let notice = DMANotice.timerMissing(device: device, errno: Errno(rawValue: errno))
    for listener in listeners.withLock({ $0 }) { listener.addressing?.tell(notice) }
  }
}
