public import AddressSpace

/// IOVAs that a group's devices must not be given: interrupt windows, firmware's own mappings.
///
/// The source is a line of `/sys/kernel/iommu_groups/<id>/reserved_regions`.
public struct ReservedRegion: Hashable, Sendable {
  /// First and last address, both reserved.
  public let range: IOVARange
  /// Why it is reserved.
  public let type: Kind

  /// Why a region is reserved, in the kernel's word; new words of later kernels keep their text.
  public struct Kind: RawRepresentable, Hashable, Sendable, CustomStringConvertible {
    /// The word in sysfs.
    public let rawValue: String
    /// A region's kind by the word in sysfs.
    public init(rawValue: String) { self.rawValue = rawValue }
    /// The same as ``rawValue``.
    public var description: String { rawValue }
    /// Mapped one to one by firmware's wish, always: VFIO refuses the device. Kernel: `IOMMU_RESV_DIRECT`.
    public static let direct = Kind(rawValue: "direct")
    /// Mapped one to one until a driver takes over: VFIO accepts the device. Kernel: `IOMMU_RESV_DIRECT_RELAXABLE`.
    public static let directRelaxable = Kind(rawValue: "direct-relaxable")
    /// Must never be mapped. Kernel: `IOMMU_RESV_RESERVED`.
    public static let reserved = Kind(rawValue: "reserved")
    /// Interrupt messages: the window of the hardware (x86), or that which software chose for it (Arm). Kernel:
    /// `IOMMU_RESV_MSI` and `IOMMU_RESV_SW_MSI`, which sysfs does not tell apart.
    public static let msi = Kind(rawValue: "msi")
  }
}

/// The reserved regions of a group, and whether that is all of them.
public struct ReservedRegions: Hashable, Sendable {
  /// The regions, in the kernel's order: ascending.
  public internal(set) var regions: [ReservedRegion] = []
  /// The file when it could not be read, or when a line of it made no sense; then ``regions`` may lack some.
  public internal(set) var unread: [String] = []
}

extension Host {
  /// The reserved regions of a group. One file; O(regions). The source is
  /// `/sys/kernel/iommu_groups/<id>/reserved_regions`.
  ///
  /// - Throws: ``DMAError/Code-swift.struct/noSuchDevice`` when there is no such group.
  public func reservedRegions(ofGroup id: Int) throws(DMAError) -> ReservedRegions {
    let path = "\(SysPath.groups)/\(id)/reserved_regions"
    var reader = FileReader(kernel), result = ReservedRegions()
    guard let bytes = reader.bytes(path) else {
      _ = try group(id)  // Throws when it is the group that is missing.
      result.unread = reader.unread
      return result
    }
    for line in Field.lines(bytes[...]) {
      if let region = Self.region(line) { result.regions.append(region) } else { reader.note(path) }
    }
    result.unread = reader.unread
    return result
  }

  /// `0x00000000fee00000 0x00000000feefffff msi`
  private static func region(_ line: ArraySlice<UInt8>) -> ReservedRegion? {
    let words = Field.words(line)
    guard words.count == 3, let start: UInt64 = Field.number(words[0]),
      let last: UInt64 = Field.number(words[1]),
      let word = Field.text(words[2]),
      let range = IOVARange(start: IOVA(rawValue: start), last: IOVA(rawValue: last))
    else { return nil }
    return ReservedRegion(range: range, type: .init(rawValue: word))
  }
}
