import Synchronization

/// A device's descriptor as its registers, config space, interrupts and events share it.
///
/// A device may be closed by one thread (the answer to a release request) while others use it. So every call on the
/// descriptor goes through ``use(_:_:)``: after ``close()`` it throws, and ``close()`` returns when the calls under way
/// are done, so that whoever owns the descriptor may close it without another file getting these calls.
package final class DeviceHandle: Sendable {
  package let kernel: any Kernel
  /// What errors call the device: its PCI address.
  package let name: String
  private let descriptor: Int32
  private let turn: Turn
  /// The calls under way, and the top bit once closed.
  private let uses = Atomic<UInt32>(0)
  private static let closedBit: UInt32 = 1 << 31

  /// Shares an open device descriptor, which stays the caller's to close.
  package init(kernel: any Kernel, descriptor: Int32, name: String) throws(DMAError) {
    (self.kernel, self.descriptor, self.name) = (kernel, descriptor, name)
    do throws(Errno) { turn = try Turn(kernel) } catch { throw .deviceCall("eventfd", error, name) }
  }

  /// Whether ``close()`` was called.
  package var isClosed: Bool { uses.load(ordering: .acquiring) & Self.closedBit != 0 }

  /// Calls the kernel with the descriptor, again when a signal cut the call short.
  package func use<Value>(
    _ operation: String, _ call: (Int32) throws(Errno) -> Value
  ) throws(DMAError) -> Value {
    guard ProcessGuard.isOwner else { throw DMAError(.forked, operation, device: name) }
    guard enter() else { throw DMAError(.closed, operation, device: name) }
    defer { uses.wrappingSubtract(1, ordering: .releasing) }
    var failure = Errno.interrupted
    for _ in 0..<Limits.interruptedCalls {
      do throws(Errno) {
        return try call(descriptor)
      } catch {
        failure = error
        // Once closed, the number may soon be another file's.
        if error != .interrupted || isClosed { break }
      }
    }
    throw .deviceCall(operation, failure, name)
  }

  /// Makes several calls that nobody's own may come between.
  package func exclusively<Value>(
    _ operation: String, _ body: () throws(DMAError) -> Value
  ) throws(DMAError) -> Value {
    // A fork shares the turn with its parent.
    guard ProcessGuard.isOwner else { throw DMAError(.forked, operation, device: name) }
    do throws(Errno) { try turn.take(timeout: Limits.deviceTurn) } catch {
      throw .deviceCall(operation, error, name, detail: "Another thread is changing the device's set-up")
    }
    defer { turn.pass() }
    return try body()
  }

  /// Refuses further calls and waits for those under way: reads, writes and ioctls, which end by themselves.
  /// Returns false when one of them lasts longer than any should; it is then inside the kernel, and safe there.
  @discardableResult
  package func close() -> Bool {
    uses.bitwiseOr(Self.closedBit, ordering: .sequentiallyConsistent)
    for _ in 0..<Limits.closingPolls {
      if uses.load(ordering: .acquiring) == Self.closedBit { return true }
      kernel.sleep(Limits.closingPoll)
    }
    return uses.load(ordering: .acquiring) == Self.closedBit
  }

  private func enter() -> Bool {
    var seen = uses.load(ordering: .relaxed)
    while seen & Self.closedBit == 0 {
      let result = uses.weakCompareExchange(
        expected: seen, desired: seen + 1, ordering: .sequentiallyConsistent)
      if result.exchanged { return true }
      seen = result.original
    }
    return false
  }
}

extension Limits {
  /// A system call that signals cut short is made again, so often at most.
  package static let interruptedCalls = 100
  /// How long one thread waits for another to finish changing a device's set-up: longer than any reset takes.
  package static let deviceTurn = Duration.seconds(10)
  /// How long, and how often, closing sleeps while calls are under way: one second in all.
  package static let closingPoll = Duration.microseconds(20), closingPolls = 50_000
}

extension DMAError {
  /// A call on an open device failed.
  static func deviceCall(
    _ operation: String, _ errno: Errno, _ device: String, detail: String? = nil
  ) -> DMAError {
    var error = DMAError(.system, operation, errno: errno, device: device, detail: detail)
    switch errno {
    case .noDevice, .noSuchAddressOrDevice:
      error.code = .gone
      error.remedy = "Close the device"
    case .notPermitted, .accessDenied: error.code = .permission
    case .busy: error.code = .busy
    case .timedOut: error.code = .timedOut
    case .noMemory: error.code = .outOfMemory
    case .tooManyDescriptors: error.remedy = "Raise RLIMIT_NOFILE"
    case .notTypewriter, .notSupported: error.code = .notSupported
    default: break
    }
    return error
  }
}
