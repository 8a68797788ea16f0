import Synchronization

/// An event descriptor that is watched, and what to do when it is signalled.
final class EventSource: Sendable {
  let counter: EventCounter
  let deliver: @Sendable () -> Void
  private let active = Atomic<Bool>(true)

  init(_ counter: EventCounter, deliver: @escaping @Sendable () -> Void) {
    (self.counter, self.deliver) = (counter, deliver)
  }

  var isActive: Bool { active.load(ordering: .acquiring) }
  func deactivate() { active.store(false, ordering: .releasing) }
}

/// The one thread of a kernel that sleeps until an event of any device comes.
///
/// It starts with the first source and ends with the last. It holds no lock while it sleeps or calls a source, so a
/// source may be withdrawn by what it calls. A source lives as long as the thread sleeps on its descriptor.
package final class EventWatcher: Sendable {
  private static let watchers = Mutex<[ObjectIdentifier: EventWatcher]>([:])

  private let kernel: any Kernel
  /// Wakes the thread when the sources change.
  private let wakeUp: EventCounter
  private let state: Mutex<State>

  private struct State {
    var sources: [EventSource]
    /// The thread ends, or has ended.
    var isRetired = false
  }

  private init(_ kernel: any Kernel, _ source: EventSource) throws(Errno) {
    self.kernel = kernel
    wakeUp = try EventCounter(kernel)
    state = Mutex(State(sources: [source]))
  }

  /// Adds a source, and starts the kernel's thread when there is none.
  static func watch(_ source: EventSource, _ kernel: any Kernel) throws(Errno) {
    if let running = watchers.withLock({ $0[ObjectIdentifier(kernel)]?.joined(by: source) }) {
      return running.wakeUp.signal()
    }
    let fresh = try EventWatcher(kernel, source)
    try DetachedThread.start { fresh.run() }
    let winner = watchers.withLock { watchers in
      if let other = watchers[ObjectIdentifier(kernel)]?.joined(by: source) { return other }
      // Its one source may be gone again, and the thread with it.
      if !fresh.state.withLock({ $0.isRetired }) { watchers[ObjectIdentifier(kernel)] = fresh }
      return fresh
    }
    guard winner !== fresh else { return }
    // Another thread was quicker.
    fresh.state.withLock { $0.sources = [] }
    fresh.wakeUp.signal()
    winner.wakeUp.signal()
  }

  /// Withdraws a source: it is not called again, though a call under way may still be. Closes nothing; never fails.
  static func unwatch(_ source: EventSource, _ kernel: any Kernel) {
    source.deactivate()
    watchers.withLock { $0[ObjectIdentifier(kernel)] }?.wakeUp.signal()
  }

  /// How many sources a kernel's thread watches; nil when it has none. For tests.
  package static func sourceCount(of kernel: any Kernel) -> Int? {
    watchers.withLock { $0[ObjectIdentifier(kernel)]?.state.withLock { $0.sources.count } }
  }

  private func joined(by source: EventSource) -> EventWatcher {
    state.withLock { $0.sources.append(source) }
    return self
  }

  private func run() {
    var first = 0
    while let sources = current() {
      // Begin with another one each time, since only the first that is signalled is told.
      let order = sources.indices.map { sources[($0 + first) % sources.count] }
      first = (first + 1) % sources.count
      switch ready([wakeUp.descriptor] + order.map(\.counter.descriptor)) {
      case nil: break
      case 0: _ = try? wakeUp.take()
      case .some(let index): call(order[index - 1])
      }
    }
  }

  /// The sources that are still wanted; nil when there is none, and the thread is to end.
  private func current() -> [EventSource]? {
    Self.watchers.withLock { watchers in
      let sources = state.withLock { state in
        state.sources.removeAll { !$0.isActive }
        state.isRetired = state.sources.isEmpty
        return state.sources
      }
      if !sources.isEmpty { return sources }
      if watchers[ObjectIdentifier(kernel)] === self { watchers[ObjectIdentifier(kernel)] = nil }
      return nil
    }
  }

  private func ready(_ descriptors: [Int32]) -> Int? {
    do throws(Errno) {
      return try kernel.waitReadable(descriptors, timeout: nil)
    } catch {
      // Out of memory, at worst: later, not at once.
      if error != .interrupted { kernel.sleep(Limits.watcherPause) }
      return nil
    }
  }

  private func call(_ source: EventSource) {
    do throws(Errno) {
      if try source.counter.take() != nil, source.isActive { source.deliver() }
    } catch {
      // A descriptor that cannot be read would be readable for ever.
      source.deactivate()
    }
  }
}

extension Limits {
  /// How long the watching thread sleeps after the kernel could not let it wait.
  package static let watcherPause = Duration.milliseconds(100)
}
