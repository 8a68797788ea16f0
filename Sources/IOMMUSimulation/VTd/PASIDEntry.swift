import IOMMU

/// A scalable-mode PASID table entry: which tables translate for a device's requests. The layout is chapter 9.6 of the VT-d
/// specification; of its 64 bytes the first 24 are looked at.
///
/// The context entry of legacy mode, which has second-stage tables alone, is kept in the same form.
struct PASIDEntry: Equatable, Sendable, BitwiseCopyable {
  /// P, FPD, AW, PGTT, SSADE, SSPTPTR.
  var word0: UInt64 = 0
  /// DID, PWSNP, PGSNP.
  var word1: UInt64 = 0
  /// SRE, ERE, FSPM, WPE, EAFE, FSPTPTR.
  var word2: UInt64 = 0

  /// `PGTT`.
  enum Kind: UInt64 {
    case firstStage = 1, secondStage = 2, nested = 3
  }

  private static let pointerMask: UInt64 = 0x000f_ffff_ffff_f000

  init() {}

  /// An entry of the kernel's for a domain.
  init(_ kind: Kind, domain: UInt16) {
    (word0, word1) = (1 | kind.rawValue << 6, UInt64(domain) | 1 << 23)
  }

  var isPresent: Bool { word0 & 1 == 1 }
  var kind: Kind? { Kind(rawValue: word0 >> 6 & 7) }

  /// The domain id, by which what is cached is tagged.
  var domain: UInt16 {
    get { UInt16(truncatingIfNeeded: word1) }
    set { word1 = word1 & ~0xffff | UInt64(newValue) }
  }

  /// How many levels second-stage tables have: `AW` is two less.
  var secondStageLevels: UInt8 {
    get { UInt8(word0 >> 2 & 7) + 2 }
    set { word0 = word0 & ~(7 << 2) | UInt64(newValue - 2) << 2 }
  }
  /// The first table of the second stage.
  var secondStageTable: UInt64 {
    get { word0 & Self.pointerMask }
    set { word0 = word0 & ~Self.pointerMask | newValue }
  }

  /// How many levels first-stage tables have, by `FSPM`; 0 for a value that is reserved.
  var firstStageLevels: UInt8 {
    get { word2 >> 2 & 3 < 2 ? UInt8(word2 >> 2 & 3) + 4 : 0 }
    set { word2 = word2 & ~(3 << 2) | UInt64(newValue - 4) << 2 }
  }
  /// The first table of the first stage: in the second stage, where that is nested below.
  var firstStageTable: UInt64 {
    get { word2 & Self.pointerMask }
    set { word2 = word2 & ~Self.pointerMask | newValue & Self.pointerMask }
  }

  /// Why hardware cannot use the entry, by the number of the fault; nil when it can.
  func fault(_ registers: VTdRegisters) -> VTdReason? {
    guard isPresent else { return registers.hasScalableMode ? .entryNotPresent : .contextNotPresent }
    guard let kind else { return .invalidEntry }
    if kind != .secondStage {
      guard registers.hasScalableMode, registers.hasFirstStage else { return .invalidEntry }
      guard firstStageLevels == 4 || firstStageLevels == 5 && registers.hasFiveLevelFirstStage else {
        return .invalidEntry
      }
    }
    if kind == .nested, !registers.nests { return .invalidEntry }
    if kind != .firstStage, !registers.secondStageLevels.contains(Int(secondStageLevels)) { return .invalidEntry }
    return nil
  }
}

/// Stage 1 as a process describes it to the kernel: `struct iommu_hwpt_vtd_s1`.
struct VTdStage1: Equatable, Sendable {
  /// `IOMMU_VTD_S1_SRE`, `_EAFE`, `_WPE`.
  var flags: UInt64
  /// The first table, in stage 2.
  var table: UInt64
  /// 48 for four levels, 57 for five.
  var addressBits: UInt32

  /// The kernel looks at none of it before the first device is attached. EINVAL for a structure that is too short, E2BIG for
  /// one with more than this in it.
  init(_ bytes: [UInt8]) throws(Errno) {
    guard bytes.count >= 24 else { throw .invalidArgument }
    guard bytes.dropFirst(24).allSatisfy({ $0 == 0 }) else { throw .tooBig }
    func word(_ offset: Int) -> UInt64 {
      (0..<8).reduce(0) { $0 | UInt64(bytes[offset + $1]) << UInt64($1 * 8) }
    }
    (flags, table, addressBits) = (word(0), word(8), UInt32(truncatingIfNeeded: word(16)))
  }

  /// What the kernel asks of hardware when a device is attached, `domain_setup_nested`: EINVAL.
  func check(_ registers: VTdRegisters) throws(Errno) {
    let isSupervisor = flags & 1 != 0, hasExtendedAccess = flags & 2 != 0
    if isSupervisor, !registers.hasSupervisorRequests { throw .invalidArgument }
    if hasExtendedAccess, !registers.hasExtendedAccessedFlags { throw .invalidArgument }
    guard addressBits == 48 || addressBits == 57 && registers.hasFiveLevelFirstStage else { throw .invalidArgument }
  }
}
