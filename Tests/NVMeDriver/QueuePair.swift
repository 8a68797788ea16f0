import IOMMU

/// A submission queue and its completion queue, in memory that both sides see.
///
/// Not thread-safe: one thread drives a pair, as is usual with NVMe.
final class QueuePair {
  /// 64 entries of 64 bytes: one page.
  static let entryCount = 64
  let submissions: CoherentArray<Command>
  /// Four words an entry: words, since the one with the phase must be read before the others. More than is used: a
  /// queue begins on a page, and an array of a whole page does.
  let completions: CoherentArray<UInt32>
  let identifier: Int
  private let registers: Registers
  private let submissionDoorbell: Int, completionDoorbell: Int
  private let interrupt: Interrupt?
  private var tail = 0, head = 0
  /// What the phase bit of a fresh completion is; it changes with each round of the queue.
  private var phase: UInt32 = 1
  private var nextIdentifier: UInt16 = 0

  init(_ identifier: Int, _ device: Device, _ registers: Registers, stride: Int, _ interrupt: Interrupt?)
    throws(NVMeError)
  {
    (self.identifier, self.registers, self.interrupt) = (identifier, registers, interrupt)
    submissions = try library { () throws(DMAError) in
      try device.dma.allocate(Command.self, count: Self.entryCount)
    }
    completions = try library { () throws(DMAError) in
      try device.dma.allocate(UInt32.self, count: NVMeController.pageByteCount / 4)
    }
    submissionDoorbell = 0x1000 + 2 * identifier * stride
    completionDoorbell = 0x1000 + (2 * identifier + 1) * stride
  }

  /// Puts a command into the queue and rings. The doorbell comes after the entry: ``Registers`` sees to it.
  func submit(_ command: Command) -> UInt16 {
    var command = command
    nextIdentifier &+= 1
    command.opcodeAndIdentifier |= UInt32(nextIdentifier) << 16
    submissions[tail] = command
    tail = (tail + 1) % Self.entryCount
    registers[submissionDoorbell] = UInt32(tail)
    return nextIdentifier
  }

  /// Takes a completion that is there.
  func take() -> Completion? {
    let last = completions[head * 4 + 3]
    guard last >> 16 & 1 == phase else { return nil }
    completions.observe()  // the phase first, then the rest
    let completion = Completion(
      result: completions[head * 4], identifier: UInt16(truncatingIfNeeded: last),
      status: UInt16(last >> 17))
    head = (head + 1) % Self.entryCount
    if head == 0 { phase ^= 1 }
    registers[completionDoorbell] = UInt32(head)
    return completion
  }

  /// Sends a command and waits for its end, by interrupt where the queue has one, else by looking.
  func perform(_ command: Command, timeout: Duration) throws(NVMeError) -> Completion {
    let identifier = submit(command)
    let deadline = ContinuousClock.now + timeout
    repeat {
      while let completion = take() {
        // A completion of a command that was given up is of no interest.
        guard completion.identifier == identifier else { continue }
        try completion.check(command)
        return completion
      }
      try pause(until: deadline)
    } while ContinuousClock.now < deadline
    throw .timedOut(opcode: command.opcode)
  }

  private func pause(until deadline: ContinuousClock.Instant) throws(NVMeError) {
    guard let interrupt else { return }
    do throws(DMAError) {
      try interrupt.wait(timeout: deadline - .now)
    } catch {
      if error.code != .timedOut { throw .dma(error) }
    }
  }
}
