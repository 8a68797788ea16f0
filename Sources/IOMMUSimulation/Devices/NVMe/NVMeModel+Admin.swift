extension NVMeModel {
  private enum Admin {
    static let deleteSubmission: UInt8 = 0x00, createSubmission: UInt8 = 0x01, getLogPage: UInt8 = 0x02
    static let deleteCompletion: UInt8 = 0x04, createCompletion: UInt8 = 0x05, identify: UInt8 = 0x06
    static let abort: UInt8 = 0x08, setFeatures: UInt8 = 0x09, getFeatures: UInt8 = 0x0a
    static let asynchronousEvent: UInt8 = 0x0c
  }

  /// An admin command; nil when it is not completed now.
  mutating func administer(_ command: Command, _ bus: DeviceBus) -> Outcome? {
    switch command.opcode {
    case Admin.identify: return identify(command, bus)
    case Admin.createCompletion: return createCompletionQueue(command)
    case Admin.createSubmission: return createSubmissionQueue(command)
    case Admin.deleteSubmission: return deleteSubmissionQueue(command)
    case Admin.deleteCompletion: return deleteCompletionQueue(command)
    case Admin.setFeatures, Admin.getFeatures: return features(command)
    case Admin.getLogPage:
      let byteCount = (Int(command.words[10] >> 16) + 1) * 4
      return send([UInt8](repeating: 0, count: min(byteCount, 4096)), command, bus)
    // Nothing is under way when a command arrives: bit 0 says that nothing was aborted.
    case Admin.abort: return Outcome(result: 1)
    case Admin.asynchronousEvent:
      heldEventRequests += 1
      return nil
    default: return .invalidOpcode
    }
  }

  /// Feature 7, the number of queues, counts from 0 in both halves; others are taken and read as zero.
  private func features(_ command: Command) -> Outcome {
    switch command.words[10] & 0xff {
    case 0x07: Outcome(result: UInt32(Self.ioQueueLimit - 1) * 0x1_0001)
    case 0x01...0x0b: .success
    default: .invalidField
    }
  }
}

// MARK: - I/O queues

extension NVMeModel {
  private func entryCount(_ command: Command) -> Int? {
    let count = Int(command.words[10] >> 16) + 1
    return (2...Self.queueEntryLimit).contains(count) ? count : nil
  }

  private func identifier(_ command: Command) -> UInt16? {
    let id = UInt16(truncatingIfNeeded: command.words[10])
    return (1...Self.ioQueueLimit).contains(id) ? id : nil
  }

  private mutating func createCompletionQueue(_ command: Command) -> Outcome {
    guard let id = identifier(command), completionQueues[id] == nil else { return .invalidQueue }
    guard let entryCount = entryCount(command) else { return .invalidQueueSize }
    let vector = Int(command.words[11] >> 16)
    guard vector < identity.msixCount else { return .invalidVector }
    // Bit 0: contiguous, which this controller requires; bit 1: interrupts.
    guard command.words[11] & 1 != 0 else { return .invalidField }
    guard command.prp1 != 0, command.prp1 % UInt64(registers.pageByteCount) == 0 else {
      return .invalidOffset
    }
    completionQueues[id] = CompletionQueue(
      address: command.prp1, entryCount: entryCount, vector: vector, interrupts: command.words[11] & 2 != 0)
    return .success
  }

  private mutating func createSubmissionQueue(_ command: Command) -> Outcome {
    guard let id = identifier(command), submissionQueues[id] == nil else { return .invalidQueue }
    guard let entryCount = entryCount(command) else { return .invalidQueueSize }
    let completion = UInt16(command.words[11] >> 16)
    guard completion != 0, completionQueues[completion] != nil else { return .invalidCompletionQueue }
    guard command.words[11] & 1 != 0 else { return .invalidField }
    guard command.prp1 != 0, command.prp1 % UInt64(registers.pageByteCount) == 0 else {
      return .invalidOffset
    }
    submissionQueues[id] = SubmissionQueue(
      address: command.prp1, entryCount: entryCount, completionQueue: completion)
    return .success
  }

  private mutating func deleteSubmissionQueue(_ command: Command) -> Outcome {
    guard let id = identifier(command), submissionQueues.removeValue(forKey: id) != nil else {
      return .invalidQueue
    }
    return .success
  }

  private mutating func deleteCompletionQueue(_ command: Command) -> Outcome {
    guard let id = identifier(command), completionQueues[id] != nil else { return .invalidQueue }
    guard !submissionQueues.values.contains(where: { $0.completionQueue == id }) else {
      return .invalidDeletion
    }
    completionQueues[id] = nil
    return .success
  }
}

// MARK: - Identify

extension NVMeModel {
  private func identify(_ command: Command, _ bus: DeviceBus) -> Outcome {
    switch command.words[10] & 0xff {
    case 0x00:
      guard command.namespace == 1 else { return .invalidNamespace }
      return send(namespacePage, command, bus)
    case 0x01: return send(controllerPage, command, bus)
    case 0x02:
      var page = Page()
      if command.namespace < 1 { page.set(0, UInt32(1)) }
      return send(page.bytes, command, bus)
    case 0x03:
      guard command.namespace == 1 else { return .invalidNamespace }
      return send(Page().bytes, command, bus)
    default: return .invalidField
    }
  }

  /// Identify Controller.
  private var controllerPage: [UInt8] {
    var page = Page()
    page.set(0, identity.vendor)
    page.set(2, identity.subsystemVendor)
    page.set(4, serial, width: 20)
    page.set(24, "swift-iommu NVMe model", width: 40)
    page.set(64, "1.0", width: 8)
    page.set(77, UInt8(7))  // MDTS
    page.set(78, UInt16(0))  // controller id
    page.set(80, UInt32(0x0001_0400))  // version
    page.set(258, UInt8(3))  // abort limit, from 0
    page.set(259, UInt8(3))  // asynchronous event limit, from 0
    page.set(512, UInt8(0x66))  // submission entries: 64 bytes
    page.set(513, UInt8(0x44))  // completion entries: 16 bytes
    page.set(516, UInt32(1))  // namespaces
    page.set(520, UInt16(1 << 3))  // write zeroes
    return page.bytes
  }

  /// Identify Namespace: size, capacity and use in blocks, one format of 512 bytes.
  private var namespacePage: [UInt8] {
    var page = Page()
    for offset in [0, 8, 16] { page.set(offset, blockCount) }
    page.set(128, UInt32(9) << 16)
    return page.bytes
  }

  /// 4096 bytes to be filled in.
  private struct Page {
    var bytes = [UInt8](repeating: 0, count: 4096)

    mutating func set(_ offset: Int, _ value: some FixedWidthInteger) {
      for index in 0..<value.bitWidth / 8 {
        bytes[offset + index] = UInt8(truncatingIfNeeded: value >> (8 * index))
      }
    }

    /// Text, padded with spaces.
    mutating func set(_ offset: Int, _ text: String, width: Int) {
      let characters = Array(text.utf8.prefix(width))
      for index in 0..<width { bytes[offset + index] = index < characters.count ? characters[index] : 0x20 }
    }
  }
}
