/// A submission queue entry: 64 bytes, little endian. The reference is NVM Express 1.4, section 4.2.
public struct Command: BitwiseCopyable, Sendable {
  /// Opcode, and from bit 16 on the identifier that the completion repeats.
  var opcodeAndIdentifier: UInt32
  var namespace: UInt32
  private var reserved: UInt64 = 0
  private var metadata: UInt64 = 0
  /// Where the data is: the first page, and the second or a list of the others.
  var page1: UInt64 = 0, page2: UInt64 = 0
  var words: (UInt32, UInt32, UInt32, UInt32, UInt32, UInt32) = (0, 0, 0, 0, 0, 0)

  init(_ opcode: Opcode, namespace: UInt32 = 0) {
    (opcodeAndIdentifier, self.namespace) = (UInt32(opcode.rawValue), namespace)
  }

  var opcode: UInt8 { UInt8(truncatingIfNeeded: opcodeAndIdentifier) }

  /// The commands that this driver sends: admin commands, and those of an I/O queue.
  enum Opcode: UInt8 {
    case deleteSubmissionQueue = 0x00, createSubmissionQueue = 0x01, getLogPage = 0x02
    case deleteCompletionQueue = 0x04, createCompletionQueue = 0x05
    case identify = 0x06
    static let flush: UInt8 = 0x00, write: UInt8 = 0x01, read: UInt8 = 0x02
  }

  /// A read or write of `blockCount` blocks, 1…65,536.
  init(ioOpcode: UInt8, namespace: UInt32, block: UInt64, blockCount: Int) {
    (opcodeAndIdentifier, self.namespace) = (UInt32(ioOpcode), namespace)
    words.0 = UInt32(truncatingIfNeeded: block)
    words.1 = UInt32(truncatingIfNeeded: block >> 32)
    words.2 = UInt32(blockCount - 1)
  }
}

/// A command's end: what it returned, and its status.
public struct Completion: Sendable {
  /// The command's own result, 0 for most.
  public var result: UInt32
  /// The identifier of the command.
  var identifier: UInt16
  /// Status without the phase bit: the code in bits 0…7, its type in bits 8…10.
  var status: UInt16

  func check(_ command: Command) throws(NVMeError) {
    guard status & 0x7ff != 0 else { return }
    throw .status(
      opcode: command.opcode, type: UInt8(status >> 8 & 7), code: UInt8(truncatingIfNeeded: status))
  }
}
