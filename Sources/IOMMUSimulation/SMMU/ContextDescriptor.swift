/// What hardware keeps of a context descriptor: stage 1 of a stream. The layout is chapter 5.4 of the SMMUv3 specification.
///
/// Only the lower table, TTB0, is walked: an address that TTB1 would translate faults.
struct ContextDescriptor: Equatable, BitwiseCopyable {
  /// The first table, in stage 2.
  let table: UInt64
  let asid: UInt16
  /// Binary logarithms.
  let granuleShift: UInt8, inputBits: UInt8
  /// Where a walk begins, 0…3.
  let startLevel: UInt8
  let isBigEndian: Bool
  /// EPD0: no walks.
  let isDisabled: Bool
  /// TBI0: the top byte of an address says nothing.
  let ignoresTopByte: Bool
  /// HAD0: what table descriptors say of permissions is ignored.
  let ignoresTablePermissions: Bool
  /// R: faults are recorded.
  let recordsFaults: Bool
  /// The highest IPA that stage 1 may lead to.
  let outputLast: UInt64

  /// Decodes the words; nil for `C_BAD_CD`.
  init?(_ words: InlineArray<4, UInt64>, _ registers: SMMURegisters) {
    let word = words[0]
    func bit(_ number: UInt64) -> Bool { word >> number & 1 == 1 }
    // V, AA64; no HTTU, so neither HA nor HD; A where the SMMU only aborts; S as the stall model has it.
    guard bit(31), bit(41), !bit(42), !bit(43), bit(46) || !registers.mustAbort else { return nil }
    switch registers.stallModel {
    case .chosen: break
    case .terminate: guard !bit(44) else { return nil }
    case .forced: guard bit(44) else { return nil }
    }
    isBigEndian = bit(15)
    switch registers.tableByteOrder {
    case .chosen: break
    case .little: guard !isBigEndian else { return nil }
    case .big: guard isBigEndian else { return nil }
    }
    let asid = UInt16(truncatingIfNeeded: word >> 48)
    guard registers.has16BitASIDs || asid < 256 else { return nil }
    self.asid = asid
    switch word >> 6 & 3 {
    case 0 where registers.has4KiBGranule: granuleShift = 12
    case 1 where registers.has64KiBGranule: granuleShift = 16
    case 2 where registers.has16KiBGranule: granuleShift = 14
    default: return nil
    }
    let size = UInt8(word & 0x3f)
    guard (16...39).contains(size) else { return nil }
    inputBits = 64 - size
    let perLevel = granuleShift - 3, levels = (inputBits - granuleShift + perLevel - 1) / perLevel
    startLevel = 4 - levels
    let outputBits = min(SMMURegisters.addressBits(UInt32(word >> 32 & 7)), registers.outputBits)
    outputLast = 1 << UInt64(outputBits) - 1
    // A first table may be smaller than a granule, and is aligned to its size, 64 bytes at least.
    let indexBits = inputBits - granuleShift - perLevel * (levels - 1)
    let alignment = UInt64(1) << UInt64(max(indexBits + 3, 6))
    table = words[1] & 0x000f_ffff_ffff_fff0 & ~(alignment - 1)
    guard table <= outputLast else { return nil }
    (isDisabled, ignoresTopByte, recordsFaults) = (bit(14), bit(38), bit(45))
    ignoresTablePermissions = words[1] >> 1 & 1 == 1
  }

  /// What stands where there is none.
  static let none = ContextDescriptor()

  private init() {
    (table, asid, granuleShift, inputBits, startLevel, outputLast) = (0, 0, 12, 12, 3, 0)
    (isBigEndian, isDisabled, ignoresTopByte) = (false, true, false)
    (ignoresTablePermissions, recordsFaults) = (false, false)
  }

  /// Binary logarithm of what an entry of a table at a level covers.
  @inline(__always)
  func shift(of level: UInt8) -> UInt64 { UInt64(granuleShift) + UInt64(3 - level) * UInt64(granuleShift - 3) }
}
