/// Descriptors of a VT-d's invalidation queue, by the types of chapter 6.5.2 of its specification.
public enum VTdOpcode: UInt8, Hashable, Sendable, CaseIterable {
  /// `cc_inv_dsc`: what is cached of context entries.
  case contextCache = 1
  /// `iotlb_inv_dsc`: by second-stage addresses, of a domain or of everything.
  case iotlb = 2
  /// `dev_tlb_inv_dsc`: a device's own cache; accepted, as no simulated device has one.
  case deviceTLB = 3
  /// `iec_inv_dsc`: the interrupt entry cache; accepted, as interrupts are not cached.
  case interruptEntries = 4
  /// `inv_wait_dsc`: all before it is done, and a word of memory says so.
  case wait = 5
  /// `p_iotlb_inv_dsc`: by first-stage addresses, of a PASID.
  case pasidIOTLB = 6
  /// `pc_inv_dsc`: what is cached of PASID table entries.
  case pasidCache = 7

  /// Whether it drops translations: `iotlb_inv_dsc` or `p_iotlb_inv_dsc`.
  public var isTLBInvalidation: Bool { self == .iotlb || self == .pasidIOTLB }
  /// Whether it drops configuration: `cc_inv_dsc` or `pc_inv_dsc`.
  public var isConfigurationInvalidation: Bool { self == .contextCache || self == .pasidCache }
}

/// A descriptor as it lies in the queue: the two words that are in use of four.
struct VTdDescriptor: Equatable, Sendable {
  var word0: UInt64, word1: UInt64

  init(_ word0: UInt64, _ word1: UInt64 = 0) { (self.word0, self.word1) = (word0, word1) }

  /// Nil for a type that this VT-d does not have.
  var opcode: VTdOpcode? { VTdOpcode(rawValue: UInt8(word0 & 0xf | word0 >> 9 & 7 << 4)) }
  /// What of it: the meaning is the type's.
  var granularity: UInt64 { word0 >> 4 & 3 }
  var domain: UInt16 { UInt16(truncatingIfNeeded: word0 >> 16) }
  /// Of those about PASIDs.
  var pasid: UInt32 { UInt32(word0 >> 32 & 0xf_ffff) }
  /// Of a context entry.
  var source: UInt32 { UInt32(word0 >> 32 & 0xffff) }
  /// Binary logarithm of the pages.
  var addressMask: UInt64 { word1 & 0x3f }
  /// The hint that no table above leaves has changed, `IH`.
  var isLeafOnly: Bool { word1 >> 6 & 1 == 1 }

  /// What an address and its mask cover.
  var span: Span64 {
    let shift = 12 + addressMask
    guard shift < 64 else { return Span64(start: 0, last: .max) }
    let start = word1.rounded(downTo: shift)
    return Span64(start: start, last: start | (1 << shift - 1))
  }
}

extension VTdDescriptor {
  private static func make(_ opcode: VTdOpcode, _ granularity: UInt64, _ domain: UInt16, high: UInt64 = 0) -> UInt64 {
    UInt64(opcode.rawValue) | granularity << 4 | UInt64(domain) << 16 | high << 32
  }

  /// With a status write, `SW`.
  static let wait = VTdDescriptor(make(.wait, 0, 0) | 1 << 5)
  /// Everything of a domain: `DSI`.
  static func domain(_ id: UInt16) -> VTdDescriptor { VTdDescriptor(make(.iotlb, 2, id)) }
  /// Pages of a domain, by second-stage addresses: `PSI`.
  static func pages(_ id: UInt16, _ block: VTdBlock, leafOnly: Bool) -> VTdDescriptor {
    VTdDescriptor(make(.iotlb, 3, id), block.start | block.order | (leafOnly ? 1 << 6 : 0))
  }
  /// Everything of a PASID in a domain.
  static func pasid(_ id: UInt16) -> VTdDescriptor { VTdDescriptor(make(.pasidIOTLB, 2, id, high: UInt64(VTd.pasid))) }
  /// Pages of a PASID, by first-stage addresses.
  static func pasidPages(_ id: UInt16, _ block: VTdBlock, leafOnly: Bool) -> VTdDescriptor {
    VTdDescriptor(
      make(.pasidIOTLB, 3, id, high: UInt64(VTd.pasid)), block.start | block.order | (leafOnly ? 1 << 6 : 0))
  }
  /// The PASID table entry of a domain.
  static func entry(_ id: UInt16) -> VTdDescriptor { VTdDescriptor(make(.pasidCache, 1, id, high: UInt64(VTd.pasid))) }
  /// The context entry of a device.
  static func context(_ id: UInt16, source: UInt32) -> VTdDescriptor {
    VTdDescriptor(make(.contextCache, 3, id, high: UInt64(source)))
  }
}

/// A naturally aligned power of two of pages.
struct VTdBlock: Equatable, Sendable {
  var start: UInt64
  /// Binary logarithm of the pages.
  var order: UInt64

  /// So many that no address is without.
  static let allOrder: UInt64 = 52

  /// The smallest that has both ends of a range: how the driver rounds, `calculate_psi_aligned_address`.
  init(covering start: UInt64, _ last: UInt64) {
    let bits = UInt64(64 - (start ^ last).leadingZeroBitCount)
    guard bits < 64 else {
      (self.start, order) = (0, Self.allOrder)
      return
    }
    order = max(bits, 12) - 12
    self.start = start.rounded(downTo: order + 12)
  }

  var isEverything: Bool { order >= Self.allOrder }
}
