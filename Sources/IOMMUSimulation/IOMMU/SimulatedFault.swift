/// A request of a device that the simulated IOMMU refused.
public struct SimulatedFault: Hashable, Sendable, CustomStringConvertible {
  /// Why a request was refused.
  public enum Reason: String, Hashable, Sendable {
    /// The device is in no domain.
    case blocked
    /// Nothing is mapped at the address.
    case notMapped
    /// The area may not be read, or not be written.
    case permission
    /// The address is above the IOMMU's input size, or a table leads above its output size.
    case addressSize
    /// A table's entry has not been marked as accessed, and the hardware does not do it.
    case accessFlag
    /// What describes the device's translation is wrong, or cannot be read.
    case configuration
  }

  /// The PCI address of the device, such as `0000:00:02.0`.
  public let device: String
  /// The first address that was refused, as the device drove it.
  public let iova: UInt64
  /// Whether the device wanted to write.
  public let isWrite: Bool
  /// Why it was refused.
  public let reason: Reason

  package init(device: String, iova: UInt64, isWrite: Bool, reason: Reason) {
    (self.device, self.iova, self.isWrite, self.reason) = (device, iova, isWrite, reason)
  }

  /// One line, such as `0000:00:02.0: write to 0x1000: notMapped`.
  public var description: String {
    "\(device): \(isWrite ? "write to" : "read of") 0x\(String(iova, radix: 16)): \(reason.rawValue)"
  }
}

/// What the simulated IOMMU did, counted since the machine began.
///
/// The figures follow what a real kernel's driver does: one invalidation for each area that is unmapped while a
/// device is attached, one when the last device leaves a domain, none when no device is attached. Where the process owns the
/// page tables, its own commands are counted apart, and unmapping an area of stage 2 takes the kernel two.
public struct SimulatedCounters: Hashable, Sendable {
  /// Areas mapped, one for each page table that they were entered into.
  public internal(set) var maps = 0
  /// Areas unmapped.
  public internal(set) var unmaps = 0
  /// Pages of these areas, mapped or unmapped, of the memory's own size.
  public internal(set) var pages = 0
  /// Translation-cache invalidations by the kernel, each with its own wait: `TLBI` and `CMD_SYNC`, or an IOTLB descriptor.
  public internal(set) var invalidations = 0
  /// Invalidation commands that the process sent for page tables of its own.
  public internal(set) var processInvalidations = 0
  /// Waits for those: one for each call, however many commands it had.
  public internal(set) var processSyncs = 0
  /// Pages of requests that the IOTLB had, and that took a walk, where the process owns the page tables in the simulation's own
  /// format; ``SMMUCounters/iotlb`` has those of an SMMUv3.
  public internal(set) var cacheHits = 0, cacheMisses = 0
  /// Flushes that caching mode asks for when something is mapped; not among ``invalidations``.
  public internal(set) var flushesOnMap = 0
  /// Invalidations of a device's context, PASID or stream-table entry, by attaching and detaching.
  public internal(set) var configurationInvalidations = 0
  /// System calls that the clock was charged for; see ``CostTable``.
  public internal(set) var systemCalls = 0
  /// Requests refused.
  public internal(set) var faults = 0
  /// Bytes that devices read from and wrote to memory.
  public internal(set) var bytesRead: UInt64 = 0, bytesWritten: UInt64 = 0
}
