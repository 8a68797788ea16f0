extension ConfigSpace {
  /// An entry of one of the two capability lists.
  public struct Capability: Hashable, Sendable {
    /// What it is: `PCI_CAP_ID_…`, or `PCI_EXT_CAP_ID_…` in the extended list.
    public let id: UInt16
    /// Where it begins, in bytes; its registers are at fixed distances from here.
    public let offset: Int

    /// Ids of the standard list that this library looks for.
    package static let powerManagement: UInt16 = 0x01, msi: UInt16 = 0x05, express: UInt16 = 0x10
    package static let msix: UInt16 = 0x11, advancedFeatures: UInt16 = 0x13
  }

  /// The standard capability list in its order; empty when the device has none.
  ///
  /// A list that runs in a circle or out of config space ends there: at most 48 entries, one read each.
  public func capabilities() throws(DMAError) -> [Capability] {
    let status = try load(at: 6, as: UInt16.self)
    if status == 0xffff { throw gone("read the status register") }
    guard status & 1 << 4 != 0 else { return [] }
    var found: [Capability] = []
    var next = Int(try load(at: 0x34, as: UInt8.self) & ~3)
    while next >= 64, next < 256, found.count < 48, !found.contains(where: { $0.offset == next }) {
      let header = try load(at: next, as: UInt16.self)
      if header == 0xffff { break }
      found.append(Capability(id: header & 0xff, offset: next))
      next = Int(header >> 8 & ~3)
    }
    return found
  }

  /// The extended capability list of PCI Express in its order; empty when there is none.
  ///
  /// A list that runs in a circle or out of config space ends there: at most 480 entries, one read each.
  public func extendedCapabilities() throws(DMAError) -> [Capability] {
    var found: [Capability] = []
    var seen = Set<Int>()
    var next = 256
    while next >= 256, next <= byteCount - 4, found.count < 480, seen.insert(next).inserted {
      let header = try load(at: next, as: UInt32.self)
      // All zero: no list, or the one kept where the first entry is hidden; all ones: nothing answers.
      if header == 0 || header == .max { break }
      if header & 0xffff != 0 {
        found.append(Capability(id: UInt16(truncatingIfNeeded: header), offset: next))
      }
      next = Int(header >> 20 & ~3)
    }
    return found
  }

  /// The first entry of the standard list with this id, nil when there is none.
  public func capability(_ id: UInt16) throws(DMAError) -> Capability? {
    try capabilities().first { $0.id == id }
  }
}

// MARK: - What the capabilities tell of resets

extension ConfigSpace {
  /// How a device can be reset by itself, as its capabilities say.
  public struct ResetMethods: OptionSet, Hashable, Sendable {
    /// One bit a method.
    public let rawValue: UInt8
    /// Wraps the bits.
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    /// Function-level reset of PCI Express.
    public static let functionLevel = ResetMethods(rawValue: 1 << 0)
    /// Function-level reset by the Advanced Features capability of conventional PCI.
    public static let advancedFeatures = ResetMethods(rawValue: 1 << 1)
    /// Going through the power state D3hot, which resets the device unless it says otherwise.
    public static let powerManagement = ResetMethods(rawValue: 1 << 2)
  }

  /// The resets that the device offers. The kernel may know more (of a slot, of a quirk) and may refuse some.
  public func resetMethods() throws(DMAError) -> ResetMethods {
    var methods: ResetMethods = []
    for capability in try capabilities() where capability.fits(in: self) {
      switch capability.id {
      case Capability.express:
        let able = try load(at: capability.offset + 4, as: UInt32.self)
        if able & 1 << 28 != 0 { methods.insert(.functionLevel) }
      case Capability.advancedFeatures:
        let able = try load(at: capability.offset + 3, as: UInt8.self)
        if able & 3 == 3 { methods.insert(.advancedFeatures) }
      case Capability.powerManagement:
        let state = try load(at: capability.offset + 4, as: UInt16.self)
        if state & 1 << 3 == 0 { methods.insert(.powerManagement) }
      default: break
      }
    }
    return methods
  }
}

extension ConfigSpace.Capability {
  /// Whether the registers that this library reads, up to 12 bytes, lie in the standard part of config space.
  func fits(in config: ConfigSpace) -> Bool { offset + 12 <= min(config.byteCount, 256) }
}
