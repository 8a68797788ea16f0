import IOMMU

/// Waits for the faults of a device, transfer by transfer.
struct FaultWatch {
  private let dma: DMADomain
  private let kernel: any Kernel
  private var seen = 0
  private var report = FaultReport()

  init(_ host: Host, _ dma: DMADomain) {
    (kernel, self.dma) = (host.kernel, dma)
    report = dma.faults
    seen = report.count
  }

  /// The faults since the last call, one a page and access: a transfer may fault once for every word. The kernel logs
  /// them from an interrupt, so this waits for the first, at most half a second.
  mutating func take() -> [Fault] {
    for _ in 0..<50 {
      report = dma.faults
      let new = report.faults.suffix(max(0, report.count - seen))
      if !new.isEmpty || report.unreadable != nil {
        seen = report.count
        return Self.perPage(new)
      }
      kernel.sleep(.milliseconds(10))
    }
    return []
  }

  private static func perPage(_ faults: ArraySlice<Fault>) -> [Fault] {
    var found: [Fault] = []
    for fault in faults {
      let isKnown = found.contains { other in
        other.access == fault.access
          && other.iova?.alignedDown(to: .fourKiB) == fault.iova?.alignedDown(to: .fourKiB)
      }
      if !isKnown { found.append(fault) }
    }
    return found
  }

  /// What the log says, in words. A real kernel writes so many faults in a few seconds and no more: none is no failure
  /// there, since the memory shows what happened. The simulated one writes them all.
  func account(of faults: [Fault]) throws(CaseStop) -> String {
    if let error = report.unreadable, faults.isEmpty {
      return
        "the kernel's log, which has the faults, cannot be read: \(error.errno?.description ?? "\(error)")"
    }
    if faults.isEmpty {
      try require(!kernel.isSimulated, "The device's faults show none")
      return "the kernel's log shows no fault: it limits how many it writes\(report.missing.map { "; \($0)" } ?? "")"
    }
    return "the IOMMU refused it: the device has \(faults.count) more \(faults.count == 1 ? "fault" : "faults")"
  }
}
