import AddressSpace

extension DMADomain {
  /// What the IOMMU refused the device since it was opened, as the kernel's log tells it, and where the process owns the page
  /// tables an event queue of its own; each fault with what its address had to do with the domain's mappings when it was read
  /// (``Fault/story``).
  ///
  /// The log is read anew each time, which takes a system call a line. It limits how many faults it has, and may not be
  /// readable at all: ``FaultReport/mayBeIncomplete`` tells. The corresponding file is `/dev/kmsg`, and the kernel call behind
  /// the queue `IOMMU_VEVENTQ_ALLOC`. In debug mode both are read once more when the device is closed.
  public var faults: FaultReport {
    guard ProcessGuard.isOwner else {
      var report = FaultReport()
      report.unreadable = core.failed(.forked, "faults").on(deviceName)
      return report
    }
    return core.collectFaults(faultLog)
  }
}

extension DomainCore {
  /// Reads what is new of a device's faults, which debug mode looks at.
  func collectFaults(_ log: FaultLog) -> FaultReport {
    let tell = { (fault: inout Fault) in
      guard let address = fault.iova else { return }
      fault.mapping = self.locked { $0.mapping(at: address) }
      fault.story = self.story(of: fault)
    }
    log.add(translation.takeFaults(of: log.device), telling: tell)
    let report = log.collect(telling: tell)
    debug?.look(at: log.takeUnseen())
    return report
  }
}

/// The mappings that ended last, for the faults that come after them.
struct EndedMappings {
  private static let capacity = 64
  private var starts = InlineArray<64, UInt64>(repeating: 0)
  /// Zero where there is none yet.
  private var byteCounts = InlineArray<64, UInt64>(repeating: 0)
  private var next = 0

  @inline(__always)
  mutating func append(_ start: IOVA, byteCount: UInt64) {
    (starts[next], byteCounts[next]) = (start.rawValue, byteCount)
    next = (next &+ 1) & (Self.capacity &- 1)
  }

  /// Of those that hold an address, the one that ended last.
  func range(containing address: IOVA) -> IOVARange? {
    for age in 1...Self.capacity {
      let index = (next &- age) & (Self.capacity &- 1)
      let range = IOVARange(start: IOVA(starts[index]), byteCount: byteCounts[index])
      if let range, range.contains(address) { return range }
    }
    return nil
  }
}
