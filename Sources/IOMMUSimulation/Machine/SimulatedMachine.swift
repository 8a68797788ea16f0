public import IOMMU

/// What a simulated machine is made of: its IOMMU, its kernel's abilities, this process's rights, and its devices.
///
/// A value: take a preset, change what a test is about, and build a ``SimulatedHost`` of it.
///
/// ```swift
/// var machine = SimulatedMachine.vtd
/// machine.memoryLockLimit = 8 << 20
/// machine.canLockMemory = false
/// let simulated = SimulatedHost(machine, devices: ["0000:03:00.0": EduModel()])
/// ```
public struct SimulatedMachine: Sendable {
  /// The make of an IOMMU. It decides reserved regions, names in sysfs, register values and the form of log lines.
  public enum IOMMUKind: String, Hashable, Sendable, CaseIterable {
    /// Intel VT-d: interrupts at 0xfee00000–0xfeefffff are reserved.
    case vtd
    /// Arm SMMU version 3: the software MSI window at 0x8000000–0x80fffff is reserved.
    case smmuv3
  }

  // The IOMMU

  /// The IOMMU, nil for a machine that has none in use.
  public var iommu: IOMMUKind? = .vtd
  /// Input address bits that a domain translates, 12…64.
  public var addressBits = 48
  /// Page sizes as a bit mask; the smallest is the granule.
  public var pageSizes: UInt64 = 0x4020_1000
  /// Whether the IOMMU caches entries that are not present, as an emulated VT-d may; each map then flushes.
  public var cachingMode = false
  /// Whether VT-d runs in scalable mode, with PASID tables. It shows in registers and in the lines about faults.
  public var usesScalableMode = false
  /// Whether VT-d translates by first-stage tables, which takes scalable mode. Then a domain reaches the lower half of
  /// the addresses only, and what may be written may be read.
  public var usesFirstStage = false

  /// Whether the process may own page tables: nested translation, in a format of the simulation's own. It takes iommufd.
  public var hasNestedTranslation = true
  /// How many pages the IOTLB holds; the one that was filled first goes first. 128 is what a network adapter's throughput
  /// tells of Intel's.
  public var iotlbEntryCount = 128
  /// How many pointers to tables the paging-structure cache holds, where the hardware walks tables of the process's.
  public var walkCacheEntryCount = 64
  /// How many devices' configuration is cached: stream table entries and context descriptors.
  public var configurationCacheEntryCount = 64
  /// The identification registers of an SMMUv3, which say what it can.
  public var smmu = SMMURegisters()
  /// Whether an SMMUv3's accesses for PCI devices are coherent whatever stage 1 says (CANWBS in the IORT), a property of the
  /// machine and in no register. A process may own stage 1 where this is so, or where
  /// ``SMMURegisters/hasStage2ForcedWriteBack`` is.
  public var hasCANWBS = false
  /// The capability registers of a VT-d that is simulated as hardware: all tables lie in memory and are walked, by way of caches. They
  /// stand above ``addressBits``, ``usesScalableMode``, ``usesFirstStage`` and ``hasNestedTranslation``. nil for a VT-d whose domains
  /// translate at once, with the registers of an emulator in the mode that those tell.
  public var vtdRegisters: VTdRegisters?
  /// Binary logarithm of the descriptors that such a VT-d's invalidation queue holds, from 2 on; Linux makes it 256 long.
  public var invalidationQueueShift = 8
  /// What the clock charges for system calls and invalidations; nil takes the table that fits the IOMMU.
  public var costs: CostTable?
  /// Whether the machine's clock goes on with the real one, beside what it is charged. Without that it has a time of its own,
  /// which passes only by what is charged, by sleeping, and by waiting in vain: what a single thread does takes the same to the
  /// nanosecond each time.
  public var followsRealTime = true

  // The kernel

  /// The ways to a device that the kernel was built with. Without `.iommufd` there is no `/dev/iommu`, without
  /// `.type1` no `/dev/vfio/vfio` and no group nodes.
  public var interfaces: Set<Interface> = [.iommufd, .type1]
  /// Whether devices have nodes of their own (`/dev/vfio/devices/vfioN`); a kernel without has none to bind to iommufd.
  public var hasDeviceNodes = true
  /// Whether the kernel has `IOMMU_IOAS_MAP_FILE` (Linux 6.13 and later); ENOTTY without.
  public var mapsFiles = true
  /// Whether the platform isolates interrupts (interrupt remapping, an ITS).
  public var isolatesInterrupts = true
  /// Whether `allow_unsafe_interrupts` is set for iommufd and type1.
  public var allowsUnsafeInterrupts = false
  /// Whether VFIO's no-IOMMU mode is on; it takes effect for devices without an IOMMU.
  public var noIOMMUMode = false
  /// How many mappings a type1 container takes, `dma_entry_limit`.
  public var mappingLimit: UInt32 = 65_535

  // The process

