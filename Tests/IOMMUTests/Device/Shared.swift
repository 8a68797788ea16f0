import Glibc
import Synchronization

/// A value that several threads of a test change.
final class Shared<Value: Sendable>: Sendable {
  private let mutex: Mutex<Value>
  init(_ value: Value) { mutex = Mutex(value) }

  var value: Value { mutex.withLock { $0 } }

  @discardableResult
  func change<Result: Sendable>(_ body: (inout Value) -> Result) -> Result { mutex.withLock { body(&$0) } }
}

/// Runs something on a thread of its own: tests of what blocks must not block the few threads that run tests.
func inThread(_ body: @escaping @Sendable () -> Void) {
  let box = unsafe Unmanaged.passRetained(Shared(body))
  var thread = pthread_t()
  let failure = unsafe pthread_create(
    &thread, nil,
    { argument in
      let box = unsafe Unmanaged<Shared<@Sendable () -> Void>>.fromOpaque(argument!).takeRetainedValue()
      box.value()
      return nil
    }, box.toOpaque())
  precondition(failure == 0)
  pthread_detach(thread)
}

/// Runs something on so many threads at once, and returns what they threw when all are done.
func inThreads(_ count: Int, _ body: @escaping @Sendable (Int) throws -> Void) async -> [String] {
  let left = Shared(count), failures = Shared<[String]>([])
  await withCheckedContinuation { continuation in
    for thread in 0..<count {
      inThread {
        do { try body(thread) } catch { failures.change { [text = "\(error)"] in $0.append(text) } }
        let isLast = left.change {
          $0 -= 1
          return $0 == 0
        }
        if isLast { continuation.resume() }
      }
    }
  }
  return failures.value
}
