public import IOMMU

/// An NVMe controller with one pair of I/O queues, on this library's public interface alone.
///
/// ```swift
/// let controller = try NVMeController(Device("0000:05:00.0"), completions: .interrupt)
/// let mapping = try controller.device.dma.map(buffer, .fromDevice)
/// try controller.read(block: 0, count: 8, into: mapping.address)
/// ```
///
/// Commands are sent one at a time; one thread uses a controller. The reference is NVM Express 1.4.
public final class NVMeController {
  /// How the driver learns that a command has ended.
  public enum Completions: Sendable {
    /// It looks at the queue until the phase bit changes.
    case polled
    /// MSI-X: vector 0 for the admin queue, vector 1 for the I/O queue.
    case interrupt
  }

  /// The device underneath.
  public let device: Device
  /// Bytes of a block.
  public private(set) var blockByteCount = 512
  /// Blocks of the namespace.
  public private(set) var blockCount: UInt64 = 0
  /// Bytes that one command may move.
  public private(set) var transferLimit = 128 << 10
  /// The controller's serial number and model, without the spaces that fill them up.
  public private(set) var serial = "", model = ""

  let admin: QueuePair
  private(set) var io: QueuePair
  /// Addresses of the third page and those after it, for the one command under way.
  let pageList: CoherentArray<UInt64>
  let namespace: UInt32 = 1
  let timeout: Duration
  private let registers: Registers

  static let pageByteCount = 4096

  private enum Offset {
    static let capability = 0x00, configuration = 0x14, status = 0x1c
    static let adminQueueSizes = 0x24, adminSubmission = 0x28, adminCompletion = 0x30
  }

  /// Resets the controller, enables it, asks what it is, and makes one pair of I/O queues.
  public init(
    _ device: Device, completions: Completions = .polled, timeout: Duration = .seconds(10)
  ) throws(NVMeError) {
    (self.device, self.timeout) = (device, timeout)
    let registers = try library { () throws(DMAError) in try device.registers(bar: 0) }
    self.registers = registers
    // Doorbells are 4 << DSTRD bytes apart.
    let stride = 4 << Int(registers.load(at: Offset.capability, as: UInt64.self) >> 32 & 0xf)
    var interrupts: [Interrupt?] = [nil, nil]
    if completions == .interrupt {
      interrupts = try library { () throws(DMAError) in
        [try device.interrupt(0, .msix), try device.interrupt(1, .msix)]
      }
    }
    admin = try QueuePair(0, device, registers, stride: stride, interrupts[0])
    io = try QueuePair(1, device, registers, stride: stride, interrupts[1])
    pageList = try library { () throws(DMAError) in try device.dma.allocate(UInt64.self, count: 512) }
    try start()
    try identify()
    try createQueues(interrupts: completions == .interrupt)
  }

  deinit { registers[Offset.configuration] = 0 }

  /// Disables the controller, hands it the admin queues, and enables it.
  private func start() throws(NVMeError) {
    registers[Offset.configuration] = 0
    try waitUntilReady(false)
    let size = UInt32(QueuePair.entryCount - 1)
    registers[Offset.adminQueueSizes] = size << 16 | size
    registers.store(admin.submissions.address.rawValue, at: Offset.adminSubmission)
    registers.store(admin.completions.address.rawValue, at: Offset.adminCompletion)
    // Completion entries of 2^4 bytes, submission entries of 2^6, pages of 4 KiB, NVM commands, enabled.
    registers[Offset.configuration] = 4 << 20 | 6 << 16 | 1
    try waitUntilReady(true)
  }

  private func waitUntilReady(_ wanted: Bool) throws(NVMeError) {
    let deadline = ContinuousClock.now + timeout
    while true {
      let status = registers[Offset.status]
      if status & 1 == (wanted ? 1 : 0) { return }
      // Bit 1: fatal.
      if status & 2 != 0 || ContinuousClock.now > deadline { throw .notReady(status: status) }
    }
  }

  private func createQueues(interrupts: Bool) throws(NVMeError) {
    var completion = Command(.createCompletionQueue)
    completion.page1 = io.completions.address.rawValue
    completion.words.0 = UInt32(QueuePair.entryCount - 1) << 16 | UInt32(io.identifier)
    completion.words.1 = interrupts ? 1 << 16 | 2 | 1 : 1  // vector, interrupts, contiguous
    _ = try admin.perform(completion, timeout: timeout)
    var submission = Command(.createSubmissionQueue)
    submission.page1 = io.submissions.address.rawValue
    submission.words.0 = UInt32(QueuePair.entryCount - 1) << 16 | UInt32(io.identifier)
    submission.words.1 = UInt32(io.identifier) << 16 | 1  // its completion queue, contiguous
    _ = try admin.perform(submission, timeout: timeout)
  }

  private func identify() throws(NVMeError) {
    let page = try library { () throws(DMAError) in
      try device.dma.allocate(UInt8.self, count: Self.pageByteCount)
    }
    func text(_ range: Range<Int>) -> String {
      let bytes = range.map { page[$0] }
      let end = bytes.lastIndex { $0 != 0x20 && $0 != 0 }.map { $0 + 1 } ?? 0
      return String(decoding: bytes[..<end], as: UTF8.self)
    }
    func number(_ offset: Int, _ width: Int) -> UInt64 {
      (0..<width).reduce(0) { $0 | UInt64(page[offset + $1]) << (8 * UInt64($1)) }
    }
    var command = Command(.identify)
    command.page1 = page.address.rawValue
    command.words.0 = 1  // the controller
    _ = try admin.perform(command, timeout: timeout)
    (serial, model) = (text(4..<24), text(24..<64))
    let exponent = Int(page[77])  // MDTS: pages in one command, 0 for no limit
    transferLimit = min(exponent == 0 ? .max : Self.pageByteCount << exponent, 512 * Self.pageByteCount)
    command.words.0 = 0  // the namespace
    command.namespace = namespace
    _ = try admin.perform(command, timeout: timeout)
    blockCount = number(0, 8)
    let format = 128 + 4 * Int(page[26] & 0xf)
    blockByteCount = 1 << Int(page[format + 2])
    guard blockCount > 0, (512...4096).contains(blockByteCount) else {
      throw .unsupported("Namespace 1 has \(blockCount) blocks of \(blockByteCount) bytes")
    }
  }
}
