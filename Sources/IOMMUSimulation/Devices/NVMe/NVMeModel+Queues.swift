extension NVMeModel {
  /// A ring of commands that the driver fills.
  struct SubmissionQueue {
    let address: UInt64
    let entryCount: Int
    let completionQueue: UInt16
    var head = 0, tail = 0
  }

  /// A ring of completions that the controller fills.
  struct CompletionQueue {
    let address: UInt64
    let entryCount: Int
    let vector: Int
    let interrupts: Bool
    var head = 0, tail = 0
    var phase: UInt32 = 1

    var isFull: Bool { (tail + 1) % entryCount == head }
    var isEmpty: Bool { head == tail }
  }

  /// A command of 64 bytes.
  struct Command {
    let words: [UInt32]

    init(_ bytes: [UInt8]) {
      words = stride(from: 0, to: 64, by: 4).map { offset in
        (0..<4).reduce(0) { $0 | UInt32(bytes[offset + $1]) << (8 * UInt32($1)) }
      }
    }

    var opcode: UInt8 { UInt8(truncatingIfNeeded: words[0]) }
    var identifier: UInt16 { UInt16(words[0] >> 16) }
    /// PRP or SGL for data transfer; only PRPs here.
    var usesPRP: Bool { words[0] >> 14 & 3 == 0 }
    var namespace: UInt32 { words[1] }
    var prp1: UInt64 { UInt64(words[6]) | UInt64(words[7]) << 32 }
    var prp2: UInt64 { UInt64(words[8]) | UInt64(words[9]) << 32 }
  }

  /// How a command ended: status code type and status code, and the first word of the completion.
  struct Outcome {
    var status: UInt16 = 0
    var result: UInt32 = 0

    static let success = Outcome()
    static func generic(_ code: UInt16) -> Outcome { Outcome(status: code) }
    static func specific(_ code: UInt16) -> Outcome { Outcome(status: 1 << 8 | code) }

    static let invalidOpcode = generic(0x01), invalidField = generic(0x02)
    static let transferError = generic(0x04), invalidNamespace = generic(0x0b)
    static let invalidOffset = generic(0x13), outOfRange = generic(0x80)
    static let invalidCompletionQueue = specific(0x00), invalidQueue = specific(0x01)
    static let invalidQueueSize = specific(0x02), invalidVector = specific(0x08)
    static let invalidDeletion = specific(0x0c)
  }

  /// A doorbell: submission tails at even places, completion heads at odd ones.
  mutating func ring(_ offset: UInt64, _ value: UInt16, _ bus: DeviceBus) {
    guard registers.isReady, registers.status & Status.fatal == 0 else { return }
    let place = (offset - 0x1000) / 4
    let id = UInt16(place / 2)
    if place % 2 == 0 {
      guard let queue = submissionQueues[id], value < queue.entryCount else { return fail() }
      submissionQueues[id]!.tail = Int(value)
      work(id, bus)
    } else {
      guard let queue = completionQueues[id], value < queue.entryCount else { return fail() }
      completionQueues[id]!.head = Int(value)
      updatePin(bus)
      // A full completion queue held its submission queues back.
      for submission in submissionQueues.keys.sorted()
      where submissionQueues[submission]?.completionQueue == id { work(submission, bus) }
    }
  }

  mutating func fail() { registers.status |= Status.fatal }

  /// Takes commands until the queue is empty or there is no room for a completion.
  private mutating func work(_ id: UInt16, _ bus: DeviceBus) {
    while let queue = submissionQueues[id], queue.head != queue.tail,
      let completion = completionQueues[queue.completionQueue], !completion.isFull
    {
      let address = queue.address + UInt64(queue.head) * 64
      guard let bytes = try? bus.read(address, byteCount: 64) else { return fail() }
      submissionQueues[id]!.head = (queue.head + 1) % queue.entryCount
      let command = Command(bytes)
      let outcome = id == 0 ? administer(command, bus) : transfer(command, bus)
      guard let outcome else { continue }
      guard complete(command, of: id, outcome, in: queue.completionQueue, bus) else { return fail() }
    }
  }

  /// Writes a completion and announces it.
  private mutating func complete(
    _ command: Command, of id: UInt16, _ outcome: Outcome, in completionID: UInt16, _ bus: DeviceBus
  ) -> Bool {
    guard var queue = completionQueues[completionID] else { return true }
    let head = UInt32(submissionQueues[id]?.head ?? 0)
    let state = UInt32(command.identifier) | queue.phase << 16 | UInt32(outcome.status) << 17
    let words: [UInt32] = [outcome.result, 0, head | UInt32(id) << 16, state]
    let bytes = words.flatMap { word in (0..<4).map { UInt8(truncatingIfNeeded: word >> (8 * UInt32($0))) } }
    guard (try? bus.write(bytes, to: queue.address + UInt64(queue.tail) * 16)) != nil else { return false }
    queue.tail = (queue.tail + 1) % queue.entryCount
    if queue.tail == 0 { queue.phase ^= 1 }
    completionQueues[completionID] = queue
    completedCount += 1
    if queue.interrupts {
      if bus.usesMessages { bus.interrupt(queue.vector) } else { updatePin(bus) }
    }
    return true
  }

  /// The pin is driven while a queue that interrupts has completions that the driver did not take.
  private func updatePin(_ bus: DeviceBus) {
    guard !bus.usesMessages else { return }
    let pending = completionQueues.values.contains {
      $0.interrupts && !$0.isEmpty && registers.interruptMask >> UInt32($0.vector & 31) & 1 == 0
    }
    bus.setPin(pending)
  }
}
