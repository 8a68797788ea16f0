/// The capability registers of a simulated VT-d, and their fields by name.
///
/// The defaults are those of QEMU in scalable mode, with what nesting takes beside: first-stage tables, `NEST` and coherent walks,
/// which no emulator has. Registers and fields are the same bits: a test switches off one feature by its name, or takes
/// over what some machine's registers read. The layout is chapter 11.4 of the VT-d specification (D51397).
///
/// ```swift
/// var machine = SimulatedMachine.vtdNested
/// machine.vtdRegisters?.hasFiveLevelFirstStage = true
/// machine.vtdRegisters?.maximumAddressMask = 9
/// ```
public struct VTdRegisters: Hashable, Sendable {
  /// `CAP_REG`: 65,536 domains, 3 and 4 levels, 48 bits, leaves of 2 MiB and 1 GiB, page-selective invalidation of up to 1 GiB, one
  /// fault recording register.
  public var capability: UInt64 = 0x01d2_008c_222f_0606
  /// `ECAP_REG`: queued invalidation, interrupt remapping, scalable mode with both stages, nesting, coherent walks.
  public var extendedCapability: UInt64 = 0x0001_c800_84f0_0f4a

  /// A machine that nests.
  public init() {}

  /// A reading of both registers.
  public init(capability: UInt64, extendedCapability: UInt64) {
    (self.capability, self.extendedCapability) = (capability, extendedCapability)
  }
}

extension VTdRegisters {
  private static func field(_ word: UInt64, _ bits: ClosedRange<UInt64>) -> UInt64 {
    word >> bits.lowerBound & (1 << UInt64(bits.count) - 1)
  }

  private static func set(_ word: inout UInt64, _ bits: ClosedRange<UInt64>, _ value: UInt64) {
    let mask: UInt64 = 1 << UInt64(bits.count) - 1
    precondition(value <= mask, "the field has \(bits.count) bits")
    word = word & ~(mask << bits.lowerBound) | value << bits.lowerBound
  }

  private subscript(capability bit: UInt64) -> Bool {
    get { capability >> bit & 1 == 1 }
    set { Self.set(&capability, bit...bit, newValue ? 1 : 0) }
  }

  private subscript(extended bit: UInt64) -> Bool {
    get { extendedCapability >> bit & 1 == 1 }
    set { Self.set(&extendedCapability, bit...bit, newValue ? 1 : 0) }
  }
}

// MARK: - CAP_REG

extension VTdRegisters {
  /// Whether writes to tables stay in a buffer of the hardware's until software flushes it, `CAP.RWBF`.
  public var needsWriteBufferFlush: Bool {
    get { self[capability: 4] }
    set { self[capability: 4] = newValue }
  }
  /// Caching mode, `CAP.CM`: what is not present may be cached too, as an emulator does.
  public var isCachingMode: Bool {
    get { self[capability: 7] }
    set { self[capability: 7] = newValue }
  }
  /// How many levels second-stage tables may have, of 3, 4 and 5: `CAP.SAGAW`.
  public var secondStageLevels: Set<Int> {
    get { Set((3...5).filter { self[capability: 6 + UInt64($0)] }) }
    set { for levels in 3...5 { self[capability: 6 + UInt64(levels)] = newValue.contains(levels) } }
  }
  /// Bits of an address that second-stage tables translate at most, `CAP.MGAW`.
  public var guestAddressBits: Int {
    get { Int(Self.field(capability, 16...21)) + 1 }
    set { Self.set(&capability, 16...21, UInt64(newValue - 1)) }
  }
  /// Second-stage leaves of 2 MiB, bit 0 of `CAP.SSLPS`.
  public var has2MiBSecondStagePages: Bool {
    get { self[capability: 34] }
    set { self[capability: 34] = newValue }
  }
  /// Second-stage leaves of 1 GiB, bit 1 of `CAP.SSLPS`.
  public var has1GiBSecondStagePages: Bool {
    get { self[capability: 35] }
    set { self[capability: 35] = newValue }
  }
  /// Invalidation of single pages of a domain, `CAP.PSI`.
  public var hasPageSelectiveInvalidation: Bool {
    get { self[capability: 39] }
    set { self[capability: 39] = newValue }
  }
  /// Fault recording registers, 1…256: `CAP.NFR`.
  public var faultRegisterCount: Int {
    get { Int(Self.field(capability, 40...47)) + 1 }
    set { Self.set(&capability, 40...47, UInt64(newValue - 1)) }
  }
  /// Binary logarithm of the pages that one descriptor invalidates at most, `CAP.MAMV`.
  public var maximumAddressMask: Int {
    get { Int(Self.field(capability, 48...53)) }
    set { Self.set(&capability, 48...53, UInt64(newValue)) }
  }
  /// First-stage leaves of 1 GiB, `CAP.FS1GP`.
  public var has1GiBFirstStagePages: Bool {
    get { self[capability: 56] }
    set { self[capability: 56] = newValue }
  }
  /// First-stage tables of five levels, `CAP.FS5LP`.
  public var hasFiveLevelFirstStage: Bool {
    get { self[capability: 60] }
    set { self[capability: 60] = newValue }
  }
}

