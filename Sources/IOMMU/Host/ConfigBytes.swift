/// Configuration space as far as `config` in sysfs gave it: 64 bytes to all, 256 or 4096 to root.
///
/// Every read is range-checked, and every walk along capabilities is bounded, so that garbage ends in nil.
struct ConfigBytes {
  let bytes: [UInt8]

  func byte(_ offset: Int) -> UInt8? { bytes.indices.contains(offset) ? bytes[offset] : nil }

  func word(_ offset: Int) -> UInt16? {
    guard let low = byte(offset), let high = byte(offset + 1) else { return nil }
    return UInt16(high) << 8 | UInt16(low)
  }

  func long(_ offset: Int) -> UInt32? {
    guard let low = word(offset), let high = word(offset + 2) else { return nil }
    return UInt32(high) << 16 | UInt32(low)
  }

  /// 0 a device, 1 a PCI bridge, 2 a CardBus bridge.
  var headerType: UInt8? { byte(0x0e).map { $0 & 0x7f } }
  var isMultiFunction: Bool? { byte(0x0e).map { $0 & 0x80 != 0 } }

  /// An answer about a capability: there at an offset, not there, or not readable.
  enum Place: Equatable { case at(Int), absent, unreadable }

  /// Walks the list that begins at 0x34.
  func capability(_ id: UInt8) -> Place {
    guard let status = word(0x06) else { return .unreadable }
    guard status & 0x10 != 0 else { return .absent }
    guard var offset = byte(0x34).map({ Int($0) & ~3 }) else { return .unreadable }
    for _ in 0..<48 {  // So many fit into 192 bytes.
      if offset < 0x40 { return .absent }
      guard let found = byte(offset), let next = byte(offset + 1) else { return .unreadable }
      if found == id { return .at(offset) }
      offset = Int(next) & ~3
    }
    return .absent
  }

  /// Walks the list that begins at 0x100.
  func extendedCapability(_ id: UInt16) -> Place {
    var offset = 0x100
    for _ in 0..<480 {  // (4096 − 256) / 8
      guard let header = long(offset) else { return .unreadable }
      if header == 0 || header == .max { return .absent }
      if UInt16(truncatingIfNeeded: header) == id { return .at(offset) }
      offset = Int(header >> 20) & ~3
      if offset < 0x100 { return .absent }
    }
    return .absent
  }

  /// The PCI Express port type: 0 endpoint, 4 root port, 5 and 6 switch ports, 7 a bridge to conventional PCI.
  var expressType: Express {
    switch capability(0x10) {
    case .at(let offset): word(offset + 2).map { .express(UInt8($0 >> 4 & 15)) } ?? .unknown
    case .absent: .conventional
    case .unreadable: .unknown
    }
  }

  enum Express: Equatable { case express(UInt8), conventional, unknown }
}

/// Access Control Services of a PCI Express function, as switched on now: what keeps its traffic from going to a peer
/// without passing the IOMMU.
///
/// The source is the extended capability 0x000d in `config`, which only root can read.
public struct AccessControl: Hashable, Sendable {
  /// The capability register: what the function has.
  public let capabilities: UInt16
  /// The control register: what is switched on.
  public let control: UInt16

  /// Whether all of source validation, request redirect, completion redirect and upstream forwarding that the function
  /// has are on: the kernel's `REQ_ACS_FLAGS`.
  public var isolates: Bool { Self.required & capabilities & ~control == 0 }
  private static let required: UInt16 = 1 | 4 | 8 | 16

  init?(_ config: ConfigBytes) {
    guard case .at(let offset) = config.extendedCapability(0x0d), let capabilities = config.word(offset + 4),
      let control = config.word(offset + 6)
    else { return nil }
    (self.capabilities, self.control) = (capabilities, control)
  }
}

extension ConfigBytes {
  /// Whether this function keeps requests from going to a peer beside the IOMMU; nil when its config space does not
  /// tell. As the kernel's `pci_acs_enabled`, without its table of quirks.
  var isolates: Bool? {
    switch expressType {
    case .unknown: return nil
    case .conventional: return false
    case .express(4), .express(6): break  // Root and downstream ports must have it.
    case .express(7), .express(8), .express(10): return false  // Bridges and event collectors.
    case .express: if isMultiFunction == false { return true }
    }
    switch extendedCapability(0x0d) {
    case .unreadable: return nil
    case .absent: return false
    case .at: return AccessControl(self)?.isolates
    }
  }
}
