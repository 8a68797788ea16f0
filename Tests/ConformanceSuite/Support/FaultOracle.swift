import AddressSpace
import IOMMU

/// Sees that the IOMMU refused a request: in the kernel's log, as its driver reports it; where the process owns the page tables of
/// an SMMUv3, in what the hardware tells the process itself, and there alone.
struct FaultOracle {
  private let environment: Environment
  private let first: UInt64

  /// Looks at what comes from now on.
  init(_ environment: Environment) throws {
    self.environment = environment
    first = try environment.kernel.kernelLog(from: 0).last.map { $0.sequence + 1 } ?? 0
  }

  /// Runs a transfer that must be refused, and waits for the report about a device and the page of an address.
  ///
  /// Drivers report a few faults in five seconds and drop the others: if there is no line, the transfer is made again
  /// until that time is over.
  func expectFault(_ device: String, _ address: IOVA, by transfer: () throws -> Void) throws {
    let page = String(address.rawValue & ~0xfff, radix: 16)
    for attempt in 0..<8 {
      if attempt > 0 { environment.kernel.sleep(.milliseconds(500)) }
      try transfer()
      for _ in 0..<20 {
        let isSeen =
          environment.faultSource == .eventQueue
          ? isTold(device, address) : try lines().contains { reports($0, device, page) }
        if isSeen { return }
        environment.kernel.sleep(.milliseconds(20))
      }
    }
    throw Failure(
      "No fault of \(device) at 0x\(page) by \(environment.faultSource.rawValue); the kernel's log: \(try lines())")
  }

  /// The drivers' lines: `DMAR: [DMA Write …] Request device [00:02.0] fault addr 0x…` of VT-d, `event: F_TRANSLATION
  /// client: 0000:00:02.0 … iova: 0x…` of SMMUv3, `page fault from EP 16 at 0x… [W]` of virtio-iommu.
  private func reports(_ line: String, _ device: String, _ page: String) -> Bool {
    if environment.isVirtio {
      return line.contains("fault from EP") && line.contains("0x\(page.dropLast(3))")
    }
    guard line.contains(device.dropFirst(5)) else { return false }
    // The SMMU reports the address itself, of which the page without its zeros is a prefix.
    return environment.isSMMU
      ? line.contains("iova: 0x\(page.dropLast(3))") : line.contains("fault addr 0x\(page)")
  }

  /// Whether an open device's own faults have it by an event queue.
  private func isTold(_ device: String, _ address: IOVA) -> Bool {
    environment.domains[device]?.faults.faults.contains {
      $0.source == .eventQueue && $0.iova.map { $0.rawValue & ~0xfff } == address.rawValue & ~0xfff
    } ?? false
  }

  private func lines() throws -> [String] {
    try environment.kernel.kernelLog(from: first).map(\.text).filter {
      $0.contains("DMAR") || $0.contains("event:") || $0.contains("fault from EP")
    }
  }
}
