import IOMMU

extension KernelState {
  /// Charges the clock for a system call and for what the IOMMU did in it.
  func charge(since before: SimulatedCounters) {
    systemCalls += 1
    let after = iommu?.counters ?? before, costs = machine.effectiveCosts
    func done(_ count: KeyPath<SimulatedCounters, Int>) -> UInt64 {
      UInt64(after[keyPath: count] - before[keyPath: count])
    }
    // Each of the kernel's invalidations has a wait of its own.
    let kernelCommands = done(\.invalidations) + done(\.flushesOnMap)
    clock.charge(iommu?.takeTime() ?? 0)
    clock.charge(
      costs.systemCall + costs.area * (done(\.maps) + done(\.unmaps)) + costs.page * done(\.pages)
        + costs.invalidation * (kernelCommands + done(\.processInvalidations))
        + costs.sync * (kernelCommands + done(\.processSyncs)))
  }
}

extension SimulatedKernel {
  /// Runs a system call with the lock held, and charges the clock for it.
  func systemCall<Result: Sendable>(
    _ body: @Sendable (KernelState) throws(Errno) -> Result
  ) throws(Errno) -> Result {
    try locked { (state) throws(Errno) in
      let before = state.iommu?.counters ?? SimulatedCounters()
      defer { state.charge(since: before) }
      return try body(state)
    }
  }

  /// The same for a call that cannot fail.
  func systemCall<Result: Sendable>(_ body: @Sendable (KernelState) -> Result) -> Result {
    locked { state in
      let before = state.iommu?.counters ?? SimulatedCounters()
      defer { state.charge(since: before) }
      return body(state)
    }
  }
}
