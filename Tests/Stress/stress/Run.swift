import AddressSpaceModels
import Glibc
import Synchronization

/// A scenario's time, threads and random numbers.
final class Run: Sendable {
  let threads: Int
  let seed: UInt64
  private let end: UInt64
  private let count = Atomic<Int>(0)
  private let failure = Mutex<String?>(nil)

  init(nanoseconds: UInt64, threads: Int, seed: UInt64) {
    (self.threads, self.seed) = (threads, seed)
    end = Self.now() + nanoseconds
  }

  var operations: Int { count.load(ordering: .relaxed) }
  var isOver: Bool { Self.now() >= end || failure.withLock { $0 != nil } }
  /// What went wrong first.
  var firstFailure: String? { failure.withLock { $0 } }

  func note(_ operations: Int = 1) { count.wrappingAdd(operations, ordering: .relaxed) }
  func fail(_ text: String) { failure.withLock { $0 = $0 ?? text } }

  static func now() -> UInt64 {
    var time = timespec()
    unsafe clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
  }

  /// Runs a function on so many threads of its own, and returns when all have ended.
  func inThreads(_ count: Int, _ body: @escaping @Sendable (Int, inout SplitMix64) throws -> Void) {
    let threads = (0..<count).map { index in
      Thread { [self] in
        var numbers = SplitMix64(seed: seed &+ UInt64(index) &* 0x9e37_79b9_7f4a_7c15)
        do { try body(index, &numbers) } catch { fail("thread \(index): \(error)") }
      }
    }
    for thread in threads { thread.join() }
  }
}

/// A thread that is joined.
@safe
struct Thread {
  private let thread: pthread_t

  private final class Box: Sendable {
    let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }
  }

  init(_ body: @escaping @Sendable () -> Void) {
    let box = unsafe Unmanaged.passRetained(Box(body))
    var thread = pthread_t()
    let failure = unsafe pthread_create(
      &thread, nil,
      { argument in
        unsafe Unmanaged<Box>.fromOpaque(argument!).takeRetainedValue().body()
        return nil
      }, box.toOpaque())
    precondition(failure == 0, "no thread")
    self.thread = thread
  }

  func join() { pthread_join(thread, nil) }
}

extension SplitMix64 {
  /// One of so many numbers from 0 on.
  mutating func next(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
}
