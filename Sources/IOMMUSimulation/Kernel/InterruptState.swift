import IOMMU

/// The interrupts of a VFIO device: which kind is on, and which event descriptor each vector signals.
struct InterruptState {
  private let counts: [UInt32]
  private let isExpress: Bool
  /// The index that is on: INTx, MSI or MSI-X. One at a time.
  private(set) var active: UInt32?
  private var vectors: [Int: KernelEvent] = [:]
  private var errorEvent: KernelEvent?
  private var requestEvent: KernelEvent?
  private var pinIsAsserted = false
  private var pinIsMasked = false

  init(_ identity: DeviceIdentity) {
    counts = [
      identity.hasINTx ? 1 : 0, UInt32(identity.msiCount), UInt32(identity.msixCount),
      identity.isExpress ? 1 : 0, 1,
    ]
    isExpress = identity.isExpress
  }

  func count(_ index: UInt32) -> UInt32 { counts[Int(index)] }
  var usesMessages: Bool { active == VFIOPCI.msi || active == VFIOPCI.msix }

  /// SET_IRQS with event descriptors.
  mutating func set(_ index: UInt32, start: Int, events: [Int32]) throws(Errno) {
    if index >= VFIOPCI.error { return try setEvent(index, start: start, events: events) }
    guard active == nil || active == index else { throw .invalidArgument }
    if index == VFIOPCI.intx {
      guard start == 0, events.count == 1 else { throw .invalidArgument }
    } else if active == index, index == VFIOPCI.msi {
      // The vectors of MSI are fixed when it is switched on.
      guard start + events.count <= enabledCount else { throw .invalidArgument }
    }
    let wasActive = active
    if active == nil { enabledCount = start + events.count }
    active = index
    do throws(Errno) {
      try setVectors(start: start, events: events)
    } catch {
      if wasActive == nil {
        disable()
      } else {
        for vector in start..<start + events.count { vectors[vector] = nil }
      }
      throw error
    }
    if index == VFIOPCI.intx { deliverPin() }
  }

  /// MSI: how many vectors were allocated when it was switched on.
  private var enabledCount = 0

  private mutating func setVectors(start: Int, events: [Int32]) throws(Errno) {
    for (offset, event) in events.enumerated() {
      vectors[start + offset] = nil
      if event >= 0 { vectors[start + offset] = try KernelEvent(event) }
    }
  }

  private mutating func setEvent(_ index: UInt32, start: Int, events: [Int32]) throws(Errno) {
    guard index != VFIOPCI.error || isExpress else { throw .notTypewriter }
    guard start == 0, events.count == 1, events[0] >= -1 else { throw .invalidArgument }
    let event = events[0] >= 0 ? try KernelEvent(events[0]) : nil
    if index == VFIOPCI.error { errorEvent = event } else { requestEvent = event }
  }

  /// SET_IRQS without data.
  mutating func act(_ index: UInt32, start: Int, count: Int, _ action: VFIOInterruptAction) throws(Errno) {
    switch (index, action) {
    case (VFIOPCI.intx, .mask), (VFIOPCI.intx, .unmask):
      guard active == index, start == 0, count == 1 else { throw .invalidArgument }
      pinIsMasked = action == .mask
      if !pinIsMasked { deliverPin() }
    case (VFIOPCI.intx, .trigger), (VFIOPCI.msi, .trigger), (VFIOPCI.msix, .trigger):
      guard active == index else { throw .invalidArgument }
      if count == 0 { return disable() }
      if index == VFIOPCI.intx { guard start == 0, count == 1 else { throw .invalidArgument } }
      for vector in start..<start + count { vectors[vector]?.signal() }
    case (VFIOPCI.error, .trigger), (VFIOPCI.request, .trigger):
      guard start == 0, count <= 1 else { throw .invalidArgument }
      guard let event = index == VFIOPCI.error ? errorEvent : requestEvent else { throw .invalidArgument }
      if count == 1 { return event.signal() }
      if index == VFIOPCI.error { errorEvent = nil } else { requestEvent = nil }
    default: throw .notTypewriter
    }
  }

  private mutating func disable() {
    vectors = [:]
    (active, pinIsMasked, enabledCount) = (nil, false, 0)
  }

  mutating func disableAll() {
    disable()
    (errorEvent, requestEvent) = (nil, nil)
  }

  /// What the device sent.
  func message(_ vector: Int) { if usesMessages { vectors[vector]?.signal() } }

  /// INTx is a level: it masks itself when delivered and comes again after an unmask while the pin is driven.
  mutating func setPin(_ asserted: Bool, isDisabled: Bool) {
    pinIsAsserted = asserted && !isDisabled
    deliverPin()
  }

  private mutating func deliverPin() {
    guard active == VFIOPCI.intx, pinIsAsserted, !pinIsMasked, let event = vectors[0] else { return }
    pinIsMasked = true
    event.signal()
  }

  /// The host asks the user to let go of the device.
  func request() { requestEvent?.signal() }
}

/// The kernel's hold on an event descriptor: it outlives the descriptor that the process closed.
final class KernelEvent {
  private let descriptor: Int32

  init(_ event: Int32) throws(Errno) {
    guard try HostSystem.isEvent(event) else { throw .invalidArgument }
    descriptor = try HostSystem.duplicate(event)
  }

  deinit { HostSystem.close(descriptor) }

  func signal() { try? HostSystem.signalEvent(descriptor) }
}
