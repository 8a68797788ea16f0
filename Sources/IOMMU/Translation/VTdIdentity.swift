/// What the capability registers of a VT-d say of nesting.
///
/// The sources are `struct iommu_hw_info_vtd` of `include/uapi/linux/iommufd.h`, and chapter 11.4 of the VT-d specification (D51397).
/// The names of the bits are Linux's; the specification calls `SLTS` and `FLTS` `SSTS` and `FSTS`.
package struct VTdIdentity: Hashable, Sendable {
  /// `CAP_REG` and `ECAP_REG`.
  package var capability: UInt64, extendedCapability: UInt64

  package init(capability: UInt64, extendedCapability: UInt64) {
    (self.capability, self.extendedCapability) = (capability, extendedCapability)
  }

  /// From what `IOMMU_GET_HW_INFO` answers; nil for other hardware.
  package init?(_ info: HardwareInfo) {
    // Flags and a reserved word come first.
    guard info.type == Self.hardwareType, info.data.count >= 24 else { return nil }
    func word(_ offset: Int) -> UInt64 {
      info.data[offset..<offset + 8].reversed().reduce(0) { word, byte in word << 8 | UInt64(byte) }
    }
    self.init(capability: word(8), extendedCapability: word(16))
  }

  /// `IOMMU_HW_INFO_TYPE_INTEL_VTD`.
  package static var hardwareType: UInt32 { 1 }

  /// `CAP.FL1GP`: first-stage leaves of 1 GiB.
  package var hasGiBLeaves: Bool { capability >> 56 & 1 == 1 }
  /// `CAP.MAMV`: binary logarithm of the pages that a descriptor can have.
  package var largestOrder: UInt8 { UInt8(capability >> 48 & 0x3f) }

  /// Why stage 1 cannot be the process's, as far as registers tell; nil when it may be. That the kernel uses scalable mode is
  /// not among them.
  package var refusal: String? {
    func lacks(_ bit: UInt64) -> Bool { extendedCapability >> bit & 1 == 0 }
    if lacks(43) { return "ECAP.SMTS: the VT-d has no scalable mode" }
    if lacks(26) { return "ECAP.NEST: the VT-d has no nested translation" }
    if lacks(46) { return "ECAP.SLTS: the VT-d has no second-stage tables in scalable mode" }
    if lacks(47) { return "ECAP.FLTS: the VT-d has no first-stage tables" }
    if lacks(48) { return "ECAP.SMPWC: the VT-d reads tables past the processor's caches" }
    if capability >> 4 & 1 == 1 {
      return "CAP.RWBF: the VT-d holds writes to tables back until the kernel flushes them"
    }
    return nil
  }

  /// Why a device behind it cannot use tables that were made for another; nil when it can.
  package func refusal(joining first: VTdIdentity) -> String? {
    if let refusal { return refusal }
    if first.hasGiBLeaves, !hasGiBLeaves {
      return "CAP.FL1GP: the domain has leaves of 1 GiB, which the VT-d does not know"
    }
    if largestOrder < first.largestOrder {
      return "CAP.MAMV: the domain invalidates more pages at once than the VT-d can"
    }
    return nil
  }
}
