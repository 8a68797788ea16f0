import Glibc
import CIOMMU

/// A thread that ends by itself and that nobody joins, for sleeping in the kernel.
///
/// Signals of the process are none of its business: it blocks them all. The corresponding call is `pthread_create`.
enum DetachedThread {
  static func start(_ body: @escaping @Sendable () -> Void) throws(Errno) {
    var all = sigset_t(), before = sigset_t()
    unsafe sigfillset(&all)
    // A thread inherits the mask of the one that makes it.
    unsafe pthread_sigmask(SIG_SETMASK, &all, &before)
    defer { unsafe pthread_sigmask(SIG_SETMASK, &before, nil) }
    var attributes = pthread_attr_t()
    unsafe pthread_attr_init(&attributes)
    unsafe pthread_attr_setdetachstate(&attributes, CInt(PTHREAD_CREATE_DETACHED))
    defer { unsafe pthread_attr_destroy(&attributes) }
    let box = unsafe Unmanaged.passRetained(Body(body))
    var thread = pthread_t()
    let failure = unsafe pthread_create(
      &thread, &attributes,
      { argument in
        guard let argument = unsafe argument else { return nil }
        unsafe Unmanaged<Body>.fromOpaque(argument).takeRetainedValue().run()
        return nil
      }, box.toOpaque())
    if failure != 0 {
      unsafe box.release()
      throw Errno(rawValue: failure)
    }
  }

  private final class Body: Sendable {
    let run: @Sendable () -> Void
    init(_ run: @escaping @Sendable () -> Void) { self.run = run }
  }
}
