import Synchronization

/// An interrupt of a device, as an event that counts.
///
/// ```swift
/// let irq = try device.interrupt(0)
/// try irq.wait(timeout: .milliseconds(10))
/// ```
///
/// Wait for it with ``wait(timeout:)``, or put ``descriptor`` into a poll loop and call ``tryTake()`` when it is
/// readable, or iterate over ``events``. Interrupts that come while nobody waits are counted and not lost. A count
/// may also be one too high, after the kernel had to set the device's vectors up anew: look at the device, as with
/// any interrupt.
///
/// The descriptor stays open until the last reference goes, even after the device was closed: then it is readable for
/// good, and everything here throws ``DMAError/Code/closed``. The corresponding kernel interface is an `eventfd` tied
/// to a vector by `VFIO_DEVICE_SET_IRQS`.
public final class Interrupt: Sendable {
  /// How a device signals.
  public enum Kind: String, Hashable, Sendable, CaseIterable {
    /// Messages with a table in the device, up to 2048 vectors.
    case msix = "MSI-X"
    /// Messages by a capability, up to 32 vectors.
    case msi = "MSI"
    /// A line, shared with other devices; the kernel masks it after each event until the next wait.
    case intx = "INTx"
  }

  /// How it is signalled.
  public let kind: Kind
  /// Its number among the device's vectors of this kind, from 0.
  public let vector: Int
  let counter: EventCounter
  let handle: DeviceHandle
  private let isAutomasked: Bool
  /// What stays open while this is in use.
  private let owner: (any AnyObject & Sendable)?
  /// Whether the kernel has masked the line since it was last unmasked.
  private let masked = Atomic<Bool>(false)
  private let closed = Atomic<Bool>(false)

  init(
    _ handle: DeviceHandle, _ kind: Kind, vector: Int, isAutomasked: Bool, owner: (any AnyObject & Sendable)? = nil
  ) throws(DMAError) {
    (self.handle, self.kind, self.vector, self.isAutomasked) = (handle, kind, vector, isAutomasked)
    self.owner = owner
    do throws(Errno) {
      counter = try EventCounter(handle.kernel)
    } catch {
      throw .deviceCall("eventfd", error, handle.name)
    }
  }

  /// A descriptor that is readable while interrupts wait to be taken, non-blocking; for `poll` and `epoll`.
  ///
  /// Take what it counts with ``tryTake()``, never by reading it. It is closed when the last reference to the interrupt
  /// goes: remove it from a poll set before.
  public var descriptor: Int32 { counter.descriptor }

  /// Whether the device, and with it the interrupt, was closed.
  public var isClosed: Bool { closed.load(ordering: .acquiring) }

  /// Waits until the interrupt has come, and returns how often it came since the last time.
  ///
  /// The thread sleeps in the kernel; a timeout of zero or less only looks. Throws ``DMAError/Code/timedOut`` when
  /// the time is up, ``DMAError/Code/closed`` when the device is closed, also during the wait. The corresponding call
  /// is `ppoll`.
  @discardableResult
  public func wait(timeout: Duration) throws(DMAError) -> UInt64 {
    if let count = try tryTake() { return count }
    let deadline = Deadline(after: timeout, handle.kernel)
    while let remaining = deadline.remaining {
      let isUp = try !waitOnce(remaining)
      if let count = try tryTake() { return count }
      if isUp { break }
    }
    throw DMAError(
      .timedOut, "wait for \(name)", device: handle.name, detail: "It did not come within \(timeout)")
  }

  /// Takes interrupts that have come, without waiting; nil when none has.
  ///
  /// A line (``Kind/intx``) that an earlier event masked is unmasked first, so a loop that takes until nil ends with
  /// the line unmasked. Throws ``DMAError/Code/closed`` when the device is closed. The corresponding call is `read`.
  public func tryTake() throws(DMAError) -> UInt64? {
    try checkOpen()
    try rearm()
    return try take()
  }

  /// Unmasks a line that the last event masked; does nothing for messages.
  ///
  /// ``wait(timeout:)``, ``tryTake()`` and ``events`` do it. A poll loop that takes once for each time ``descriptor``
  /// is readable calls it when the device's cause is cleared. The corresponding ioctl is `VFIO_DEVICE_SET_IRQS` with
  /// `ACTION_UNMASK`.
  public func rearm() throws(DMAError) {
    guard masked.load(ordering: .relaxed), masked.exchange(false, ordering: .acquiringAndReleasing) else {
      return
    }
    do throws(DMAError) { try act(.unmask) } catch {
      masked.store(true, ordering: .releasing)
      throw error
    }
  }

  /// Makes the kernel signal the event as if the interrupt had come; for tests of a driver.
  ///
  /// The device has no part in it. The corresponding ioctl is `VFIO_DEVICE_SET_IRQS` with `DATA_NONE` and
  /// `ACTION_TRIGGER`.
  public func trigger() throws(DMAError) {
    try checkOpen()
    try act(.trigger)
  }

  /// Wakes whoever waits, for good.
  func close() {
    closed.store(true, ordering: .sequentiallyConsistent)
    counter.signal()
  }

  var name: String { "\(kind.rawValue) \(vector)" }
  var kernel: any Kernel { handle.kernel }

  /// Takes the count as it is, with a line left masked.
  func take() throws(DMAError) -> UInt64? {
    let count: UInt64?
    do throws(Errno) { count = try counter.take() } catch {
      throw .deviceCall("read an eventfd", error, handle.name)
    }
    guard let count else { return nil }
    if isClosed {
      // It may have been the signal of close(), which others wait for as well.
      counter.signal()
      try checkOpen()
    }
    if isAutomasked { masked.store(true, ordering: .releasing) }
    return count
  }

  /// Puts back what was taken for somebody who has gone meanwhile.
  func putBack() { counter.signal() }

  func checkOpen() throws(DMAError) {
    // A fork has the same counter, and would take the parent's interrupts.
    if !ProcessGuard.isOwner { throw DMAError(.forked, "wait for \(name)", device: handle.name) }
    if isClosed { throw DMAError(.closed, "wait for \(name)", device: handle.name) }
  }

  /// Sleeps until the descriptor is readable or a signal comes; false when the time is up.
  private func waitOnce(_ timeout: Duration) throws(DMAError) -> Bool {
    do throws(Errno) {
      return try kernel.waitReadable([descriptor], timeout: timeout) != nil
    } catch {
      if error == .interrupted { return true }
      throw .deviceCall("ppoll", error, handle.name)
    }
  }

  private func act(_ action: VFIOInterruptAction) throws(DMAError) {
    let kernel = kernel
    let (index, start) = (kind.index, UInt32(vector))
    do throws(DMAError) {
      try handle.use("VFIO_DEVICE_SET_IRQS") { device throws(Errno) in
        try kernel.vfioInterruptAction(device, index: index, start: start, count: 1, action)
      }
    } catch {
      // The vectors go before the device does: what the kernel then answers is no other failure.
      try checkOpen()
      throw error
    }
  }
}

extension Interrupt.Kind {
  /// VFIO's number of the interrupt index.
  var index: UInt32 {
    switch self {
    case .intx: VFIOPCI.intx
    case .msi: VFIOPCI.msi
    case .msix: VFIOPCI.msix
    }
  }
}
