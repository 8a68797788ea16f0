import IOMMU

/// A stream table entry: the two words of it that a process describes, and what the kernel adds.
///
/// The layout is chapter 5.2 of the SMMUv3 specification; the masks are those of the kernel's driver (`STRTAB_STE_*_NESTING_ALLOWED`).
struct StreamTableEntry: Equatable, Sendable, BitwiseCopyable {
  /// V, Config, S1Fmt, S1ContextPtr, S1CDMax.
  var word0: UInt64
  /// S1DSS, S1CIR, S1COR, S1CSH, S1STALLD, EATS.
  var word1: UInt64
  /// The stage 2 below, which is the kernel's to say: its tag, and the domain that has its map.
  var vmid: UInt16 = 0
  var stage2 = SimulatedIOMMU.DomainID(number: 0, tag: 0)

  enum Configuration: UInt8 {
    /// Every transaction ends without an event.
    case abort
    /// Stage 2 alone: an input address is an IPA.
    case stage2
    /// Stage 1 of a context descriptor over stage 2.
    case nested
    /// `C_BAD_STE`.
    case illegal
  }

  private static let allowed0: UInt64 = 0xf80f_ffff_ffff_ffff
  private static let allowed1: UInt64 = 0x3800_00ff
  private static let contextMask: UInt64 = 0x000f_ffff_ffff_ffc0

  /// The kernel's checks of a process's entry, `arm_smmu_validate_vste`: EIO for what it may not say. An invalid one aborts.
  init(validating word0: UInt64, _ word1: UInt64) throws(Errno) {
    guard word0 & 1 == 1 else {
      self.init(word0: 0, word1: 0)
      return
    }
    guard word0 & ~Self.allowed0 == 0, word1 & ~Self.allowed1 == 0 else { throw .inputOutput }
    guard [0, 4, 5].contains(word0 >> 1 & 7), word1 >> 28 & 3 < 2 else { throw .inputOutput }
    self.init(word0: word0, word1: word1)
  }

  init(word0: UInt64, word1: UInt64) { (self.word0, self.word1) = (word0, word1) }

  /// Whether stage 1 is in use, which takes a vDEVICE.
  var translates: Bool { word0 >> 1 & 7 == 5 }

  /// What hardware makes of it.
  func configuration(_ registers: SMMURegisters) -> Configuration {
    guard word0 & 1 == 1 else { return .abort }
    switch word0 >> 1 & 7 {
    case 0: return .abort
    case 4: return .stage2
    default: break
    }
    let contextBits = word0 >> 59, stallsAreOff = word1 >> 27 & 1
    guard contextBits == 0 || contextBits <= registers.substreamBits,
      stallsAreOff == 0 || registers.stallModel == .chosen
    else { return .illegal }
    return .nested
  }

  /// Where the context descriptors are, in stage 2.
  var contextPointer: UInt64 { word0 & Self.contextMask }
}
