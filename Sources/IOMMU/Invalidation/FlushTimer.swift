import Synchronization

/// The one thread of a kernel that flushes what has waited long enough.
///
/// It starts when a queue gets its first entry and ends a while after the last was flushed: an idle process has no timer
/// and no such thread.
package final class FlushTimer: Sendable {
  private static let timers = Mutex<[ObjectIdentifier: FlushTimer]>([:])

  private let kernel: any Kernel
  private let wakeUp: EventCounter
  private let state = Mutex(State())

  private struct State {
    var due: [Due] = []
    /// The thread ends, or has ended.
    var isRetired = false
  }

  private struct Due {
    var time: UInt64
    var id: ObjectIdentifier
    weak var core: DomainCore?
  }

  private init(_ kernel: any Kernel) throws(Errno) {
    self.kernel = kernel
    wakeUp = try EventCounter(kernel)
  }

  /// Has a domain's ``DomainCore/timerFired()`` called after a time; false when no thread could be started.
  static func arm(_ core: DomainCore, after nanoseconds: UInt64) -> Bool {
    let kernel = core.kernel
    let (sum, overflow) = kernel.now().addingReportingOverflow(nanoseconds)
    let time = overflow ? UInt64.max : sum
    if let running = timers.withLock({ $0[ObjectIdentifier(kernel)] }), running.add(core, time) { return true }
    do throws(Errno) {
      let fresh = try FlushTimer(kernel)
      _ = fresh.add(core, time)
      try DetachedThread.start { fresh.run() }
      timers.withLock { timers in
        // Another thread may have been as quick: then there are two for a while, and each ends by itself. This one may have
        // done so by now, and would be kept for nothing.
        if !fresh.state.withLock({ $0.isRetired }) { timers[ObjectIdentifier(kernel)] = fresh }
      }
      return true
    } catch { return false }
  }

  /// Has it not called after all; a call that is under way goes on.
  static func disarm(_ core: DomainCore) {
    guard let timer = timers.withLock({ $0[ObjectIdentifier(core.kernel)] }) else { return }
    let id = ObjectIdentifier(core)
    timer.state.withLock { $0.due.removeAll { $0.id == id } }
    timer.wakeUp.signal()
  }

  /// One without a thread, for a kernel whose time passes in steps: who moves it on calls ``fire()``, and ``end()`` at last. All
  /// domains of the kernel are its until then. For simulations, where a thread would come at another moment each time.
  package static func byHand(for kernel: any Kernel) throws(Errno) -> FlushTimer {
    let timer = try FlushTimer(kernel)
    timers.withLock { $0[ObjectIdentifier(kernel)] = timer }
    return timer
  }

  /// When a domain is next to be called, on the kernel's clock; nil when none is.
  package var nextTime: UInt64? { state.withLock { $0.due.map(\.time).min() } }

  /// No domain is called from now on.
  package func end() {
    Self.timers.withLock { timers in
      state.withLock { ($0.isRetired, $0.due) = (true, []) }
      if timers[ObjectIdentifier(kernel)] === self { timers[ObjectIdentifier(kernel)] = nil }
    }
  }

  /// Whether a kernel has such a thread. For tests.
  package static func isRunning(for kernel: any Kernel) -> Bool {
    timers.withLock { $0[ObjectIdentifier(kernel)].map { !$0.state.withLock(\.isRetired) } ?? false }
  }

  private func add(_ core: DomainCore, _ time: UInt64) -> Bool {
    let added = state.withLock { state in
      if state.isRetired { return false }
      state.due.append(Due(time: time, id: ObjectIdentifier(core), core: core))
      return true
    }
    if added { wakeUp.signal() }
    return added
  }

  private func run() {
    while true {
      if fire() { continue }
      let next = nextTime, now = kernel.now()
      let wait = next.map { $0 > now ? $0 - now : 0 } ?? Limits.timerLinger
      let isWoken = (try? kernel.waitReadable([wakeUp.descriptor], timeout: .nanoseconds(Int64(clamping: wait)))) ?? nil
      if isWoken != nil { _ = try? wakeUp.take() } else if next == nil, retire() { return }
    }
  }

  /// Calls the domains whose time has come; whether there was one.
  @discardableResult
  package func fire() -> Bool {
    let now = kernel.now()
    let ready = state.withLock { state in
      let ready = state.due.filter { $0.time <= now }
      state.due.removeAll { $0.time <= now }
      return ready
    }
    // Without the lock: a reference taken here may turn out to be the last, and a domain that ends disarms its timer.
    for due in ready { due.core?.timerFired() }
    return !ready.isEmpty
  }

  /// Nothing came for a while: the thread ends, unless something comes just now.
  private func retire() -> Bool {
    Self.timers.withLock { timers in
      let isRetired = state.withLock { state in
        state.isRetired = state.due.isEmpty
        return state.isRetired
      }
      if isRetired, timers[ObjectIdentifier(kernel)] === self { timers[ObjectIdentifier(kernel)] = nil }
      return isRetired
    }
  }
}

extension Limits {
  /// How long the timer's thread stays without anything to do, in nanoseconds: under load entries come all the time, and
  /// starting a thread costs more than keeping one.
  package static let timerLinger: UInt64 = 50_000_000
}

extension DomainCore {
  @inline(never)
  func armTimer() { armTimer(after: queue.timeout.load(ordering: .relaxed)) }

  @inline(never)
  func armTimer(after nanoseconds: UInt64) {
    guard !queue.isTimerArmed.exchange(true, ordering: .acquiringAndReleasing) else { return }
    // Without a thread, the next operation that finds an entry overdue flushes.
    if !FlushTimer.arm(self, after: nanoseconds) {
      queue.isTimerArmed.store(false, ordering: .releasing)
    }
  }

  /// Nothing waits any more, so nothing needs to be called.
  func disarmTimer() {
    guard queue.isTimerArmed.load(ordering: .acquiring) else { return }
    FlushTimer.disarm(self)
    queue.isTimerArmed.store(false, ordering: .sequentiallyConsistent)
    // Queued meanwhile, and left to the timer that is gone.
    if queue.count > 0 { armTimer() }
    if cache.count > 0 { armTimer(after: cache.timeout.load(ordering: .relaxed)) }
  }

  /// The timeout is over for what was queued first. Where that was flushed since, it is not over for what was queued later:
  /// under load full rings flush, and the timer does not.
  func timerFired() {
    // Before the flush: what is queued from here on arms the timer anew.
    queue.isTimerArmed.store(false, ordering: .sequentiallyConsistent)
    guard isOwner, enter() else { return }
    defer { leave() }
    guard queue.count > 0 else { return tearDownWhenDue() }
    let oldest = queue.refreshOldest(), timeout = queue.timeout.load(ordering: .relaxed), now = coarseNow()
    if oldest > now || now - oldest < timeout { return armTimer(after: timeout - (now - min(oldest, now))) }
    switch flush() {
    case .done: reclaimAll()
    // The flush under way may not cover what this is about.
    case .busy, .failed: armTimer()
    }
  }
}
