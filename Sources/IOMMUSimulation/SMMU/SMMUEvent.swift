/// A record of the event queue: 32 bytes in the layout of chapter 7.3 of the SMMUv3 specification.
struct SMMUEvent: Equatable, Sendable {
  /// Events that a simulated SMMU records.
  enum Kind: UInt8 {
    case badSTE = 0x04, badCD = 0x0a, contextFetch = 0x09, walkAbort = 0x0b
    case translation = 0x10, addressSize = 0x11, access = 0x12, permission = 0x13
  }
  /// What was being read when the fault came.
  enum Class: UInt64 { case context = 0, table = 1, input = 2 }

  var words: [UInt64]

  var kind: Kind { Kind(rawValue: UInt8(truncatingIfNeeded: words[0]))! }
  var stream: UInt32 {
    get { UInt32(truncatingIfNeeded: words[0] >> 32) }
    set { words[0] = words[0] & 0xffff_ffff | UInt64(newValue) << 32 }
  }
  var isRead: Bool { words[1] >> 35 & 1 == 1 }
  var isStage2: Bool { words[1] >> 39 & 1 == 1 }
  var reading: Class { Class(rawValue: words[1] >> 40 & 3)! }
  var address: UInt64 { words[2] }
  /// The page of stage 2 that faulted, where it was stage 2.
  var ipa: UInt64 { words[3] }

  init(_ fault: SMMUFault, stream: UInt32, isWrite: Bool) {
    words = [UInt64(fault.kind!.rawValue) | UInt64(stream) << 32, 0, 0, 0]
    switch fault.kind! {
    case .badSTE, .badCD: break
    case .contextFetch: words[3] = fault.ipa & ~0x3f
    case .walkAbort, .translation, .addressSize, .access, .permission:
      words[1] = (isWrite ? 0 : 1 << 35) | (fault.isStage2 ? 1 << 39 : 0) | fault.reading.rawValue << 40
      words[2] = fault.address
      if fault.isStage2 { words[3] = fault.ipa & ~0xfff }
    }
  }

  /// Whether iommufd's event queues are given it: what a process can have caused in its stage 1.
  var isForProcess: Bool {
    switch kind {
    case .badSTE, .badCD, .translation, .addressSize, .access, .permission: !isStage2
    case .contextFetch, .walkAbort: false
    }
  }

  var bytes: [UInt8] { words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } } }

  /// The name that the kernel's driver prints.
  var name: String {
    switch kind {
    case .badSTE: "C_BAD_STE"
    case .badCD: "C_BAD_CD"
    case .contextFetch: "F_CD_FETCH"
    case .walkAbort: "F_WALK_EABT"
    case .translation: "F_TRANSLATION"
    case .addressSize: "F_ADDR_SIZE"
    case .access: "F_ACCESS"
    case .permission: "F_PERMISSION"
    }
  }
}

/// Why a transaction was not translated.
struct SMMUFault: Error {
  /// The event; nil for a stream that aborts without one.
  var kind: SMMUEvent.Kind?
  /// The input address.
  var address: UInt64
  var reading = SMMUEvent.Class.input
  var isStage2 = false
  var ipa: UInt64 = 0
  /// Whether an event is recorded: a context descriptor may say no (`CD.R`).
  var isRecorded = true

  /// The same in the simulated machine's words.
  var reason: SimulatedFault.Reason {
    switch kind {
    case nil: .blocked
    case .badSTE, .badCD, .contextFetch, .walkAbort: .configuration
    case .translation: .notMapped
    case .addressSize: .addressSize
    case .access: .accessFlag
    case .permission: .permission
    }
  }
}
