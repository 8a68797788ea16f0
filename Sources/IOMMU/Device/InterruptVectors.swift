import Synchronization

/// The interrupt vectors of one device: which kind is in use, how many the kernel has set up, and who has which.
///
/// A device signals by one kind at a time. The kernel sets vectors up when they are first asked for; where an index
/// cannot be resized (`NORESIZE`), more of them means switching it off and on again with all events.
package final class InterruptVectors: Sendable {
  let handle: DeviceHandle
  /// What the kernel says of each kind that the device has.
  private let offers: [Interrupt.Kind: VFIOInterruptInfo]
  private let state = Mutex(State())

  struct State {
    var kind: Interrupt.Kind?
    /// Vectors that the kernel has set up, from 0; none when the index is off.
    var count = 0
    /// Weak: an interrupt keeps its device open, and so must not be kept by it.
    private var known: [Int: WeakInterrupt] = [:]
    var interrupts: [Int: Interrupt] {
      get { known.compactMapValues(\.value) }
      set { known = newValue.mapValues(WeakInterrupt.init) }
    }
    var isClosed: Bool

    init(isClosed: Bool = false) { self.isClosed = isClosed }
  }
  private struct WeakInterrupt {
    weak var value: Interrupt?
    init(_ value: Interrupt) { self.value = value }
  }

  /// `infos` is what the kernel says of indexes 0, 1 and 2; nil where it refuses to say.
  package init(
    _ handle: DeviceHandle, intx: VFIOInterruptInfo?, msi: VFIOInterruptInfo?, msix: VFIOInterruptInfo?
  ) {
    self.handle = handle
    var offers: [Interrupt.Kind: VFIOInterruptInfo] = [:]
    for (kind, info) in [(Interrupt.Kind.intx, intx), (.msi, msi), (.msix, msix)] {
      if let info, info.count > 0, info.flags & 1 != 0 { offers[kind] = info }
    }
    self.offers = offers
  }

  deinit { close() }

  /// How many vectors of a kind the device has.
  package func count(_ kind: Interrupt.Kind) -> Int { offers[kind].map { Int($0.count) } ?? 0 }

  /// The kind in use, nil while no interrupt is.
  package var kind: Interrupt.Kind? { state.withLock { $0.kind } }

  /// The interrupt of a vector, set up when it is asked for first, the same object after that.
  ///
  /// Without a kind, that in use; else the best that the device has: MSI-X, MSI, INTx.
  package func interrupt(
    _ vector: Int, _ kind: Interrupt.Kind? = nil, owner: (any AnyObject & Sendable)? = nil
  ) throws(DMAError) -> Interrupt {
    try handle.exclusively("VFIO_DEVICE_SET_IRQS") { () throws(DMAError) in
      let before = state.withLock { $0 }
      if before.isClosed { throw DMAError(.closed, "VFIO_DEVICE_SET_IRQS", device: handle.name) }
      let kind = try choose(kind, before)
      let info = try offer(kind, vector)
      if let known = before.interrupts[vector] { return known }
      let interrupt = try Interrupt(
        handle, kind, vector: vector, isAutomasked: info.isAutomasked, owner: owner)
      var after = before
      after.kind = kind
      after.interrupts[vector] = interrupt
      after.count = try setUp(interrupt, info, before)
      try commit(after)
      return interrupt
    }
  }

  /// Switches the index off and wakes whoever waits for an interrupt. Never fails; the second call does nothing.
  package func close() {
    // In a fork the counters, and whoever waits for them, are the parent's.
    guard ProcessGuard.isOwner else { return }
    let old = state.withLock { state in
      let old = state
      state = State(isClosed: true)
      return old
    }
    for interrupt in old.interrupts.values { interrupt.close() }
    if let kind = old.kind, old.count > 0 { try? switchOff(kind) }
  }

  private func choose(_ asked: Interrupt.Kind?, _ state: State) throws(DMAError) -> Interrupt.Kind {
    guard let used = state.kind else {
      if let kind = asked ?? Interrupt.Kind.allCases.first(where: { offers[$0] != nil }) { return kind }
      throw DMAError(
        .noSuchResource, "VFIO_DEVICE_GET_IRQ_INFO", device: handle.name,
        detail: "The device has no interrupt")
    }
    guard let asked, asked != used else { return used }
    throw DMAError(
      .invalidArgument, "VFIO_DEVICE_SET_IRQS", device: handle.name,
      detail: "\(used.rawValue) is in use, and a device signals by one kind at a time",
      remedy: "Ask for the first interrupt as \(asked.rawValue)")
  }

  private func offer(_ kind: Interrupt.Kind, _ vector: Int) throws(DMAError) -> VFIOInterruptInfo {
    if let info = offers[kind], vector >= 0, vector < info.count { return info }
    throw DMAError(
      .noSuchResource, "VFIO_DEVICE_GET_IRQ_INFO", device: handle.name,
      detail: "No vector \(vector): the device has \(count(kind)) of \(kind.rawValue)")
  }

  /// Keeps what was set up, unless the device was closed meanwhile: then it is undone.
  private func commit(_ after: State) throws(DMAError) {
    let isClosed = state.withLock { state in
      if !state.isClosed { state = after }
      return state.isClosed
    }
    guard isClosed else { return }
    if let kind = after.kind { try? switchOff(kind) }
    throw DMAError(.closed, "VFIO_DEVICE_SET_IRQS", device: handle.name)
  }

  /// The vectors of before are off and could not be restored: whoever waits for them must not sleep on.
  func lose(_ before: State) {
    state.withLock { if !$0.isClosed { $0 = State() } }
    for interrupt in before.interrupts.values { interrupt.close() }
  }
}
