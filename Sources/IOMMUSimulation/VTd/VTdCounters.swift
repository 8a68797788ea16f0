/// What a simulated VT-d did, counted since the machine began.
public struct VTdCounters: Hashable, Sendable {
  /// Who had a descriptor put into the queue: the process, by `IOMMU_HWPT_INVALIDATE`, with the waits that the kernel adds; or the
  /// kernel by itself.
  public typealias Sender = SMMUCounters.Sender
  /// Look-ups of a cache.
  public typealias Lookups = SMMUCounters.Lookups

  /// Descriptors that were executed, by type.
  public struct Descriptors: Hashable, Sendable {
    var counts: [VTdOpcode: Int] = [:]
    /// Of those for translations, how many named pages, and how many all of a domain or PASID.
    public internal(set) var pageSelective = 0, wholeTag = 0

    package init() {}

    /// How many there were of a type.
    public subscript(opcode: VTdOpcode) -> Int { counts[opcode] ?? 0 }
    /// `iotlb_inv_dsc` and `p_iotlb_inv_dsc`.
    public var tlbInvalidations: Int { self[.iotlb] + self[.pasidIOTLB] }
    /// `cc_inv_dsc` and `pc_inv_dsc`.
    public var configurationInvalidations: Int { self[.contextCache] + self[.pasidCache] }
    /// `inv_wait_dsc`.
    public var syncs: Int { self[.wait] }

    mutating func count(_ descriptor: VTdDescriptor, _ opcode: VTdOpcode) {
      counts[opcode, default: 0] += 1
      guard opcode.isTLBInvalidation else { return }
      if descriptor.granularity == 3 { pageSelective += 1 } else { wholeTag += 1 }
    }
  }

  /// Descriptors that the process had sent.
  public internal(set) var process = Descriptors()
  /// Descriptors that the kernel sent.
  public internal(set) var kernel = Descriptors()
  /// Pages of requests, in the IOTLB of all stages.
  public internal(set) var iotlb = Lookups()
  /// Pointers to tables, where the IOTLB missed: one look-up a walk, a hit when any level was there.
  public internal(set) var walkCache = Lookups()
  /// Second-stage translations of first-stage tables and leaves.
  public internal(set) var stage2Cache = Lookups()
  /// PASID table entries.
  public internal(set) var configurationCache = Lookups()
  /// Entries of page tables that were read from memory.
  public internal(set) var descriptorReads = 0
  /// Of these, entries of first-stage tables, each found by the second stage where that is nested below.
  public internal(set) var firstStageReads = 0
  /// Times that hardware set an accessed or a dirty flag in a first-stage table.
  public internal(set) var flagUpdates = 0
  /// Times that a batch of the driver's had to wait for room, in a queue that is shorter than its batches, or that others had filled.
  public internal(set) var queueStalls = 0
  /// The most descriptors that ever waited in the queue.
  public internal(set) var deepestQueue = 0
  /// Descriptors that the hardware could not make sense of.
  public internal(set) var illegalDescriptors = 0
  /// Invalidations that were lost on request; see ``SimulatedHost/loseInvalidation(_:from:unit:)``.
  public internal(set) var lostInvalidations = 0
  /// Faults recorded.
  public internal(set) var faults = 0
  /// Faults that found the recording registers full.
  public internal(set) var lostFaults = 0

  package init() {}

  mutating func count(_ descriptor: VTdDescriptor, _ opcode: VTdOpcode, from sender: Sender) {
    switch sender {
    case .process: process.count(descriptor, opcode)
    case .kernel: kernel.count(descriptor, opcode)
    }
  }
}
