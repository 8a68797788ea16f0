/// What the work of kernel and hardware takes on a simulated machine's clock, in nanoseconds.
///
/// The clock moves on by these, so that policies can be compared by time as well as by counts; the figures are sums of parts
/// that were measured on real machines, and none of them is a measurement of a whole. Charged are the ioctls of iommufd and
/// VFIO and closing their descriptors, areas and pages that these map and unmap, and invalidations, the kernel's own and the
/// process's. Not charged is what real hardware does without a system call: registers, DMA, interrupts.
public struct CostTable: Hashable, Sendable {
  /// The name, as `iommuctl simulate --costs` takes it: the hardware, and the nanoseconds of one invalidation with its wait.
  public let name: String
  /// Into the kernel and back, with the look-up of its object. 310 ns: a cheap VFIO ioctl.
  public var systemCall: UInt64 = 310
  /// Bookkeeping for one area that is mapped or unmapped. 650 ns: an iommufd map without a domain takes 2.05 µs in an emulator,
  /// 0.74 of them dispatch; halved, as native times are a half to a quarter of those.
  public var area: UInt64 = 650
  /// Pinning and entering, or clearing and unpinning, one page of the memory's own size. 65 ns: type1 takes 61 to map one of
  /// 4 KiB, 69 to unmap it.
  public var page: UInt64 = 65
  /// Putting one command into the hardware's queue. 20 ns: a store into memory that the hardware reads, and its share of
  /// the doorbell; an assumption.
  public var invalidation: UInt64 = 20
  /// Waiting until the hardware has done what was put into its queue.
  public var sync: UInt64
  /// Reading one descriptor of a page table that the process owns, where the hardware walks it. 0: what the hardware does by
  /// itself is not charged, unless a table says so.
  public var walkLevel: UInt64 = 0

  /// A table whose invalidation takes so long from command to completion; everything else as on all machines.
  public init(_ name: String, roundTrip: UInt64) {
    self.name = name
    sync = roundTrip - 20
  }

  /// Intel VT-d of 2017: 2 µs in each of 18 samples of the driver's latency histogram on Kaby Lake.
  public static let vtd2000 = CostTable("vtd-2000", roundTrip: 2000)
  /// Intel VT-d of recent servers: less than 1 µs on average, on a host with IAA.
  public static let vtd800 = CostTable("vtd-800", roundTrip: 800)
  /// Arm SMMUv3: a CMD_SYNC on an empty queue of the same package, 300 ns.
  public static let smmu300 = CostTable("smmu-300", roundTrip: 300)
  /// Arm SMMUv3 of the other package: 800 ns.
  public static let smmu800 = CostTable("smmu-800", roundTrip: 800)
  /// An emulated IOMMU, where each invalidation leaves the guest: 20 µs, the order of magnitude at which the kernel's lazy
  /// mode on s390 went from a queue a processor to a single one.
  public static let virtual20000 = CostTable("virtual-20000", roundTrip: 20_000)

  /// All tables, in the order of `iommuctl simulate`.
  public static let all = [vtd2000, vtd800, smmu300, smmu800, virtual20000]

  /// The table of a name; nil when there is none.
  public static func named(_ name: String) -> CostTable? { all.first { $0.name == name } }
}

extension SimulatedMachine {
  /// The table that the clock charges when ``costs`` names none.
  ///
  /// Nested translation takes hardware of the last years, so the newer of two: VT-d 800 ns, SMMUv3 300 ns; caching mode is what
  /// an emulated VT-d has, so 20 µs.
  var effectiveCosts: CostTable {
    if let costs { return costs }
    if cachingMode { return .virtual20000 }
    return iommu == .smmuv3 ? .smmu300 : .vtd800
  }
}
