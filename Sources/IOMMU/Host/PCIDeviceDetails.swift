/// More of a PCI device than a list needs: what `show` and `doctor` look at.
///
/// A snapshot; nil and ``unread`` as in ``PCIDevice``.
public struct PCIDeviceDetails: Hashable, Sendable {
  /// Where it sits.
  public let address: PCIAddress
  /// Its BARs and its expansion ROM, those that are there. The source is `resource`.
  public internal(set) var resources: [PCIResource] = []
  /// What it passes down, for a bridge. The source is `resource`.
  public internal(set) var windows: [PCIResource] = []
  /// The silicon's revision. The source is `revision`.
  public internal(set) var revision: UInt8?
  /// Whether a driver has switched it on. The source is `enable`, a count.
  public internal(set) var isEnabled: Bool?
  /// `D0`, `D3hot`, `unknown`…; nil when not told. The source is `power_state`.
  public internal(set) var powerState: String?
  /// Ways to reset it that the kernel will try, in order, such as `flr`, `pm`, `bus`; empty when it has none, nil when
  /// not told. The source is `reset_method` (kernel 5.15).
  public internal(set) var resetMethods: [String]?
  /// Whether firmware's screen is on it. The source is `boot_vga`.
  public internal(set) var isBootDisplay = false
  /// The physical function, when this is a virtual one. The source is the link `physfn`.
  public internal(set) var physicalFunction: PCIAddress?
  /// Its virtual functions, when this is a physical one with some enabled. The source is the links `virtfn<n>`.
  public internal(set) var virtualFunctions: [PCIAddress] = []
  /// How many virtual functions it can have; nil when it is no physical function. The source is `sriov_totalvfs`.
  public internal(set) var virtualFunctionLimit: Int?
  /// Whether it speaks PCI Express; false for conventional PCI. The source is `config`, and for those who may not read
  /// it whole, whether there is a `current_link_speed`.
  public internal(set) var isPCIExpress: Bool?
  /// Access Control Services as switched on, nil where it has none or `config` is not readable that far.
  public internal(set) var accessControl: AccessControl?
  /// How many bytes of config space could be read: 64 without privilege, else 256 or 4096.
  public internal(set) var configByteCount = 0
  /// Paths that were to be read and could not, or that made no sense.
  public internal(set) var unread: [String] = []

  init(address: PCIAddress) { self.address = address }
}

extension Host {
  /// More of a device: BARs, reset, functions, config space. A dozen small files and one directory.
  ///
  /// - Throws: ``DMAError/Code-swift.struct/noSuchDevice``; ``DMAError/Code-swift.struct/corruptTree`` when there is no
  ///   sysfs.
  public func details(of address: PCIAddress) throws(DMAError) -> PCIDeviceDetails {
    var details = PCIDeviceDetails(address: address), reader = FileReader(kernel)
    let path = PCIDevice.path(of: address)
    if reader.exists(path) != true { _ = try device(address, named: false) }  // Throws the reason.
    for resource in reader.resources(path) {
      if resource.index < 7 { details.resources.append(resource) } else { details.windows.append(resource) }
    }
    details.revision = reader.number("\(path)/revision", optional: true)
    let enabled: Int? = reader.number("\(path)/enable", optional: true)
    details.isEnabled = enabled.map { $0 > 0 }
    details.powerState = reader.text("\(path)/power_state", optional: true)
    if let methods = reader.text("\(path)/reset_method", optional: true) {
      details.resetMethods = methods.split(separator: " ").map(String.init)
    } else if reader.exists("\(path)/reset_method") == false, reader.exists("\(path)/reset") == false {
      details.resetMethods = []
    }
    details.isBootDisplay = reader.number("\(path)/boot_vga", optional: true) == 1
    readFunctions(&details, path, &reader)
    readConfig(&details, path, &reader)
    details.unread = reader.unread
    return details
  }

  private func readFunctions(_ details: inout PCIDeviceDetails, _ path: String, _ reader: inout FileReader) {
    details.physicalFunction = reader.linkName("\(path)/physfn").flatMap { PCIAddress(sysfsName: $0[...]) }
    details.virtualFunctionLimit = reader.number("\(path)/sriov_totalvfs", optional: true)
    let enabled: Int? = reader.number("\(path)/sriov_numvfs", optional: true)
    guard let enabled, enabled > 0 else { return }
    details.virtualFunctions = reader.names(path).filter { $0.hasPrefix("virtfn") }
      .compactMap { reader.linkName("\(path)/\($0)") }
      .compactMap { PCIAddress(sysfsName: $0[...]) }.sorted()
  }

  private func readConfig(_ details: inout PCIDeviceDetails, _ path: String, _ reader: inout FileReader) {
    let config = ConfigBytes(bytes: reader.bytes("\(path)/config") ?? [])
    details.configByteCount = config.bytes.count
    switch config.expressType {
    case .express: details.isPCIExpress = true
    case .conventional: details.isPCIExpress = false
    case .unknown: details.isPCIExpress = reader.exists("\(path)/current_link_speed")
    }
    details.accessControl = AccessControl(config)
  }
}
