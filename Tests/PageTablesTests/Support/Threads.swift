import Glibc
import Synchronization

/// Threads of the system's: those that wait for each other must all run.
enum Threads {
  private final class Start: Sendable {
    let index: Int
    let body: @Sendable (Int) -> Void
    init(_ index: Int, _ body: @escaping @Sendable (Int) -> Void) { (self.index, self.body) = (index, body) }
  }

  /// Calls a function in so many threads at once, with the number of each; returns when all are done.
  static func run(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
    let threads = (0..<count).map { index in
      var thread = pthread_t()
      let start = unsafe Unmanaged.passRetained(Start(index, body)).toOpaque()
      let result = unsafe pthread_create(
        &thread, nil,
        { argument in
          let start = unsafe Unmanaged<Start>.fromOpaque(argument!).takeRetainedValue()
          start.body(start.index)
          return nil
        }, start)
      precondition(result == 0)
      return thread
    }
    for thread in threads { pthread_join(thread, nil) }
  }
}

/// Where threads wait for each other.
final class Meeting: Sendable {
  private let count: Int
  private let arrived = Atomic<Int>(0)

  init(_ count: Int) { self.count = count }

  /// Returns when all threads have called as often.
  func meet() {
    let place = arrived.wrappingAdd(1, ordering: .acquiringAndReleasing).oldValue
    let goal = (place / count + 1) * count
    while arrived.load(ordering: .acquiring) < goal { sched_yield() }
  }
}
