/// The identification registers of a simulated SMMUv3, and their fields by name.
///
/// The defaults are those of QEMU's `virt` machine. Registers and fields are the same bits: a test switches off one feature by
/// its name, or takes over what some machine's registers read. The layout is chapter 6.3 of the SMMUv3 specification.
///
/// ```swift
/// var machine = SimulatedMachine.smmuv3Nested
/// machine.smmu.hasRangeInvalidation = false
/// machine.smmu.commandQueueShift = 6
/// ```
public struct SMMURegisters: Hashable, Sendable {
  /// `SMMU_IDR0`: both stages, coherent, 16-bit ASIDs and VMIDs, AArch64 tables, little endian, no stall.
  public var idr0: UInt32 = 0x0d44_101b
  /// `SMMU_IDR1`: queues of 2^19 entries, 16 bits of stream id, no substreams.
  public var idr1: UInt32 = 0x0273_0010
  /// `SMMU_IDR2`.
  public var idr2: UInt32 = 0
  /// `SMMU_IDR3`: range invalidation, BBML 2, no S2FWB.
  public var idr3: UInt32 = 0x1414
  /// `SMMU_IDR4`.
  public var idr4: UInt32 = 0
  /// `SMMU_IDR5`: granules of 4, 16 and 64 KiB, 44 output bits.
  public var idr5: UInt32 = 0x74
  /// `SMMU_IIDR`: no implementer.
  public var iidr: UInt32 = 0
  /// `SMMU_AIDR`: SMMUv3.1.
  public var aidr: UInt32 = 1

  /// QEMU's registers.
  public init() {}

  /// All of them, as `IOMMU_GET_HW_INFO` gives them.
  var words: [UInt32] { [idr0, idr1, idr2, idr3, idr4, idr5, iidr, aidr] }

  /// What happens to a transaction that faults, `IDR0.STALL_MODEL`.
  public enum StallModel: UInt32, Hashable, Sendable {
    /// A context descriptor chooses.
    case chosen = 0
    /// It is terminated.
    case terminate = 1
    /// It always stalls.
    case forced = 2
  }

  /// The byte order of page tables, `IDR0.TTENDIAN`.
  public enum ByteOrder: UInt32, Hashable, Sendable {
    /// A context descriptor chooses.
    case chosen = 0
    /// Little endian only.
    case little = 2
    /// Big endian only.
    case big = 3
  }
}

extension SMMURegisters {
  private static func field(_ word: UInt32, _ bits: ClosedRange<UInt32>) -> UInt32 {
    word >> bits.lowerBound & (1 << UInt32(bits.count) - 1)
  }

  private static func set(_ word: inout UInt32, _ bits: ClosedRange<UInt32>, _ value: UInt32) {
    let mask: UInt32 = 1 << UInt32(bits.count) - 1
    precondition(value <= mask, "the field has \(bits.count) bits")
    word = word & ~(mask << bits.lowerBound) | value << bits.lowerBound
  }

  /// Stage 2 translation, `IDR0.S2P`. Nesting takes both stages.
  public var hasStage2: Bool {
    get { Self.field(idr0, 0...0) == 1 }
    set { Self.set(&idr0, 0...0, newValue ? 1 : 0) }
  }
  /// Stage 1 translation, `IDR0.S1P`.
  public var hasStage1: Bool {
    get { Self.field(idr0, 1...1) == 1 }
    set { Self.set(&idr0, 1...1, newValue ? 1 : 0) }
  }
  /// ASIDs of 16 bits, `IDR0.ASID16`; of 8 without.
  public var has16BitASIDs: Bool {
    get { Self.field(idr0, 12...12) == 1 }
    set { Self.set(&idr0, 12...12, newValue ? 1 : 0) }
  }
  /// VMIDs of 16 bits, `IDR0.VMID16`; of 8 without: so many nest parents there can be at once.
  public var has16BitVMIDs: Bool {
    get { Self.field(idr0, 18...18) == 1 }
    set { Self.set(&idr0, 18...18, newValue ? 1 : 0) }
  }
  /// `IDR0.TTENDIAN`; reserved values read as little endian.
  public var tableByteOrder: ByteOrder {
    get { ByteOrder(rawValue: Self.field(idr0, 21...22)) ?? .little }
    set { Self.set(&idr0, 21...22, newValue.rawValue) }
  }
  /// `IDR0.STALL_MODEL`; the reserved value reads as terminate.
  public var stallModel: StallModel {
    get { StallModel(rawValue: Self.field(idr0, 24...25)) ?? .terminate }
    set { Self.set(&idr0, 24...25, newValue.rawValue) }
  }
  /// Whether what is terminated must be aborted, `IDR0.TERM_MODEL`: a context descriptor's A bit is one then.
  var mustAbort: Bool { Self.field(idr0, 26...26) == 1 }

