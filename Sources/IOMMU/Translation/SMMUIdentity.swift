package import AddressSpace

/// What the registers of an SMMUv3 say of nesting: those fields that the kernel lets a process rely on.
///
/// The sources are `struct iommu_hw_info_arm_smmuv3` of `include/uapi/linux/iommufd.h` and chapter 6 of Arm IHI 0070. Whether
/// both stages can be nested in fact (S1P, S2P, CANWBS, S2FWB, errata) cannot be read: `IOMMU_VIOMMU_ALLOC` decides.
package struct SMMUIdentity: Hashable, Sendable {
  /// IDR0 to IDR5.
  package var registers: [UInt32]

  /// From what `IOMMU_GET_HW_INFO` answers; nil for other hardware.
  package init?(_ info: HardwareInfo) {
    // Flags and a reserved word come first.
    guard info.type == 2, info.data.count >= 32 else { return nil }
    registers = (0..<6).map { register in
      let bytes = info.data[(8 + register * 4)...].prefix(4)
      return bytes.reversed().reduce(0) { word, byte in word << 8 | UInt32(byte) }
    }
  }

  private func field(_ register: Int, _ low: UInt32, _ width: UInt32) -> UInt32 {
    registers[register] >> low & ((1 << width) - 1)
  }

  /// `IDR3.RIL`: commands for ranges.
  package var hasRanges: Bool { field(3, 10, 1) == 1 }
  /// `IDR1.SIDSIZE`.
  package var streamBits: Int { Int(field(1, 0, 6)) }
  /// `IDR5.GRAN4K`, `GRAN16K` and `GRAN64K`.
  package var granules: PageSizes {
    PageSizes(
      rawValue: UInt64(field(5, 4, 1)) << 12 | UInt64(field(5, 5, 1)) << 14 | UInt64(field(5, 6, 1)) << 16)
  }

  /// Why stage 1 cannot be the process's, as far as registers tell; nil when it may be.
  ///
  /// - Parameter page: The smallest page of stage 2, in bytes.
  package func refusal(page: UInt64) -> String? {
    if field(0, 2, 2) & 2 == 0 { return "IDR0.TTF: the SMMU has no AArch64 tables" }
    if field(0, 21, 2) == 3 { return "IDR0.TTENDIAN: the SMMU reads tables as big endian only" }
    if field(0, 24, 2) == 2 { return "IDR0.STALL_MODEL: a device that faults is stalled, which nobody would end" }
    if streamBits == 0 { return "IDR1.SIDSIZE: there is one stream" }
    if granule(page: page) == nil {
      return "IDR5: none of the granules \(granules.rawValue) suits pages of \(page) bytes"
    }
    return nil
  }

  /// Why a device behind it cannot use tables that were made for another; nil when it can.
  ///
  /// What its own addresses come to is the kernel's to look at, when it makes a nest parent of the same address space.
  ///
  /// - Parameters:
  ///   - first: The SMMU that the domain was made for.
  ///   - granule: That of the domain's tables.
  ///   - page: The smallest page of stage 2, in bytes.
  package func refusal(joining first: SMMUIdentity, granule: PageSize, page: UInt64) -> String? {
    if let refusal = refusal(page: page) { return refusal }
    if !granules.contains(granule) {
      return "IDR5: the domain's tables have a granule of \(granule.byteCount) bytes, which the SMMU does not know"
    }
    if first.hasRanges, !hasRanges {
      return "IDR3.RIL: the domain invalidates ranges at once, which the SMMU does not know"
    }
    return nil
  }

  /// The granule of stage 1: the page of stage 2 where it is one, else the largest smaller one.
  package func granule(page: UInt64) -> PageSize? {
    PageSizes(rawValue: granules.rawValue & (page << 1 &- 1)).largest
  }
}
