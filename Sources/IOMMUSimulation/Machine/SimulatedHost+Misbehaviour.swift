import IOMMU

// Hardware that does something wrong, for tests of what a driver does then. All of it is about an SMMUv3 whose tables the process
// owns, or a VT-d as hardware, and nothing happens on a machine that has no such unit.

extension SimulatedHost {
  /// Loses an invalidation: the n-th `CMD_TLBI`, `CMD_CFGI` or `CMD_ATC_INV` that an SMMU executes from now on (1 is the next), or
  /// the n-th descriptor of a VT-d but for waits, is acknowledged and not done. Once; a second call replaces what is left of the
  /// first.
  ///
  /// - Parameters:
  ///   - n: Which one, from 1 on.
  ///   - sender: Whose commands count; nil for anyone's.
  ///   - unit: Which of the machine's IOMMUs.
  public func loseInvalidation(_ n: Int, from sender: SMMUCounters.Sender? = .process, unit: Int = 0) {
    precondition(n > 0, "the next invalidation is the first")
    withUnit(unit) { $0.lostInvalidation = (n, sender) }
  }

  /// Stops the command queue: the next wait for it takes that much longer on the machine's clock. The kernel waits a second
  /// for a sync of an SMMU and fails with ETIMEDOUT then; the commands are done once the time is over. For a VT-d it waits on.
  public func stallCommandQueue(for duration: Duration, unit: Int = 0) {
    let nanoseconds = duration.nanoseconds
    withUnit(unit) { $0.stall = nanoseconds }
  }

  /// Has others use the command queue as fast as it goes, such as another domain that unmaps without end: whoever in this process
  /// invalidates waits for what they have put in before, on the machine's clock, and finds the queue full where that leaves no room.
  /// What they invalidate is nothing of this process's, and counted nowhere.
  ///
  /// - Parameters:
  ///   - batches: How many of theirs come before each of the process's; 0 ends it.
  ///   - commands: How many commands each has, beside its sync; on a VT-d at most as many as its driver puts in at a time, 16.
  ///   - unit: Which of the machine's IOMMUs.
  public func crowdCommandQueue(_ batches: Int, of commands: Int = 63, unit: Int = 0) {
    withUnit(unit) { $0.crowd = batches > 0 ? .init(batches: batches, commands: commands) : nil }
  }

  /// Lets the event queue overflow: the next events find it full and are lost, and the kernel's log tells of it without saying
  /// how many. A VT-d has fault recording registers in the place of a queue.
  public func overflowEventQueue(losing count: Int, unit: Int = 0) {
    withUnit(unit) { $0.lostEvents = count }
  }

  /// Has a device write to addresses that follow each other page by page, faster than the kernel takes events out of the queue:
  /// those that fault fill it up, and what does not fit is lost. Returns how many were refused.
  ///
  /// The writes are of 4 bytes of zeros; they go through where something is mapped.
  @discardableResult
  public func storm(_ count: Int, from device: String, at iova: UInt64) -> Int {
    guard let address = PCIAddress(device) else { return 0 }
    let before = faultCount
    let unit = kernel.locked { $0.devices[address]?.unit ?? 0 }
    withUnit(unit) { $0.holdsEvents = true }
    for index in 0..<UInt64(max(count, 0)) {
      _ = kernel.deviceWrites(address, iova &+ index << 12, [0, 0, 0, 0])
    }
    withUnit(unit) { $0.holdsEvents = false }
    kernel.locked { $0.deliverEvents() }
    return faultCount - before
  }

  private var faultCount: Int { kernel.locked { $0.iommu?.counters.faults ?? 0 } }

  private func withUnit(_ unit: Int, _ change: @Sendable (inout Misbehaviour) -> Void) {
    kernel.locked { state in
      if state.iommu?.smmus.indices.contains(unit) == true { change(&state.iommu!.smmus[unit].misbehaviour) }
      if state.iommu?.vtds.indices.contains(unit) == true { change(&state.iommu!.vtds[unit].misbehaviour) }
    }
  }
}
