import Synchronization

extension Interrupt {
  /// The interrupts as they come: `for try await count in irq.events { … }`.
  ///
  /// Each element says how often the interrupt came since the last one. The sequence ends when the device is closed or
  /// the task is cancelled, and throws when the kernel refuses to wait. A line (``Kind/intx``) stays masked while an
  /// element is being worked on. Iterate once at a time: iterators of one interrupt share its events.
  ///
  /// A thread sleeps in the kernel for each iterator that was asked for an element, and ends with it; no thread of the
  /// concurrency runtime is ever blocked.
  public var events: Events { Events(interrupt: self) }

  /// An asynchronous sequence of an interrupt's events; see ``Interrupt/events``.
  public struct Events: AsyncSequence, Sendable {
    /// How often the interrupt came.
    public typealias Element = UInt64
    /// The kernel refused to wait.
    public typealias Failure = DMAError
    let interrupt: Interrupt

    /// Makes an iterator; its thread starts with the first element that is asked for.
    public func makeAsyncIterator() -> Iterator { Iterator(lease: Lease(InterruptPump(interrupt))) }

    /// Iterates over an interrupt's events.
    public struct Iterator: AsyncIteratorProtocol {
      let lease: Lease

      /// The next count; nil when the device was closed or the task cancelled.
      public mutating func next(isolation actor: isolated (any Actor)? = #isolation) async throws(DMAError)
        -> UInt64?
      {
        let pump = lease.pump
        let result = await withTaskCancellationHandler {
          await withCheckedContinuation { pump.demand($0) }
        } onCancel: {
          pump.finish(.success(nil))
        }
        return try result.get()
      }
    }
  }

  /// Ends the thread with the last copy of its iterator.
  final class Lease: Sendable {
    let pump: InterruptPump
    init(_ pump: InterruptPump) { self.pump = pump }
    deinit { pump.finish(.success(nil)) }
  }
}

/// The thread behind an iterator: sleeps until the interrupt comes, when an element is asked for and only then.
final class InterruptPump: Sendable {
  typealias Outcome = Result<UInt64?, DMAError>

  private enum State {
    case unused
    /// The thread runs; nobody asks.
    case idle
    case asked(CheckedContinuation<Outcome, Never>)
    case finished

    var demand: Demand {
      switch self {
      case .unused, .idle: .idle
      case .asked: .asked
      case .finished: .finished
      }
    }
  }

  private enum Demand { case idle, asked, finished }

  private let interrupt: Interrupt
  private let state = Mutex(State.unused)
  /// Wakes the thread: somebody asks, or it is to end. Nil when there was none to be had.
  private let control: Result<EventCounter, Errno>

  init(_ interrupt: Interrupt) {
    self.interrupt = interrupt
    control = Result { () throws(Errno) in try EventCounter(interrupt.kernel) }
  }

  /// Asks for an element.
  func demand(_ continuation: CheckedContinuation<Outcome, Never>) {
    let isFirst: Bool? = state.withLock { state in
      switch state {
      case .finished, .asked: return nil
      case .unused:
        state = .asked(continuation)
        return true
      case .idle:
        state = .asked(continuation)
        return false
      }
    }
    guard let isFirst else { return continuation.resume(returning: .success(nil)) }
    do throws(Errno) {
      let control = try control.get()
      if isFirst { try DetachedThread.start { self.run(control) } } else { control.signal() }
    } catch {
      finish(.failure(.deviceCall("start a thread", error, interrupt.handle.name)))
    }
  }

  /// Ends the sequence: whoever asks gets `outcome`, whoever asks later nil.
  func finish(_ outcome: Outcome) {
    let waiting = change(to: .finished)
    if let control = try? control.get() { control.signal() }
    waiting?.resume(returning: outcome)
  }

  private func run(_ control: EventCounter) {
    while true {
      switch state.withLock({ $0.demand }) {
      case .finished: return
      case .idle: sleep([control.descriptor])
      case .asked:
        do throws(DMAError) {
          if let count = try interrupt.tryTake() {
            deliver(count)
          } else {
            sleep([interrupt.descriptor, control.descriptor])
          }
        } catch {
          return finish(error.code == .closed ? .success(nil) : .failure(error))
        }
      }
      _ = try? control.take()
    }
  }

  private func deliver(_ count: UInt64) {
    // Cancelled meanwhile: somebody else may wait for it.
    guard let waiting = change(to: .idle) else { return interrupt.putBack() }
    waiting.resume(returning: .success(count))
  }

  private func sleep(_ descriptors: [Int32]) {
    do throws(Errno) {
      _ = try interrupt.kernel.waitReadable(descriptors, timeout: nil)
    } catch {
      if error != .interrupted { finish(.failure(.deviceCall("ppoll", error, interrupt.handle.name))) }
    }
  }

  /// Changes the state unless it is the last one, and returns who asked.
  private func change(to new: State) -> CheckedContinuation<Outcome, Never>? {
    state.withLock { state in
      guard case .finished = state else {
        defer { state = new }
        if case .asked(let continuation) = state { return continuation }
        return nil
      }
      return nil
    }
  }
}
