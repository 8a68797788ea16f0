import Glibc
import CIOMMU

/// Threads for one job: they begin with it and are gone when it is done.
///
/// Signals of the process are none of their business: they block them all. The corresponding calls are `pthread_create`
/// and `pthread_join`.
package enum WorkerThreads {
  /// Runs `body` on this thread and on `count - 1` others, on fewer where the process may have no more; returns when all
  /// are done.
  package static func run(_ count: Int, _ body: @escaping @Sendable () -> Void) {
    var threads: [pthread_t] = []
    if count > 1 {
      var all = sigset_t(), before = sigset_t()
      unsafe sigfillset(&all)
      // A thread inherits the mask of the one that makes it.
      unsafe pthread_sigmask(SIG_SETMASK, &all, &before)
      defer { unsafe pthread_sigmask(SIG_SETMASK, &before, nil) }
      while threads.count < count - 1, let thread = start(body) { threads.append(thread) }
    }
    body()
    for thread in threads { pthread_join(thread, nil) }
  }

  private static func start(_ body: @escaping @Sendable () -> Void) -> pthread_t? {
    let box = unsafe Unmanaged.passRetained(Body(body))
    var thread = pthread_t()
    let failure = unsafe pthread_create(
      &thread, nil,
      { argument in
        guard let argument = unsafe argument else { return nil }
        unsafe Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run()
        return nil
      }, box.toOpaque())
    if failure == 0 { return thread }
    unsafe box.release()
    return nil
  }

  private final class Body: Sendable {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }
}
