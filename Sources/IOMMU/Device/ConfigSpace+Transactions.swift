extension ConfigSpace {
  /// Whether a device still waits for answers to reads that it has sent.
  public enum PendingTransactions: Hashable, Sendable {
    /// All have been answered.
    case none
    /// Some had not been when the time was up.
    case some
    /// The device does not tell: it is conventional PCI without the Advanced Features capability.
    case unknown
  }

  /// Waits until the device has no transaction under way, at most `timeout`: after bus mastering was switched off,
  /// before its memory is unmapped or it is reset.
  ///
  /// Looks at the transactions-pending bit of the PCI Express or the Advanced Features capability, at first after
  /// 50 µs and then at growing distances up to 10 ms. Throws ``DMAError/Code/gone`` when the device has gone away. The
  /// corresponding kernel function is `pci_wait_for_pending_transaction`.
  public func waitForTransactions(timeout: Duration) throws(DMAError) -> PendingTransactions {
    guard let bit = try transactionsPendingBit() else { return .unknown }
    let deadline = Deadline(after: timeout, handle.kernel)
    var pause = Duration.microseconds(50)
    // So often that even a clock that stands still ends it.
    for _ in 0..<Limits.pendingPolls {
      let status = try load(at: bit.offset, as: UInt8.self)
      if status == 0xff { _ = try vendorID() }
      if status & bit.mask == 0 { return .none }
      guard let remaining = deadline.remaining else { return .some }
      handle.kernel.sleep(min(pause, remaining))
      pause = min(pause * 2, .milliseconds(10))
    }
    return .some
  }

  /// Where the bit is, nil when the device has none.
  private func transactionsPendingBit() throws(DMAError) -> (offset: Int, mask: UInt8)? {
    let list = try capabilities().filter { $0.fits(in: self) }
    // Device Status, bit 5; AF Status, bit 0.
    if let express = list.first(where: { $0.id == Capability.express }) {
      return (express.offset + 10, 1 << 5)
    }
    if let features = list.first(where: { $0.id == Capability.advancedFeatures }) {
      return (features.offset + 5, 1 << 0)
    }
    return nil
  }
}

extension Limits {
  /// The transactions-pending bit is looked at so often at most: at 10 ms each more than PCIe's longest completion
  /// time-out.
  package static let pendingPolls = 10_000
}
