import Synchronization

/// What the kernel tells of a device, beside its interrupts.
public enum DeviceEvent: String, Hashable, Sendable, CaseIterable {
  /// PCI Express reported an uncorrectable error of the device. It does nothing useful before a reset.
  case error
  /// The kernel wants the device back: it is being unplugged, or unbound from its driver, which waits until it is
  /// closed.
  case releaseRequested
}

/// The events of one device: its error and its release-request interrupts.
///
/// One thread, shared by all devices of a kernel, sleeps until one comes; none runs while no device has any. The
/// corresponding kernel interface is `VFIO_PCI_ERR_IRQ_INDEX` and `VFIO_PCI_REQ_IRQ_INDEX`.
public final class DeviceEvents: Sendable {
  /// What is called with an event, on the watching thread: return soon, and do not wait for another event.
  public typealias Handler = @Sendable (DeviceEvent) -> Void

  private let handle: DeviceHandle
  /// The events that the device has.
  public let supported: Set<DeviceEvent>
  private let handler = Mutex<Handler?>(nil)
  private let state = Mutex(State())
  let subscribers = Mutex(Subscribers())

  private struct State {
    var sources: [DeviceEvent: EventSource] = [:]
    var isClosed = false
  }

  /// `error` and `request` are what the kernel says of interrupt indexes 3 and 4; nil where it refuses to say.
  package init(_ handle: DeviceHandle, error: VFIOInterruptInfo?, request: VFIOInterruptInfo?) {
    self.handle = handle
    let infos: [(DeviceEvent, VFIOInterruptInfo?)] = [(.error, error), (.releaseRequested, request)]
    supported = Set(infos.filter { ($0.1?.count ?? 0) > 0 }.map(\.0))
  }

  deinit { close() }

  /// Replaces what is called with an event; nil for nothing.
  ///
  /// By default a release request closes the device: see ``Device``. Whoever replaces that closes it by himself, soon:
  /// until then the kernel waits, and asks again every ten seconds. The handler may close the device; it is not
  /// called again then. A call that is under way on the watching thread may end after the change.
  public func onEvent(_ new: Handler?) { handler.withLock { $0 = new } }

  /// Begins to watch, with a handler. Nothing is left behind when it throws; without events it does nothing.
  package func start(_ handler: @escaping Handler) throws(DMAError) {
    onEvent(handler)
    for event in DeviceEvent.allCases where supported.contains(event) {
      do throws(DMAError) { try watch(event) } catch {
        close()
        throw error
      }
    }
  }

  /// Ends all events and their streams. Never fails; the second call does nothing. May be called by the handler.
  package func close() {
    // A fork has no watching thread, and the parent's needs no waking.
    guard ProcessGuard.isOwner else { return }
    onEvent(nil)
    let sources = state.withLock { state in
      defer { state = State(isClosed: true) }
      return state.sources
    }
    for (event, source) in sources {
      try? untie(event)
      EventWatcher.unwatch(source, handle.kernel)
    }
    finishStreams()
  }

  /// Calls the handler and feeds the streams.
  func deliver(_ event: DeviceEvent) {
    let handler = handler.withLock { $0 }
    for subscriber in subscribers.withLock({ $0.all.values }) { subscriber.yield(event) }
    handler?(event)
  }

  private func watch(_ event: DeviceEvent) throws(DMAError) {
    let source: EventSource
    do throws(Errno) {
      let counter = try EventCounter(handle.kernel)
      source = EventSource(counter) { [weak self] in self?.deliver(event) }
    } catch {
      throw .deviceCall("eventfd", error, handle.name)
    }
    try tie(event, source.counter.descriptor)
    do throws(Errno) { try EventWatcher.watch(source, handle.kernel) } catch {
      try? untie(event)
      throw .deviceCall("start a thread", error, handle.name)
    }
    let isClosed = state.withLock { state in
      if !state.isClosed { state.sources[event] = source }
      return state.isClosed
    }
    guard isClosed else { return }
    // By its own handler, for the event before this one.
    try? untie(event)
    EventWatcher.unwatch(source, handle.kernel)
    throw DMAError(.closed, "VFIO_DEVICE_SET_IRQS", device: handle.name)
  }

  private func tie(_ event: DeviceEvent, _ descriptor: Int32) throws(DMAError) {
    let kernel = handle.kernel
    try handle.use("VFIO_DEVICE_SET_IRQS") { device throws(Errno) in
      try kernel.vfioSetInterrupts(device, index: event.index, start: 0, events: [descriptor])
    }
  }

  private func untie(_ event: DeviceEvent) throws(DMAError) {
    let kernel = handle.kernel
    try handle.use("VFIO_DEVICE_SET_IRQS") { device throws(Errno) in
      try kernel.vfioInterruptAction(device, index: event.index, start: 0, count: 0, .trigger)
    }
  }
}

extension DeviceEvent {
  /// VFIO's number of the interrupt index.
  fileprivate var index: UInt32 {
    switch self {
    case .error: VFIOPCI.error
    case .releaseRequested: VFIOPCI.request
    }
  }
}
