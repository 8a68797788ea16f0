/// A command of an SMMUv3's command queue that a process may send for its own stage 1: 16 bytes, little endian.
///
/// The kernel puts its own VMID in, and the stream for a vDEVICE's number. The sources are chapter 4 of Arm IHI 0070 and
/// `arm_vsmmu_convert_user_cmd` in `drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-iommufd.c`.
package struct SMMUCommand: BitwiseCopyable, Hashable, Sendable {
  /// Bits 63…0 and 127…64.
  package var low: UInt64, high: UInt64

  @inline(__always)
  package init(low: UInt64, high: UInt64) { (self.low, self.high) = (low, high) }

  /// Everything that is cached of an address space: `CMD_TLBI_NH_ASID`.
  @inline(__always)
  package static func addressSpace(_ asid: UInt16) -> SMMUCommand {
    SMMUCommand(low: 0x11 | UInt64(asid) << 48, high: 0)
  }

  /// What is cached of the page at an address: `CMD_TLBI_NH_VA`. Not only leaves: the tables on the way to it too.
  @inline(__always)
  package static func page(_ address: UInt64, _ asid: UInt16, leafOnly: Bool) -> SMMUCommand {
    SMMUCommand(low: 0x12 | UInt64(asid) << 48, high: address & ~0xfff | (leafOnly ? 1 : 0))
  }

  /// The same for (`number` + 1) · 2^`scale` granules from an address on, in hardware with `IDR3.RIL`.
  ///
  /// - Parameters:
  ///   - granule: The shift of the granule: 12, 14 or 16.
  ///   - level: The level of the leaves, 1…3; 0 where it is not known.
  @inline(__always)
  package static func range(
    _ address: UInt64, number: UInt64, scale: UInt64, granule: UInt8, level: UInt8, _ asid: UInt16, leafOnly: Bool
  ) -> SMMUCommand {
    let code = (UInt64(granule) - 10) / 2, hints = code << 10 | UInt64(level) << 8
    return SMMUCommand(
      low: 0x12 | number << 12 | scale << 20 | UInt64(asid) << 48, high: address & ~0xfff | hints | (leafOnly ? 1 : 0))
  }

  /// The context descriptor of a stream: `CMD_CFGI_CD`, for substream 0, as the only level of its table.
  package static func contextDescriptor(stream: UInt32) -> SMMUCommand {
    SMMUCommand(low: 0x05 | UInt64(stream) << 32, high: 1)
  }

  /// The operation code.
  package var operation: UInt8 { UInt8(truncatingIfNeeded: low) }
}

extension SMMUCommand {
  /// Whether the kernel takes a command for an address space with this ASID, and hardware with or without range commands knows
  /// it. What the kernel refuses, it refuses with all that is before it in the call counted as done: so nothing is sent that
  /// was not looked at. Fields that do not belong to a command are zero.
  package func isValid(asid: UInt16, hasRanges: Bool) -> Bool {
    switch operation {
    case 0x11: return low == 0x11 | UInt64(asid) << 48 && high == 0
    case 0x12:
      guard low >> 48 == UInt64(asid), low & 0xffff_fe0e_0f00 == 0, high & 0xfe == 0 else { return false }
      // TG 0 is a command for one page, which has neither NUM nor SCALE nor TTL; with TG, all three of them 0 are reserved.
      let isOne = low & 0x1f1_f000 == 0, granule = high >> 10 & 3, level = high >> 8 & 3
      return granule == 0 ? isOne && level == 0 : hasRanges && !(isOne && level == 0)
    case 0x05: return low & 0xffff_ff00 == 0 && high == 1
    default: return false
    }
  }
}
