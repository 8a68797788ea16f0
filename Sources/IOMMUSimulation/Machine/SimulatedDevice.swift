/// A device of a ``SimulatedMachine`` and its place in it.
public struct SimulatedDevice: Sendable {
  /// The PCI address, such as `0000:03:00.0`.
  public var address: String
  /// What the device does.
  public var model: any DeviceModel
  /// The driver that it is bound to when the machine starts, nil for none.
  public var driver: String? = "vfio-pci"
  /// The host's own driver that would take the device, nil for none; see `/sys/bus/pci/drivers_probe`.
  public var hostDriver: String?
  /// The number of its IOMMU group; nil gives it a group of its own.
  public var group: Int?
  /// The address of the bridge it sits behind, nil for the root bus.
  public var bridge: String?
  /// Which of the machine's IOMMUs translates for it, from 0 on; all are of the machine's kind. A machine has as many as its
  /// devices name, and all devices of a group have the same.
  public var iommuUnit = 0
  /// The NUMA node, -1 for none.
  public var numaNode = -1
  /// Whether its DMA is coherent with the processor's caches; VFIO refuses a device that is not.
  public var isCoherent = true
  /// Regions that firmware wants mapped one to one; VFIO refuses a device that has any.
  public var directRegions: [Range<UInt64>] = []
  /// The token of a virtual function, as a UUID; opening it takes the same token.
  public var token: String?

  /// A device at an address, bound to vfio-pci, in a group of its own.
  public init(_ address: String, _ model: any DeviceModel) { (self.address, self.model) = (address, model) }
}
