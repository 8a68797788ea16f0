/// A PCI device as sysfs shows it: what it is, who drives it, and which IOMMU stands before it.
///
/// A snapshot; reading it changes nothing. What could not be read is nil and its path is in ``unread``, so that nil
/// without such a path means that there is none. More of a device, at the cost of more files, is in
/// ``Host/details(of:)``.
public struct PCIDevice: Hashable, Sendable, Identifiable {
  /// Where it sits. The source is the name in `/sys/bus/pci/devices`.
  public let address: PCIAddress
  /// The vendor's id. The source is `uevent`, else `vendor`.
  public internal(set) var vendor: UInt16?
  /// The device's id. The source is `uevent`, else `device`.
  public internal(set) var device: UInt16?
  /// The id of the board's vendor. The source is `uevent`, else `subsystem_vendor`.
  public internal(set) var subsystemVendor: UInt16?
  /// The board's id. The source is `uevent`, else `subsystem_device`.
  public internal(set) var subsystemDevice: UInt16?
  /// 24 bits: base class, sub-class, programming interface. The source is `uevent`, else `class`.
  public internal(set) var classCode: UInt32?
  /// The vendor's name in pci.ids, by libpci; nil when it has none, and without the trait `PCINames`.
  public internal(set) var vendorName: String?
  /// The device's name in pci.ids, by libpci; nil when it has none, and without the trait `PCINames`.
  public internal(set) var deviceName: String?
  /// The driver it is bound to, nil when to none. The source is the link `driver`.
  public internal(set) var driver: String?
  /// The only driver that may bind it, nil when any may. The source is `driver_override`.
  public internal(set) var driverOverride: String?
  /// Its IOMMU group, nil when no IOMMU translates for it. The source is the link `iommu_group`.
  public internal(set) var group: Int?
  /// The IOMMU unit that translates for it, such as `dmar0`. The source is the link `iommu`.
  public internal(set) var unit: String?
  /// The name of its own VFIO node in `/dev/vfio/devices`, such as `vfio3`; nil when it is not bound to VFIO and on
  /// kernels without such nodes. The source is `vfio-dev`.
  public internal(set) var cdev: String?
  /// The NUMA node that it is near to, nil when the firmware does not say (-1). The source is `numa_node`.
  public internal(set) var numaNode: Int?
  /// The root bus that it hangs on, such as `pci0000:00`; nil where the tree does not show it. The source is the link
  /// `/sys/bus/pci/devices/<address>`.
  public internal(set) var rootBus: String?
  /// The bridges between the root bus and the device, the root port first. The source is as for ``rootBus``.
  public internal(set) var upstream: [PCIAddress] = []
  /// Whether it can be driven now, could be, or cannot.
  public internal(set) var status: Status = .unknown
  /// One sentence on why ``status`` is as it is; nil when there is nothing to say.
  public internal(set) var reason: String?
  /// Paths that were to be read and could not, or that made no sense.
  public internal(set) var unread: [String] = []

  init(address: PCIAddress) { self.address = address }

  /// The same as ``address``.
  public var id: PCIAddress { address }

  /// Vendor and device in words as far as libpci knows them, such as `Intel Corporation Ethernet Controller X710`.
  public var name: String? {
    switch (vendorName, deviceName) {
    case (let vendor?, let device?): "\(vendor) \(device)"
    case (let vendor?, nil): vendor
    default: nil
    }
  }

  /// Whether it is a bridge of any kind (base class 6), which is the kernel's to drive; nil when the class is unknown.
  public var isBridge: Bool? { classCode.map { $0 >> 16 == 6 } }

  /// Whether it is bound to vfio-pci or to a variant of it, such as `mlx5_vfio_pci`.
  public var isBoundToVFIO: Bool { driver.map(VFIODriver.drives) ?? false }

  /// Its directory in sysfs, below the host's root.
  var path: String { Self.path(of: address) }

  static func path(of address: PCIAddress) -> String { "\(SysPath.devices)/\(address)" }

  /// Whether a driver can be named or known to be none.
  var isDriverKnown: Bool { !unread.contains("\(path)/driver") }
  var isGroupKnown: Bool { !unread.contains("\(path)/iommu_group") }

  /// Whether a device can be driven from a process.
  public enum Status: String, Hashable, Sendable, CaseIterable {
    /// Bound to VFIO and its group viable: `Device` can open it, given permission.
    case ready
    /// Not bound to VFIO, and nothing keeps its group from it.
    case bindable
    /// Cannot be driven as things are: see ``PCIDevice/reason``.
    case blocked
    /// What decides it could not be read: see ``PCIDevice/unread``.
    case unknown
  }
}

/// The directories that the enumeration begins with.
enum SysPath {
  static let devices = "/sys/bus/pci/devices"
  static let drivers = "/sys/bus/pci/drivers"
  static let groups = "/sys/kernel/iommu_groups"
  static let units = "/sys/class/iommu"
}

/// Drivers as VFIO judges them when it is asked for a group.
///
/// The kernel's mark is `driver_managed_dma` in the driver's structure; sysfs does not show it, so the names are here.
enum VFIODriver {
  /// vfio-pci and its variants; all of them, and no other driver, carry the word in the name.
  static func drives(_ driver: String) -> Bool { driver.contains("vfio") }

  /// Whether a device of this driver leaves its group viable: VFIO's own, and drivers that do no DMA by themselves.
  static func leavesViable(_ driver: String) -> Bool {
    drives(driver) || driver == "pci-stub" || driver == "pcieport" || driver == "shpchp"
  }
}
