import AddressSpace
package import PageTables

/// A context descriptor and a stream table entry, as a process gives them to the kernel for its stage 1.
///
/// The sources are sections 5.2 and 5.4 of Arm IHI 0070, and `arm_smmu_make_s1_cd` and `arm_smmu_validate_vste` of
/// `drivers/iommu/arm/arm-smmu-v3`.
package struct SMMUContext: Hashable, Sendable {
  /// The shape of stage 1.
  package var geometry: TableGeometry
  /// The IPA of its root table.
  package var root: UInt64
  package var asid: UInt16
  /// How many bits IPAs have.
  package var outputBits: UInt8

  package init(geometry: TableGeometry, root: UInt64, asid: UInt16, outputBits: UInt8) {
    (self.geometry, self.root, self.asid, self.outputBits) = (geometry, root, asid, outputBits)
  }

  /// The eight words of the context descriptor: stage 1 by TTB0 alone, walks that are cached write-back and inner shareable,
  /// faults that are recorded and abort.
  package var descriptor: [UInt64] {
    let tg0: UInt64 = geometry.granule.shift == 12 ? 0 : geometry.granule.shift == 16 ? 1 : 2
    var word = 64 - UInt64(geometry.inputBits)  // T0SZ
    word |= tg0 << 6 | 1 << 8 | 1 << 10 | 3 << 12  // TG0, IR0, OR0, SH0
    word |= 1 << 30 | 1 << 31  // EPD1, V
    word |= Self.sizeCode(outputBits) << 32  // IPS
    word |= 1 << 41 | 1 << 45 | 1 << 46 | 1 << 47  // AA64, R, A, ASET
    word |= UInt64(asid) << 48
    return [word, root, 0, Self.memoryAttributes, 0, 0, 0, 0]
  }

  /// The two words of the entry: stage 1 translates, by one context descriptor at an IPA; no ATS (`EATS` is 0).
  package static func entry(descriptorAt address: UInt64) -> [UInt64] {
    [1 | 5 << 1 | address, 1 << 2 | 1 << 4 | 3 << 6]  // V, Cfg, S1ContextPtr; S1CIR, S1COR, S1CSH
  }

  /// `MAIR`: index 0 not cached, 1 write-back, 2 device, 3 inner not cached and outer cached.
  private static var memoryAttributes: UInt64 { 0xf404_ff44 }

  /// The code of `IPS` for so many bits at least.
  static func sizeCode(_ bits: UInt8) -> UInt64 {
    let sizes: [UInt8] = [32, 36, 40, 42, 44, 48, 52]
    return UInt64(sizes.firstIndex { $0 >= bits } ?? 6)
  }
}
