/// A piece of IOMMU hardware, or a paravirtual one.
///
/// The source is `/sys/class/iommu/<name>`.
public struct IOMMUUnit: Hashable, Sendable, Identifiable {
  /// Its name: `dmar0`, `ivhd0`, `smmu3.0x0000000009050000`, or a virtio device's bus address.
  public let name: String
  /// What hardware it is, by its name.
  public let kind: Kind
  /// PCI devices that it translates for, by address. The source is the directory `devices`.
  public internal(set) var devices: [PCIAddress] = []
  /// VT-d's capability register, nil on others and when it is not readable. The source is `intel-iommu/cap`.
  public internal(set) var capabilities: UInt64?
  /// VT-d's extended capability register, nil as above. The source is `intel-iommu/ecap`.
  public internal(set) var extendedCapabilities: UInt64?
  /// AMD's feature register, nil on others. The source is `amd-iommu/features`.
  public internal(set) var features: UInt64?
  /// VT-d's version register, as text, such as `1:0`. The source is `intel-iommu/version`.
  public internal(set) var version: String?
  /// Paths that were to be read and could not, or that made no sense.
  public internal(set) var unread: [String] = []

  init(name: String) {
    self.name = name
    kind = Self.kind(of: name)
  }

  /// What hardware a unit of a name is.
  package static func kind(of name: String) -> Kind {
    switch name {
    case _ where name.hasPrefix("dmar"): .vtd
    case _ where name.hasPrefix("ivhd"): .amd
    case _ where name.hasPrefix("smmu3."): .smmuv3
    case _ where name.hasPrefix("smmu."): .smmuv2
    case _
    where name.hasPrefix("virtio") || PCIAddress(sysfsName: name[...]) != nil
      || name.hasSuffix(".virtio_mmio"):
      .virtio
    default: .other
    }
  }

  /// Whether this names the kernel's own test double (`CONFIG_IOMMUFD_TEST`), which translates for no device.
  static func isMock(_ name: String) -> Bool { name.hasPrefix("iommufd_selftest_iommu") }

  /// The same as ``name``.
  public var id: String { name }

  /// Whether it can remap interrupts: VT-d's `ECAP.IR`; nil on others, where sysfs does not say.
  public var remapsInterrupts: Bool? { extendedCapabilities.map { $0 >> 3 & 1 != 0 } }

  /// Kinds of IOMMU hardware.
  public enum Kind: String, Hashable, Sendable, CaseIterable {
    /// Intel VT-d.
    case vtd = "vt-d"
    /// AMD-Vi.
    case amd = "amd-vi"
    /// Arm SMMU version 3.
    case smmuv3
    /// Arm SMMU version 1 or 2.
    case smmuv2
    /// virtio-iommu.
    case virtio
    /// Another.
    case other
  }
}

extension Host {
  /// Every IOMMU unit that the kernel drives, by name; empty when there is none, or none in use. The mock of a kernel
  /// that is built to test its own iommufd is none.
  ///
  /// Reads one directory and, on VT-d and AMD, up to three files a unit; O(units + devices). The source is
  /// `/sys/class/iommu`.
  ///
  /// - Throws: ``DMAError/Code-swift.struct/corruptTree`` when there is no sysfs, or when the list itself cannot be read.
  public func units() throws(DMAError) -> [IOMMUUnit] {
    let entries: [String]
    do { entries = try kernel.listDirectory(SysPath.units) } catch {
      guard error == .noEntry else { throw unreadable(SysPath.units, error) }
      try requireSysfs()
      return []
    }
    return entries.compactMap(Field.lastComponent).filter { !IOMMUUnit.isMock($0) }.map(readUnit)
  }

  private func readUnit(_ name: String) -> IOMMUUnit {
    var unit = IOMMUUnit(name: name), reader = FileReader(kernel)
    let path = "\(SysPath.units)/\(name)"
    unit.devices = reader.names("\(path)/devices", optional: true)
      .compactMap { PCIAddress(sysfsName: $0[...]) }.sorted()
    switch unit.kind {
    case .vtd:
      unit.version = reader.text("\(path)/intel-iommu/version", optional: true)
      unit.capabilities = readRegister("\(path)/intel-iommu/cap", &reader)
      unit.extendedCapabilities = readRegister("\(path)/intel-iommu/ecap", &reader)
    case .amd:
      unit.features = readRegister("\(path)/amd-iommu/features", &reader)
    case .smmuv3, .smmuv2, .virtio, .other: break
    }
    unit.unread = reader.unread
    return unit
  }

  /// Hexadecimal digits without a prefix, as the VT-d and AMD drivers write them.
  private func readRegister(_ path: String, _ reader: inout FileReader) -> UInt64? {
    guard let bytes = reader.bytes(path) else { return nil }
    var digits = Field.trimmed(bytes[...])
    if digits.starts(with: "0x".utf8) { digits = digits.dropFirst(2) }
    if let value: UInt64 = Field.hex(digits) { return value }
    reader.note(path)
    return nil
  }
}
