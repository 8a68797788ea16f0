package import IOMMU

extension SimulatedKernel {
  package func createEvent() throws(Errno) -> Int32 {
    let event = try HostSystem.createEvent()
    locked { state in _ = state.memory.events.insert(event) }
    return event
  }

  package func takeEvent(_ descriptor: Int32) throws(Errno) -> UInt64? {
    runDueTimers()
    return try HostSystem.takeEvent(descriptor)
  }

  package func signalEvent(_ descriptor: Int32) throws(Errno) {
    // As for ``close(_:)``.
    guard locked({ $0.memory.events.contains(descriptor) }) else { throw .badDescriptor }
    try HostSystem.signalEvent(descriptor)
  }

  /// Waits. When a device asked to be woken before the time is up, the clock jumps there instead of waiting.
  package func waitReadable(_ descriptors: [Int32], timeout: Duration?) throws(Errno) -> Int? {
    let deadline = timeout.map { now() &+ $0.nanoseconds }
    while true {
      runDueTimers()
      if let ready = try HostSystem.wait(descriptors, nanoseconds: 0) { return ready }
      let now = now()
      if let deadline, now >= deadline { return nil }
      if let wake = locked({ $0.clock.nextWake }), wake <= deadline ?? .max {
        locked { $0.clock.advance(to: wake) }
        continue
      }
      guard let deadline else {
        if let ready = try waitForTimer(descriptors) { return ready }
        continue
      }
      // In slices, since another thread may have a device start something that takes time, or move the clock.
      let slice = min(deadline - now, Self.slice)
      if let ready = try HostSystem.wait(descriptors, nanoseconds: Int64(slice)) { return ready }
      // A clock of its own stands still as long as everybody waits.
      if !ahead.followsRealTime { locked { $0.clock.advance(to: deadline) } }
    }
  }

  /// How long a thread that waits lets another look at what a device has begun, before it moves the clock to its end.
  private static let slice: UInt64 = 20_000_000

  /// Waits until one is readable, or until a slice after a device asked to be woken: an idle machine wakes nobody.
  private func waitForTimer(_ descriptors: [Int32]) throws(Errno) -> Int? {
    let event = try HostSystem.createEvent()
    defer {
      // First out of sight, so that nobody signals another file of that number.
      locked { state in _ = state.timerWaiters.remove(event) }
      HostSystem.close(event)
    }
    let isIdle = locked { state in
      state.timerWaiters.insert(event)
      return state.clock.nextWake == nil
    }
    if isIdle, let ready = try HostSystem.wait(descriptors + [event], nanoseconds: -1), ready < descriptors.count {
      return ready
    }
    return try HostSystem.wait(descriptors, nanoseconds: Int64(Self.slice))
  }

  package func now() -> UInt64 { ahead.now }

  package func coarseNow() -> UInt64 { ahead.coarseNow }

  package func costClock() -> UInt64 { locked { $0.clock.charged } }

  /// Moves the clock on: nobody has to wait for a simulated machine.
  package func sleep(_ duration: Duration) {
    let end = now() &+ duration.nanoseconds
    while let wake = locked({ $0.clock.nextWake }), wake <= end {
      locked { $0.clock.advance(to: wake) }
      runDueTimers()
    }
    locked { $0.clock.advance(to: end) }
  }

  package func kernelLog(from sequence: UInt64) throws(Errno) -> [KernelLogLine] {
    locked { state in state.log.lines.filter { $0.sequence >= sequence } }
  }

  /// Calls the models whose time has come.
  func runDueTimers() {
    let slots = locked { state in state.clock.takeDue().compactMap { state.devices[$0]?.slot } }
    for slot in slots { slot.wake() }
  }
}

extension Duration {
  /// Nanoseconds, 0 for a negative time and at most some 290 years.
  var nanoseconds: UInt64 {
    let (seconds, attoseconds) = components
    guard seconds >= 0, attoseconds >= 0 else { return 0 }
    return UInt64(clamping: min(seconds, 9_000_000_000) * 1_000_000_000 + attoseconds / 1_000_000_000)
  }
}