  /// Binary logarithm of the command queue's entries, `IDR1.CMDQS`, 0…19.
  public var commandQueueShift: Int {
    get { Int(Self.field(idr1, 21...25)) }
    set { Self.set(&idr1, 21...25, UInt32(newValue)) }
  }
  /// Binary logarithm of the event queue's entries, `IDR1.EVENTQS`, 0…19.
  public var eventQueueShift: Int {
    get { Int(Self.field(idr1, 16...20)) }
    set { Self.set(&idr1, 16...20, UInt32(newValue)) }
  }
  /// Bits of a substream id, `IDR1.SSIDSIZE`; 0 is no PASIDs.
  public var substreamBits: Int {
    get { Int(Self.field(idr1, 6...10)) }
    set { Self.set(&idr1, 6...10, UInt32(newValue)) }
  }

  /// Invalidation of ranges by one command, `IDR3.RIL`.
  public var hasRangeInvalidation: Bool {
    get { Self.field(idr3, 10...10) == 1 }
    set { Self.set(&idr3, 10...10, newValue ? 1 : 0) }
  }
  /// Whether stage 2 can force write-back memory, `IDR3.FWB`: one of two ways to be coherent under a process's stage 1.
  public var hasStage2ForcedWriteBack: Bool {
    get { Self.field(idr3, 8...8) == 1 }
    set { Self.set(&idr3, 8...8, newValue ? 1 : 0) }
  }

  /// Output address bits, `IDR5.OAS`: 32, 36, 40, 42, 44, 48 or 52. Also the input bits of stage 2.
  public var outputBits: Int {
    get { Self.addressBits(Self.field(idr5, 0...2)) }
    set {
      guard let code = Self.sizes.firstIndex(of: newValue) else { preconditionFailure("OAS knows no \(newValue) bits") }
      Self.set(&idr5, 0...2, UInt32(code))
    }
  }
  /// Tables with a granule of 4 KiB, `IDR5.GRAN4K`.
  public var has4KiBGranule: Bool {
    get { Self.field(idr5, 4...4) == 1 }
    set { Self.set(&idr5, 4...4, newValue ? 1 : 0) }
  }
  /// Tables with a granule of 16 KiB, `IDR5.GRAN16K`.
  public var has16KiBGranule: Bool {
    get { Self.field(idr5, 5...5) == 1 }
    set { Self.set(&idr5, 5...5, newValue ? 1 : 0) }
  }
  /// Tables with a granule of 64 KiB, `IDR5.GRAN64K`.
  public var has64KiBGranule: Bool {
    get { Self.field(idr5, 6...6) == 1 }
    set { Self.set(&idr5, 6...6, newValue ? 1 : 0) }
  }

  private static let sizes = [32, 36, 40, 42, 44, 48, 52]

  /// The bits that a code of OAS or of a context descriptor's IPS stands for; reserved codes stand for 52.
  static func addressBits(_ code: UInt32) -> Int { code < 7 ? sizes[Int(code)] : 52 }
}
