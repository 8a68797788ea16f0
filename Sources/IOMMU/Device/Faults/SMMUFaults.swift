import AddressSpace

/// The messages of Arm's SMMUv3: a record of four words, since 6.15 followed by its meaning in two lines.
///
/// ```
/// arm-smmu-v3 9050000.smmuv3: event 0x10 received:
/// arm-smmu-v3 9050000.smmuv3:     0x0000000800000010        (four times; a tab, which the log may write as \x09)
/// arm-smmu-v3 9050000.smmuv3: event: F_TRANSLATION client: 0000:00:01.0 sid: 0x8 ssid: 0x0 iova: 0x100000 ipa: 0x0
/// arm-smmu-v3 9050000.smmuv3: unpriv data write s1 "Input address caused fault" stag: 0x0
/// arm-smmu-v3 9050000.smmuv3: EVTQ overflow detected -- events lost
/// ```
struct SMMUFaults: Sendable {
  /// The message that an SMMU, known by what its lines begin with, is in the middle of.
  private enum Message: Sendable {
    case words([UInt64], KernelLogLine)
    /// A record is complete; its meaning may follow.
    case record(Fault)
    /// The meaning's second line may follow.
    case meaning(Fault)
  }

  private var messages: [String: Message] = [:]

  mutating func read(_ text: LineScanner, _ line: KernelLogLine) -> FaultParser.Outcome {
    var text = text
    // The name is "arm-smmu-v3 9050000.smmuv3".
    guard let name = text.upTo(": "), name.contains("smmu") else { return .nothing }
    if text.has("EVTQ overflow detected") { return .overflow }
    // No machine has so many; a garbled log may.
    if messages.count >= 16, messages[name] == nil { messages = [:] }
    if text.has("event 0x"), text.has("received:") {
      messages[name] = .words([], line)
      return .nothing
    }
    switch messages[name] {
    case .words(let words, let first):
      if let word = Self.word(text) { return add(word, words, first, name) }
    case .meaning(let fault):
      if let fault = Self.meaning(text, of: fault) {
        messages[name] = nil
        return .more(fault)
      }
    default: break
    }
    return readMeaning(text, line, name)
  }

  private mutating func add(
    _ word: UInt64, _ words: [UInt64], _ first: KernelLogLine, _ name: String
  ) -> FaultParser.Outcome {
    let words = words + [word]
    guard words.count == 4 else {
      messages[name] = .words(words, first)
      return .nothing
    }
    let fault = Self.fault(words, first)
    messages[name] = .record(fault)
    return .fault(fault)
  }

  private mutating func readMeaning(
    _ text: LineScanner, _ line: KernelLogLine, _ name: String
  ) -> FaultParser.Outcome {
    var text = text
    guard text.skip(past: "event: "), let event = text.word() else { return .nothing }
    var fault = Fault(line, kind: Self.kind(event), reason: event)
    var isMore = false
    if case .record(let record) = messages[name] { (fault, isMore) = (record, true) }
    if text.skip(past: "client: "), let client = text.upTo(" sid: ") {
      fault.requesterID = text.hexadecimal().flatMap { UInt32(exactly: $0) } ?? fault.requesterID
      fault.device = PCIAddress(client) == nil ? nil : client
    }
    if text.skip(past: " iova: "), let iova = text.hexadecimal() { fault.iova = IOVA(iova) }
    messages[name] = .meaning(fault)
    return isMore ? .more(fault) : .fault(fault)
  }

  /// `unpriv data write s1 "Input address caused fault" stag: 0x0`.
  private static func meaning(_ text: LineScanner, of fault: Fault) -> Fault? {
    var text = text
    guard let privilege = text.word(), privilege == "unpriv" || privilege == "priv",
      let what = text.word(), what == "data" || what == "inst", let access = text.word(),
      let stage = text.word()
    else { return nil }
    var fault = fault
    fault.access = Fault.Access(rawValue: access) ?? fault.access
    fault.stage = stage == "s1" ? 1 : stage == "s2" ? 2 : fault.stage
    if text.skip(past: "\""), let cause = text.upTo("\"") {
      fault.reason += " (\(cause), stage \(stage.dropFirst()))"
    }
    return fault
  }

  /// A word of a record, alone on its line.
  private static func word(_ text: LineScanner) -> UInt64? {
    var text = text
    guard text.skip(past: "0x"), let word = text.hexadecimal(), text.remainder.isEmpty else { return nil }
    return word
  }
}

// MARK: - Event records

extension SMMUFaults {
  /// A fault from its record; the layout is in the SMMUv3 specification, chapter 7.3.
  static func fault(_ words: [UInt64], _ line: KernelLogLine) -> Fault {
    let id = UInt8(truncatingIfNeeded: words[0])
    let event = names[id] ?? "event \(id)"
    var fault = Fault(
      line, kind: kind(event), requesterID: UInt32(truncatingIfNeeded: words[0] >> 32), reason: event)
    if hasAddress.contains(id) {
      fault.iova = IOVA(words[2])
      fault.access = words[1] >> 35 & 1 == 1 ? .read : .write
      fault.stage = words[1] >> 39 & 1 == 1 ? 2 : 1
    }
    return fault
  }

  private static func kind(_ event: String) -> Fault.Kind {
    switch event {
    case "F_TRANSLATION": .translation
    case "F_PERMISSION", "F_ACCESS": .permission
    case "F_ADDR_SIZE": .addressSize
    default: .other
    }
  }

  private static let hasAddress: Set<UInt8> = [0x10, 0x11, 0x12, 0x13]

  private static let names: [UInt8: String] = [
    0x01: "F_UUT", 0x02: "C_BAD_STREAMID", 0x03: "F_STE_FETCH", 0x04: "C_BAD_STE", 0x05: "F_BAD_ATS_TREQ",
    0x06: "F_STREAM_DISABLED", 0x07: "F_TRANSL_FORBIDDEN", 0x08: "C_BAD_SUBSTREAMID", 0x09: "F_CD_FETCH",
    0x0a: "C_BAD_CD", 0x0b: "F_WALK_EABT", 0x10: "F_TRANSLATION", 0x11: "F_ADDR_SIZE", 0x12: "F_ACCESS",
    0x13: "F_PERMISSION", 0x20: "F_TLB_CONFLICT", 0x21: "F_CFG_CONFLICT", 0x24: "E_PAGE_REQUEST",
    0x25: "F_VMS_FETCH",
  ]
}