// MARK: - ECAP_REG

extension VTdRegisters {
  /// Interrupt remapping, `ECAP.IR`. ``SimulatedMachine/isolatesInterrupts`` decides it in a machine.
  public var remapsInterrupts: Bool {
    get { self[extended: 3] }
    set { self[extended: 3] = newValue }
  }
  /// Nested translation, `ECAP.NEST`.
  public var hasNesting: Bool {
    get { self[extended: 26] }
    set { self[extended: 26] = newValue }
  }
  /// Requests with a supervisor's privilege, `ECAP.SRS`.
  public var hasSupervisorRequests: Bool {
    get { self[extended: 31] }
    set { self[extended: 31] = newValue }
  }
  /// Extended accessed flags, `ECAP.EAFS`.
  public var hasExtendedAccessedFlags: Bool {
    get { self[extended: 34] }
    set { self[extended: 34] = newValue }
  }
  /// Scalable mode, `ECAP.SMTS`. Without it there are second-stage tables alone.
  public var hasScalableMode: Bool {
    get { self[extended: 43] }
    set { self[extended: 43] = newValue }
  }
  /// Second-stage tables in scalable mode, `ECAP.SSTS`, which Linux calls SLTS.
  public var hasSecondStage: Bool {
    get { self[extended: 46] }
    set { self[extended: 46] = newValue }
  }
  /// First-stage tables, `ECAP.FSTS`, which Linux calls FLTS.
  public var hasFirstStage: Bool {
    get { self[extended: 47] }
    set { self[extended: 47] = newValue }
  }
  /// Walks that see what is in the processor's caches, `ECAP.SMPWCS`.
  public var hasCoherentWalks: Bool {
    get { self[extended: 48] }
    set { self[extended: 48] = newValue }
  }
}

extension VTdRegisters {
  /// Whether second-stage tables may be nest parents: `nested_supported` of the kernel's driver, and that there are any.
  var nests: Bool { hasScalableMode && hasNesting && hasSecondStage }
  /// Whether the kernel's own domains have first-stage tables, which it prefers.
  var prefersFirstStage: Bool { hasScalableMode && hasFirstStage }

  /// The levels of second-stage tables as the kernel makes them: the most there are.
  var usedSecondStageLevels: Int { secondStageLevels.max() ?? 3 }
  /// The highest address that second-stage tables translate.
  var secondStageLast: UInt64 { 1 << UInt64(min(guestAddressBits, 12 + 9 * usedSecondStageLevels)) - 1 }
  /// The same of the kernel's first-stage tables: the lower half, as the others are sign-extended.
  var firstStageLast: UInt64 { 1 << (hasFiveLevelFirstStage ? 56 : 47) - 1 }
}
