/// An NVMe controller with one namespace in memory: what a queue-pair driver needs, and no more.
///
/// BAR 0 has the controller registers, the doorbells from 0x1000 on, and the MSI-X table at 0x2000. Admin commands:
/// identify, create and delete I/O queues, get and set features (number of queues), get log page, abort, asynchronous
/// event request (kept, never answered). I/O commands: flush, write, read, write zeroes; data by PRP1, PRP2 and
/// PRP lists. Completions are polled by their phase bit or announced by MSI-X, MSI or INTx. Blocks have 512 bytes.
///
/// A request that the IOMMU refuses ends a command with Data Transfer Error; a queue that cannot be read or written
/// is fatal to the controller (CSTS.CFS), as on hardware. The reference is NVM Express, revision 1.4.
public struct NVMeModel: DeviceModel {
  /// Length of the namespace in blocks of 512 bytes.
  public let blockCount: UInt64
  /// Commands completed since power on, admin and I/O.
  public internal(set) var completedCount = 0
  /// The contents of the namespace.
  public internal(set) var storage = BlockStorage()

  var registers = Registers()
  var submissionQueues: [UInt16: SubmissionQueue] = [:]
  var completionQueues: [UInt16: CompletionQueue] = [:]
  /// Asynchronous event requests that wait for an event.
  var heldEventRequests = 0
  private let serialNumber: String

  /// Bytes of a block.
  public static let blockByteCount = 512
  /// I/O queue pairs that the controller offers.
  static let ioQueueLimit: UInt16 = 64
  /// Entries of a queue, 1-based.
  static let queueEntryLimit = 2048
  /// Largest transfer of a command in bytes: 2^MDTS pages of 4 KiB.
  static let transferLimit = 4096 << 7

  /// A controller whose namespace has this many bytes, rounded down to blocks, all zero.
  public init(byteCount: UInt64 = 64 << 20, serialNumber: String = "SIMULATED") {
    blockCount = byteCount / UInt64(Self.blockByteCount)
    self.serialNumber = serialNumber
  }

  /// An NVMe controller with 65 MSI-X vectors and function-level reset.
  public var identity: DeviceIdentity {
    var identity = DeviceIdentity(
      vendor: 0x1b36, device: 0x0010, classCode: 0x010802, revision: 2,
      bars: [.memory(16 << 10, is64Bit: true), .none], msiCount: 0, msixCount: 65,
      msixTable: (bar: 0, offset: 0x2000), canReset: true)
    (identity.subsystemVendor, identity.subsystemDevice) = (0x1af4, 0x1100)
    return identity
  }

  var serial: String { serialNumber }

  /// Back to a disabled controller without queues. The namespace keeps its contents.
  public mutating func reset() {
    registers = Registers()
    dropQueues()
  }

  mutating func dropQueues() {
    (submissionQueues, completionQueues, heldEventRequests) = ([:], [:], 0)
  }
}

// MARK: - Registers

extension NVMeModel {
  /// The controller's registers that hold something.
  struct Registers {
    var configuration: UInt32 = 0
    var status: UInt32 = 0
    var interruptMask: UInt32 = 0
    var adminAttributes: UInt32 = 0
    var adminSubmission: UInt64 = 0
    var adminCompletion: UInt64 = 0

    var isEnabled: Bool { configuration & 1 != 0 }
    var isReady: Bool { status & 1 != 0 }
    /// Bytes of the memory pages that PRPs count in.
    var pageByteCount: Int { 4096 << Int(configuration >> 7 & 0xf) }
  }

  enum Status {
    static let ready: UInt32 = 1, fatal: UInt32 = 2, shutdownComplete: UInt32 = 2 << 2
  }

  /// CAP: 2048 entries a queue, contiguous queues, 7.5 s to become ready, NVM commands, pages of 4 KiB to 64 KiB.
  private static let capability: UInt64 =
    UInt64(queueEntryLimit - 1) | 1 << 16 | 0xf << 24 | 1 << 37 | 4 << 52

  /// Reads a register, as a whole or by halves.
  public func read(bar: Int, offset: UInt64, width: Int, bus: DeviceBus) -> UInt64 {
    guard bar == 0 else { return .max }
    let value = register(offset & ~7)
    return value >> ((offset & 7) * 8)
  }

  /// The eight bytes of registers at an aligned offset.
  private func register(_ offset: UInt64) -> UInt64 {
    switch offset {
    case 0x00: Self.capability
    case 0x08: 0x0001_0400 | UInt64(registers.interruptMask) << 32
    case 0x10: UInt64(registers.interruptMask) | UInt64(registers.configuration) << 32
    case 0x18: UInt64(registers.status) << 32
    case 0x20: UInt64(registers.adminAttributes) << 32
    case 0x28: registers.adminSubmission
    case 0x30: registers.adminCompletion
    default: 0
    }
  }

  /// Writes a register or rings a doorbell.
  public mutating func write(_ value: UInt64, bar: Int, offset: UInt64, width: Int, bus: DeviceBus) {
    guard bar == 0, width >= 4 else { return }
    let word = UInt32(truncatingIfNeeded: value)
    switch offset {
    case 0x0c: registers.interruptMask |= word
    case 0x10: registers.interruptMask &= ~word
    case 0x14: configure(word, bus)
    case 0x24: registers.adminAttributes = word & 0x0fff_0fff
    case 0x28: Self.store(value, width, into: &registers.adminSubmission)
    case 0x2c: registers.adminSubmission = registers.adminSubmission & 0xffff_ffff | value << 32
    case 0x30: Self.store(value, width, into: &registers.adminCompletion)
    case 0x34: registers.adminCompletion = registers.adminCompletion & 0xffff_ffff | value << 32
    case 0x1000..<0x2000: ring(offset, UInt16(truncatingIfNeeded: word), bus)
    default: break
    }
  }

  /// The low half, or all of it with a 64-bit write. The address is that of a page.
  private static func store(_ value: UInt64, _ width: Int, into register: inout UInt64) {
    let merged = width == 8 ? value : register & ~0xffff_ffff | value & 0xffff_ffff
    register = merged & ~0xfff
  }

  /// CC: enable, disable, shut down.
  private mutating func configure(_ value: UInt32, _ bus: DeviceBus) {
    let wasEnabled = registers.isEnabled
    registers.configuration = value
    if !wasEnabled && registers.isEnabled { start() }
    if wasEnabled && !registers.isEnabled {
      dropQueues()
      registers.status &= ~(Status.ready | Status.fatal)
      bus.setPin(false)
    }
    let isShutdown = value >> 14 & 3 != 0
    registers.status = registers.status & ~0xc | (isShutdown ? Status.shutdownComplete : 0)
  }

  /// Enabling makes the admin queues; what makes no sense is fatal.
  private mutating func start() {
    let submissionEntries = Int(registers.adminAttributes & 0xfff) + 1
    let completionEntries = Int(registers.adminAttributes >> 16 & 0xfff) + 1
    let pageExponent = registers.configuration >> 7 & 0xf, commandSet = registers.configuration >> 4 & 7
    guard submissionEntries > 1, completionEntries > 1, pageExponent <= 4, commandSet == 0,
      registers.adminSubmission != 0, registers.adminCompletion != 0
    else {
      registers.status |= Status.fatal
      return
    }
    completionQueues[0] = CompletionQueue(
      address: registers.adminCompletion, entryCount: completionEntries, vector: 0, interrupts: true)
    submissionQueues[0] = SubmissionQueue(
      address: registers.adminSubmission, entryCount: submissionEntries, completionQueue: 0)
    registers.status |= Status.ready
  }
}
