/// Devices that an IOMMU cannot tell apart or keep apart: the unit that VFIO hands to a process.
///
/// The source is `/sys/kernel/iommu_groups/<id>`.
public struct IOMMUGroup: Hashable, Sendable, Identifiable {
  /// Its number, also of its node `/dev/vfio/<id>`.
  public let id: Int
  /// The kernel's default domain of the group: `DMA`, `DMA-FQ`, `identity`; nil when not told. The source is `type`.
  public internal(set) var type: String?
  /// Whether it stands for no IOMMU at all (`noiommu-<id>`), which this library refuses. The source is `name`.
  public internal(set) var isNoIOMMU = false
  /// The IOMMU unit of its devices, such as `dmar0`.
  public internal(set) var unit: String?
  /// All its devices, PCI or not, by name. The source is `devices`.
  public internal(set) var members: [Member] = []
  /// Paths that were to be read and could not, or that made no sense.
  public internal(set) var unread: [String] = []

  init(id: Int) { self.id = id }

  /// Its PCI devices, by address.
  public var devices: [PCIAddress] { members.compactMap(\.address) }

  /// Whether VFIO would hand the group out now: no member is bound to a driver that does DMA for the host. nil when a
  /// member's driver could not be read and no other decides it.
  ///
  /// Bound to VFIO, to `pci-stub`, `pcieport` or `shpchp`, and not bound at all leave a group viable, as the kernel's
  /// `driver_managed_dma` does.
  public var viable: Bool? {
    if culprit != nil || isNoIOMMU { return false }
    return members.isEmpty || members.contains { !$0.isDriverKnown } ? nil : true
  }

  /// The first member that makes the group not viable, nil when none does.
  public var culprit: Member? { members.first { !$0.leavesViable } }

  /// A device of a group.
  public struct Member: Hashable, Sendable, CustomStringConvertible {
    /// Its name in the group's `devices`: a PCI address, or a platform device's name.
    public let name: String
    /// Its PCI address, nil for a device that is not PCI.
    public let address: PCIAddress?
    /// The driver it is bound to, nil for none.
    public internal(set) var driver: String?
    /// False when the driver could not be read; then ``driver`` says nothing.
    public internal(set) var isDriverKnown = true
    /// Whether it is a bridge (base class 6), which stays the kernel's; nil when not known.
    public internal(set) var isBridge: Bool?

    var leavesViable: Bool { driver.map(VFIODriver.leavesViable) ?? true }

    /// Name and driver, such as `0000:03:00.1 (xhci_hcd)`.
    public var description: String {
      if !isDriverKnown { return "\(name) (driver unknown)" }
      return "\(name) (\(driver ?? "no driver"))"
    }
  }
}