  /// The memory that the machine has, in bytes; nil for that of the machine which this process runs on, whose memory it is in any
  /// case.
  public var memoryByteCount: UInt64?
  /// `RLIMIT_MEMLOCK` in bytes, `UInt64.max` for unlimited.
  public var memoryLockLimit: UInt64 = .max
  /// Whether the process has CAP_IPC_LOCK, which lifts the limit.
  public var canLockMemory = true
  /// Bytes that other processes of the same user have pinned through iommufd; they count against the limit there.
  public var bytesPinnedByOthers: UInt64 = 0
  /// The effective user.
  public var user: UInt32 = 0
  /// The groups that the process is in.
  public var groups: Set<UInt32> = [0]
  /// Owner, group and mode of `/dev/vfio/N` and `/dev/vfio/devices/vfioN`. `/dev/iommu` has the same owner and group,
  /// and at least mode 0660, as the kernel makes it.
  public var nodeOwner: UInt32 = 0, nodeGroup: UInt32 = 0, nodeMode: UInt32 = 0o600

  /// The devices. Those given to ``SimulatedHost/init(_:devices:)`` are added to them.
  public var devices: [SimulatedDevice] = []

  /// A machine with VT-d in legacy mode, both interfaces, root's rights, and no device.
  public init() {}
}

extension SimulatedMachine {
  /// Whether the kernel can nest page tables in the simulation's own format.
  var nests: Bool {
    hasNestedTranslation && iommu != nil && interfaces.contains(.iommufd) && effectiveVTdRegisters == nil
  }
  /// Whether the IOMMU decides whether page tables nest.
  var asksHardware: Bool {
    (iommu == .smmuv3 || effectiveVTdRegisters != nil) && interfaces.contains(.iommufd)
  }
  /// The registers of a VT-d that is hardware, with what the machine says of its own.
  var effectiveVTdRegisters: VTdRegisters? {
    guard iommu == .vtd, var registers = vtdRegisters else { return nil }
    registers.remapsInterrupts = isolatesInterrupts
    if cachingMode { registers.isCachingMode = true }
    return registers
  }
  /// Whether VT-d is in scalable mode.
  var isScalable: Bool { effectiveVTdRegisters?.hasScalableMode ?? (usesScalableMode || usesFirstStage) }
  /// Whether there are nest parents for an SMMUv3: `ARM_SMMU_FEAT_NESTING`.
  var hasSMMUStages: Bool {
    iommu == .smmuv3 && interfaces.contains(.iommufd) && smmu.hasStage1 && smmu.hasStage2
  }
  /// Whether an SMMUv3 lets a process own stage 1: `arm_smmu_get_viommu_size`.
  var hasVIOMMU: Bool { hasSMMUStages && (hasCANWBS || smmu.hasStage2ForcedWriteBack) }

  /// Intel VT-d, 48 address bits.
  public static var vtd: SimulatedMachine { SimulatedMachine() }
  /// Intel VT-d as an emulator presents it: caching mode on, so that each map costs a flush.
  public static var vtdCaching: SimulatedMachine {
    var machine = SimulatedMachine()
    machine.cachingMode = true
    return machine
  }
  /// Intel VT-d in scalable mode.
  public static var vtdScalable: SimulatedMachine {
    var machine = SimulatedMachine()
    machine.usesScalableMode = true
    return machine
  }
  /// Intel VT-d in scalable mode with first-stage tables: 47 address bits.
  public static var vtdFirstStage: SimulatedMachine {
    var machine = SimulatedMachine()
    (machine.usesScalableMode, machine.usesFirstStage) = (true, true)
    return machine
  }
  /// Arm SMMUv3, 48 address bits.
  public static var smmuv3: SimulatedMachine {
    var machine = SimulatedMachine()
    machine.iommu = .smmuv3
    return machine
  }
  /// Arm SMMUv3 over which a process may own stage 1, as on Linux: nested translation by way of a vIOMMU, in the hardware's own
  /// table format. The simulation's own format is off.
  public static var smmuv3Nested: SimulatedMachine {
    var machine = SimulatedMachine.smmuv3
    (machine.hasCANWBS, machine.hasNestedTranslation) = (true, false)
    return machine
  }
  /// Intel VT-d over which a process may own stage 1, as on Linux: nested translation, in the hardware's own table format. No
  /// emulator has it, and no machine that it was compared with.
  public static var vtdNested: SimulatedMachine {
    var machine = SimulatedMachine()
    (machine.vtdRegisters, machine.hasNestedTranslation) = (VTdRegisters(), false)
    return machine
  }
  /// A machine whose kernel has no iommufd: groups and type1 only.
  public static var type1Only: SimulatedMachine {
    var machine = SimulatedMachine()
    machine.interfaces = [.type1]
    machine.hasDeviceNodes = false
    return machine
  }
  /// A machine whose kernel has iommufd and no VFIO container.
  public static var iommufdOnly: SimulatedMachine {
    var machine = SimulatedMachine()
    machine.interfaces = [.iommufd]
    return machine
  }
  /// A machine without an IOMMU.
  public static var withoutIOMMU: SimulatedMachine {
    var machine = SimulatedMachine()
    machine.iommu = nil
    return machine
  }
  /// An ordinary user with 8 MiB of lockable memory, in the group that the nodes belong to.
  public static var unprivileged: SimulatedMachine {
    var machine = SimulatedMachine()
    (machine.user, machine.groups, machine.nodeGroup, machine.nodeMode) = (1000, [1000, 36], 36, 0o660)
    (machine.memoryLockLimit, machine.canLockMemory) = (8 << 20, false)
    return machine
  }
}
