/// A point in time after which a wait gives up.
struct Deadline: Sendable {
  private let kernel: any Kernel
  /// Nanoseconds of the kernel's monotonic clock.
  private let end: UInt64

  /// `timeout` from now; at once when negative, never when it leaves the clock.
  init(after timeout: Duration, _ kernel: any Kernel) {
    self.kernel = kernel
    let (sum, overflow) = kernel.now().addingReportingOverflow(timeout.saturatedNanoseconds)
    end = overflow ? .max : sum
  }

  /// What is left; nil when the time is up.
  var remaining: Duration? {
    let now = kernel.now()
    return now >= end ? nil : .nanoseconds(Int64(clamping: end - now))
  }
}

extension Duration {
  /// Whole nanoseconds: 0 when negative, `UInt64.max` when they do not fit.
  var saturatedNanoseconds: UInt64 {
    let (seconds, attoseconds) = components
    guard seconds >= 0, attoseconds >= 0 else { return 0 }
    let (whole, overflow) = UInt64(seconds).multipliedReportingOverflow(by: 1_000_000_000)
    let (sum, carry) = whole.addingReportingOverflow(UInt64(attoseconds) / 1_000_000_000)
    return overflow || carry ? .max : sum
  }
}

/// An event counter that is closed when the last user goes, so that nobody waits on somebody else's descriptor.
///
/// The corresponding call is `eventfd`.
final class EventCounter: Sendable {
  let kernel: any Kernel
  let descriptor: Int32

  init(_ kernel: any Kernel) throws(Errno) {
    self.kernel = kernel
    descriptor = try kernel.createEvent()
  }

  deinit { kernel.close(descriptor) }

  /// Takes the count and clears it; nil when it was zero.
  func take() throws(Errno) -> UInt64? { try kernel.takeEvent(descriptor) }

  /// Adds one. A counter that is full is readable as it is; anything else is tried again, for somebody may sleep on it.
  func signal() {
    for _ in 0..<3 {
      do throws(Errno) { return try kernel.signalEvent(descriptor) } catch {
        if error == .wouldBlock { return }
      }
    }
  }
}

/// Whose turn it is to change a device's set-up.
///
/// Several system calls that belong together (read, modify and write of the command register; switching an
/// interrupt index off and on) take a turn instead of a lock: a thread that waits for it sleeps, and not for ever.
final class Turn: Sendable {
  private let token: EventCounter

  init(_ kernel: any Kernel) throws(Errno) {
    token = try EventCounter(kernel)
    try kernel.signalEvent(token.descriptor)
  }

  /// Takes the turn; ETIMEDOUT when others have it for `timeout` and longer.
  func take(timeout: Duration) throws(Errno) {
    if try token.take() != nil { return }
    let deadline = Deadline(after: timeout, token.kernel)
    while let remaining = deadline.remaining {
      do throws(Errno) {
        let ready = try token.kernel.waitReadable([token.descriptor], timeout: remaining)
        if try token.take() != nil { return }
        if ready == nil { break }
      } catch {
        guard error == .interrupted else { throw error }
      }
    }
    throw .timedOut
  }

  /// Passes the turn to the next.
  func pass() { token.signal() }
}
