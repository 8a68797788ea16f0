import IOMMU

/// Faults in the two forms in which they come.
enum FaultBytes {
  /// Records of an event queue: each takes its bytes, a part of a buffer has a part of its records, and what is kept of them is bounded.
  static func events(_ bytes: [UInt8]) {
    let events = SMMUEvent.parse(bytes)
    precondition(events.reduce(0) { $0 + ($1.words == nil ? 8 : 40) } <= bytes.count, "more records than bytes")
    let half = SMMUEvent.parse(bytes.prefix(bytes.count / 2))
    precondition(events.starts(with: half), "records that depend on what follows them")
    var unread = UnreadFaults(), next: UInt32 = 0, lost: UInt64 = 0
    for (time, event) in events.enumerated() {
      lost += event.lost(next: &next)
      precondition(lost <= UInt64(time + 1) << 31 && next >> 31 == 0, "a number of events that no queue counts")
      if let words = event.words { unread.add(words, at: UInt64(time)) }
      precondition(!event.name.isEmpty)
    }
    precondition(unread.faults.count <= Limits.faults && unread.faults.count + unread.olderCount <= events.count)
    for fault in unread.faults { precondition(!fault.description.isEmpty) }
  }

  /// Lines of a log, up to newlines: read twice they tell the same, no fault is told again before it was told, and a line tells of one at
  /// most.
  static func log(_ bytes: [UInt8]) {
    let texts = bytes.split(separator: 10, omittingEmptySubsequences: false).map { String(decoding: $0, as: UTF8.self) }
    let lines = texts.enumerated().map { KernelLogLine(sequence: UInt64($0), time: UInt64($0) << 58, text: $1) }
    var first = FaultParser(), second = FaultParser(), told: Set<UInt64> = []
    for line in lines {
      let outcome = first.read(line)
      precondition(outcome == second.read(line))
      switch outcome {
      case .fault(let fault):
        precondition(told.insert(fault.sequence).inserted && !fault.description.isEmpty, "\(fault)")
      case .more(let fault): precondition(told.contains(fault.sequence) && !fault.description.isEmpty, "\(fault)")
      case .nothing, .suppressed, .overflow: break
      }
    }
  }
}
