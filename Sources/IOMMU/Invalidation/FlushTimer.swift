import Synchronization

/// The timer of a kernel's domains: it flushes what has waited long enough.
///
/// It starts when a queue gets its first entry and ends a while after the last was flushed: an idle process has no timer
/// and no such thread. One thread *watches*, that is, sleeps until the first domain is due. It flushes that domain itself, which
/// may take long: many calls, or one that the kernel is slow with. So while others wait meanwhile, another thread is
/// *appointed* to watch: one that has flushed before and is *spare*, or a new one. There are as many threads as domains
/// are being flushed, and one more.
package final class FlushTimer: Sendable {
  private static let timers = Mutex<[ObjectIdentifier: FlushTimer]>([:])

  private let kernel: any Kernel
  /// Wakes who watches, and who is spare.
  private let wakeUp: EventCounter, appointment: EventCounter
  private let state = Mutex(State())

  private struct State {
    var due: [Due] = []
    /// Whether a thread watches, or is about to.
    var isWatched = true
    /// Threads that flush, and those that wait to be appointed.
    var flushing = 0, spare = 0
    /// One of the spare threads is appointed, and has not noticed yet.
    var isAppointed = false
    /// The thread that watches ends, or has ended: nobody flushes any more.
    var isRetired = false

    /// Takes out the domain that is due first, if its time has come.
    mutating func takeReady(at now: UInt64) -> Due? {
      guard let first = due.indices.min(by: { due[$0].time < due[$1].time }), due[first].time <= now else { return nil }
      return due.remove(at: first)
    }
  }

  private struct Due {
    var time: UInt64
    var id: ObjectIdentifier
    weak var core: DomainCore?

    init(_ core: DomainCore, after nanoseconds: UInt64, _ kernel: any Kernel) {
      let (sum, overflow) = kernel.now().addingReportingOverflow(nanoseconds)
      time = overflow ? .max : sum
      (id, self.core) = (ObjectIdentifier(core), core)
    }
  }

  private init(_ kernel: any Kernel, _ first: Due?) throws(Errno) {
    self.kernel = kernel
    wakeUp = try EventCounter(kernel)
    appointment = try EventCounter(kernel)
    if let first { state.withLock { $0.due.append(first) } }
  }

  /// Has a domain's ``DomainCore/timerFired()`` called after a time; why not, where no thread can be had.
  static func arm(_ core: DomainCore, after nanoseconds: UInt64) -> Errno? {
    let kernel = core.kernel, due = Due(core, after: nanoseconds, kernel)
    do throws(Errno) {
      if let running = timers.withLock({ $0[ObjectIdentifier(kernel)] }), try running.add(due) { return nil }
      let fresh = try FlushTimer(kernel, due)
      try DetachedThread.start { fresh.run() }
      timers.withLock { timers in
        // Another thread may have been as quick: then there are two for a while, and each ends by itself. This one may have
        // done so by now, and would be kept for nothing.
        if !fresh.state.withLock({ $0.isRetired }) { timers[ObjectIdentifier(kernel)] = fresh }
      }
      return nil
    } catch { return error }
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
    // It counts as watched for good, so that no thread is appointed.
    let timer = try FlushTimer(kernel, nil)
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

  /// How many threads a kernel's timer has. For tests.
  package static func threadCount(of kernel: any Kernel) -> Int {
    let timer = timers.withLock { $0[ObjectIdentifier(kernel)] }
    return timer?.state.withLock { ($0.isWatched && !$0.isAppointed ? 1 : 0) + $0.flushing + $0.spare } ?? 0
  }

  /// False when the timer has ended.
  private func add(_ due: Due) throws(Errno) -> Bool {
    let isAdded = state.withLock { state in
      if !state.isRetired { state.due.append(due) }
      return !state.isRetired
    }
    guard isAdded else { return false }
    do throws(Errno) { try appoint() } catch {
      // Those that flush come to it, but nobody knows when.
      state.withLock { $0.due.removeAll { $0.id == due.id } }
      throw error
    }
    wakeUp.signal()
    return true
  }
}

// MARK: - Threads

extension FlushTimer {
  private func run() {
    while let due = nextDue() {
      // Where no other thread can be had, this one comes to the others when it is done.
      if state.withLock({ !$0.due.isEmpty }) { try? appoint() }
      // Without the lock: a reference taken here may turn out to be the last, and a domain that ends disarms its timer.
      let again = due.core.flatMap { core in core.timerFired().map { Due(core, after: $0, kernel) } }
      guard watchesAgain(again) || isAppointed() else { return }
    }
  }

  /// Watches until a domain is due, and then no more; nil when nothing came for a while, and the timer ends.
  private func nextDue() -> Due? {
    while true {
      let now = kernel.now()
      let (ready, next) = state.withLock { state -> (Due?, UInt64?) in
        guard let ready = state.takeReady(at: now) else { return (nil, state.due.map(\.time).min()) }
        state.isWatched = false
        state.flushing += 1
        return (ready, nil)
      }
      if let ready { return ready }
      let wait = next.map { $0 &- now } ?? Limits.timerLinger
      if isWoken(wakeUp, wait) { _ = try? wakeUp.take() } else if next == nil, retire() { return nil }
    }
  }

  private func isWoken(_ event: EventCounter, _ nanoseconds: UInt64) -> Bool {
    let timeout = Duration.nanoseconds(Int64(clamping: nanoseconds))
    return ((try? kernel.waitReadable([event.descriptor], timeout: timeout)) ?? nil) != nil
  }

  /// Sees to it that a thread watches.
  private func appoint() throws(Errno) {
    let isSpareAppointed = state.withLock { state -> Bool? in
      if state.isWatched { return nil }
      state.isWatched = true
      state.isAppointed = state.spare > 0
      return state.isAppointed
    }
    guard let isSpareAppointed else { return }
    if isSpareAppointed { return appointment.signal() }
    do throws(Errno) { try DetachedThread.start { self.run() } } catch {
      let isSpare = state.withLock { state in
        state.isWatched = false
        return state.spare > 0
      }
      // One that has flushed has found somebody watching, and rests.
      guard isSpare else { throw error }
      try appoint()
    }
  }

  /// A thread has flushed: whether it watches again, as nobody else does.
  private func watchesAgain(_ again: Due?) -> Bool {
    let isWatched = state.withLock { state in
      state.flushing -= 1
      if let again { state.due.append(again) }
      defer { state.isWatched = true }
      if state.isWatched { state.spare += 1 }
      return state.isWatched
    }
    if isWatched, again != nil { wakeUp.signal() }
    return !isWatched
  }

  /// Whether a spare thread is appointed; else it has waited for a while, and ends.
  private func isAppointed() -> Bool {
    while true {
      let isWoken = isWoken(appointment, Limits.timerLinger)
      if isWoken { _ = try? appointment.take() }
      let isAppointed = state.withLock { state -> Bool? in
        guard state.isAppointed || !isWoken else { return nil }
        defer { state.isAppointed = false }
        state.spare -= 1
        return state.isAppointed
      }
      if let isAppointed { return isAppointed }
    }
  }

  /// Calls the domains whose time has come; whether there was one.
  @discardableResult
  package func fire() -> Bool {
    var hasFired = false
    while let due = state.withLock({ $0.takeReady(at: kernel.now()) }) {
      hasFired = true
      if let again = due.core.flatMap({ core in core.timerFired().map { Due(core, after: $0, kernel) } }) {
        state.withLock { $0.due.append(again) }
      }
    }
    return hasFired
  }

  /// Nothing came for a while: the thread ends, unless something comes just now.
  private func retire() -> Bool {
    Self.timers.withLock { timers in
      let isRetired = state.withLock { state in
        state.isRetired = state.due.isEmpty && state.flushing == 0
        return state.isRetired
      }
      if isRetired, timers[ObjectIdentifier(kernel)] === self { timers[ObjectIdentifier(kernel)] = nil }
      return isRetired
    }
  }
}

extension Limits {
  /// How long the timer's threads stay without anything to do, in nanoseconds: under load entries come all the time, and
  /// starting a thread costs more than keeping one.
  package static let timerLinger: UInt64 = 50_000_000
}
