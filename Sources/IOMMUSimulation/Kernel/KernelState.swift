import IOMMU

/// Everything that the simulated kernel knows. Reached only with its lock held, see ``SimulatedKernel``.
///
/// The ioctls are methods here, one file a concern; they never call a device model, because a model calls back.
final class KernelState {
  let machine: SimulatedMachine
  var iommu: SimulatedIOMMU?
  var devices: [PCIAddress: DeviceState] = [:]
  var groups: [Int: GroupState] = [:]
  var descriptors = DescriptorTable()
  var memoryLock: MemoryLock
  var memory = ProcessMemory()
  var log = KernelLog()
  var tree = SystemTree()
  var clock: VirtualClock
  /// Event counters of threads that wait until a device asks to be woken.
  var timerWaiters: Set<Int32> = []
  var faults: [SimulatedFault] = []
  /// Objects alive, for the census.
  var areaCount = 0, ioasCount = 0, pageTableCount = 0, nestingObjectCount = 0
  /// Event queues by the descriptor that they are read from.
  var eventQueues: [Int32: VEventQueue] = [:]
  /// How far the process's last invalidation got.
  var invalidation = InvalidationProgress()
  /// System calls that the clock was charged for.
  var systemCalls = 0

  /// How many faults are kept; more are counted only.
  static let faultLimit = 4096

  init(_ machine: SimulatedMachine) {
    self.machine = machine
    clock = VirtualClock(followsRealTime: machine.followsRealTime)
    memoryLock = MemoryLock(
      limit: machine.memoryLockLimit, hasCapability: machine.canLockMemory,
      bytesPinnedByOthers: machine.bytesPinnedByOthers)
    iommu = machine.iommu.map {
      SimulatedIOMMU(machine, $0)
    }
  }

  /// Smallest page that the IOMMU maps.
  var granule: UInt64 { 1 << UInt64(machine.pageSizes.trailingZeroBitCount) }
}

/// Why DMA of a group is not the host's to give: who claimed it.
enum DMAOwner: Equatable {
  case group
  case iommufd(ObjectIdentifier)
}

/// An IOMMU group: the devices that the IOMMU cannot tell apart.
final class GroupState {
  let number: Int
  /// Whether it is VFIO's no-IOMMU stand-in for a group.
  let isNoIOMMU: Bool
  var members: [DeviceState] = []
  /// The one open file that a group may have.
  var openFile: GroupFile?
  /// Devices of the group that are bound by their own nodes.
  var boundNodeCount = 0
  var container: Container?
  /// Who claimed the DMA, and how often.
  var owner: DMAOwner?
  var ownerCount = 0
  /// iommufd: the page table that the group is in and the devices that asked for it.
  var pageTable: HWPageTable?
  var attached: [DeviceState] = []

  init(number: Int, isNoIOMMU: Bool) { (self.number, self.isNoIOMMU) = (number, isNoIOMMU) }

  /// Devices bound to a driver of the host that does DMA by itself; they own the group's DMA for the host.
  var hostDriven: [DeviceState] { members.filter { $0.driver.map { !Self.passive.contains($0) } ?? false } }

  /// Whether VFIO has any of it.
  var hasVFIODevice: Bool { members.contains { $0.driver == "vfio-pci" } }

  /// The node's name in `/dev/vfio`.
  var nodeName: String { isNoIOMMU ? "noiommu-\(number)" : "\(number)" }

  /// Drivers that leave DMA alone.
  private static let passive: Set<String> = ["vfio-pci", "pci-stub", "pcieport"]
}

/// A PCI function in its slot.
final class DeviceState {
  let address: PCIAddress
  let identity: DeviceIdentity
  let spec: SimulatedDevice
  let slot: DeviceSlot
  let group: GroupState?
  var config: ConfigSpace
  var interrupts: InterruptState
  var driver: String?
  var driverOverride: String?
  /// Number of `vfioN`, while bound to vfio-pci.
  var nodeNumber: Int?
  /// Open files that use it: one for its own node, several by its group.
  var openCount = 0
  var isGone = false
  /// Its number in a vIOMMU.
  var vdevice: VDevice?
  /// The vIOMMU that hears of its faults, and the number that they have there; from the attach on.
  var events: (viommu: VIOMMU, number: UInt32)?
  /// The number of the IOMMU that translates for it.
  var unit: Int { spec.iommuUnit }

  /// Where the host put the BARs, by number; 0 for those that are not there.
  let barBases: [UInt64]

  init(
    _ spec: SimulatedDevice, at address: PCIAddress, slot: DeviceSlot, group: GroupState?, barBases: [UInt64]
  ) {
    let identity = spec.model.identity
    (self.address, self.identity, self.spec, self.slot, self.group) = (address, identity, spec, slot, group)
    self.barBases = barBases
    config = ConfigSpace(identity, bases: barBases)
    interrupts = InterruptState(identity)
  }
}
