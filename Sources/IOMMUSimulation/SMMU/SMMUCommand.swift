/// Commands that a simulated SMMUv3 knows, by the opcodes of chapter 4 of its specification.
public enum SMMUOpcode: UInt8, Hashable, Sendable, CaseIterable {
  /// `CMD_CFGI_STE`: what is cached of a stream table entry, and of the context descriptors that it leads to.
  case invalidateSTE = 0x03
  /// `CMD_CFGI_ALL`: all configuration.
  case invalidateAllConfiguration = 0x04
  /// `CMD_CFGI_CD`: one context descriptor of a stream.
  case invalidateCD = 0x05
  /// `CMD_CFGI_CD_ALL`: all context descriptors of a stream.
  case invalidateAllCDs = 0x06
  /// `CMD_TLBI_NH_ALL`: stage 1 of a VMID.
  case invalidateAll = 0x10
  /// `CMD_TLBI_NH_ASID`: an ASID of a VMID; global entries stay.
  case invalidateASID = 0x11
  /// `CMD_TLBI_NH_VA`: an address, or a range of them, in an ASID, and global entries there.
  case invalidateAddress = 0x12
  /// `CMD_TLBI_NH_VAA`: the same in all ASIDs of a VMID.
  case invalidateAddressInAllASIDs = 0x13
  /// `CMD_TLBI_S12_VMALL`: both stages of a VMID.
  case invalidateVMID = 0x28
  /// `CMD_TLBI_S2_IPA`: stage 2 of a VMID at an address or a range; entries of both stages stay.
  case invalidateStage2 = 0x2a
  /// `CMD_TLBI_NSNH_ALL`: everything.
  case invalidateEverything = 0x30
  /// `CMD_ATC_INV`: a device's own cache; accepted, as no simulated device has one.
  case invalidateATC = 0x40
  /// `CMD_SYNC`: all before it is done.
  case sync = 0x46

  /// Whether it begins with `CMD_TLBI`.
  public var isTLBInvalidation: Bool { (0x10...0x30).contains(rawValue) }
  /// Whether it begins with `CMD_CFGI`.
  public var isConfigurationInvalidation: Bool { (0x03...0x06).contains(rawValue) }
}

/// A command of 16 bytes, as it lies in the queue.
struct SMMUCommand: Equatable, Sendable {
  var word0: UInt64, word1: UInt64

  init(_ word0: UInt64, _ word1: UInt64 = 0) { (self.word0, self.word1) = (word0, word1) }

  /// Nil for an opcode that this SMMU does not have.
  var opcode: SMMUOpcode? { SMMUOpcode(rawValue: UInt8(truncatingIfNeeded: word0)) }

  // Of TLB invalidations.
  var vmid: UInt16 {
    get { UInt16(truncatingIfNeeded: word0 >> 32) }
    set { word0 = word0 & ~(0xffff << 32) | UInt64(newValue) << 32 }
  }
  var asid: UInt16 { UInt16(truncatingIfNeeded: word0 >> 48) }
  /// One less than the number of units of 2^``scale`` granules.
  var number: UInt64 { word0 >> 12 & 0x1f }
  var scale: UInt64 { word0 >> 20 & 0x1f }
  var isLeafOnly: Bool { word1 & 1 == 1 }
  /// The level that leaves are at; 0 for any.
  var level: UInt8 { UInt8(word1 >> 8 & 3) }
  /// 1, 2, 3 for 4, 16, 64 KiB; 0 for one address.
  var granule: UInt64 { word1 >> 10 & 3 }
  var address: UInt64 { word1 & ~0xfff }

  // Of configuration invalidations.
  var stream: UInt32 {
    get { UInt32(truncatingIfNeeded: word0 >> 32) }
    set { word0 = word0 & 0xffff_ffff | UInt64(newValue) << 32 }
  }
}

extension SMMUCommand {
  static let sync = SMMUCommand(UInt64(SMMUOpcode.sync.rawValue))

  /// What an address command covers; nil where that is illegal.
  func span(hasRanges: Bool) -> Span64? {
    guard granule != 0 else { return Span64(start: address, last: address | 0xfff) }
    // All three zero is the reserved way to say one page of any level.
    guard hasRanges, number | scale | UInt64(level) != 0 else { return nil }
    let shift = granuleShift!, start = address.rounded(downTo: shift)
    // At most 2^52 bytes. What would lie beyond the top of the address space is nothing.
    let (last, overflow) = start.addingReportingOverflow((number + 1) << (scale + shift) - 1)
    return Span64(start: start, last: overflow ? .max : last)
  }

  /// Binary logarithm of the granule that is named.
  var granuleShift: UInt64? { granule == 0 ? nil : 10 + 2 * granule }

  /// Commands for a range of stage 2 in pages of 4 KiB, in the kernel's way of cutting it: `arm_smmu_cmdq_batch_add_range`. What
  /// is not for leaves only is a whole table's range, so that none of its corners comes up.
  static func stage2(_ span: Span64, vmid: UInt16, isLeafOnly: Bool, hasRanges: Bool) -> [SMMUCommand] {
    var pages = (span.last - span.start) >> 12 + 1, address = span.start
    let base = UInt64(SMMUOpcode.invalidateStage2.rawValue) | UInt64(vmid) << 32, leaf: UInt64 = isLeafOnly ? 1 : 0
    guard hasRanges else {
      // As many as a table has entries, and everything instead.
      guard pages < 512 else { return [SMMUCommand(UInt64(SMMUOpcode.invalidateVMID.rawValue) | UInt64(vmid) << 32)] }
      return (0..<pages).map { SMMUCommand(base, span.start + $0 << 12 | leaf) }
    }
    var commands: [SMMUCommand] = []
    while pages > 0 {
      let scale = UInt64(pages.trailingZeroBitCount), number = pages >> scale & 31
      let hint: UInt64 = isLeafOnly ? 3 << 8 : 0
      commands.append(SMMUCommand(base | (number - 1) << 12 | scale << 20, address | 1 << 10 | hint | leaf))
      pages -= number << scale
      address &+= number << (scale + 12)
    }
    return commands
  }
}
