import AddressSpace

/// What was found wrong: told once, and kept.
extension DebugTracker {
  /// Tells of a mistake.
  func report(_ kind: DebugReport.Kind, _ text: String, _ record: DebugRecord?) {
    report(
      DebugReport(
        kind: kind, text: text, device: device, address: record?.address, memory: UInt(record?.memory ?? 0),
        byteCount: record?.byteCount ?? 0, mappedAt: record?.mappedAt ?? DebugBacktrace(),
        unmappedAt: record?.unmappedAt ?? DebugBacktrace(), foundAt: DebugBacktrace(capturing: options.frameCount)))
  }

  /// Tells that memory is not what was pinned.
  func report(_ change: PageSnapshot.Change, _ page: UInt64, _ text: String, _ record: DebugRecord?) {
    let where_ = "page 0x\(String(page, radix: 16))"
    switch change {
    case .gone: report(.memoryGone, "\(text): \(where_) was given back to the operating system", record)
    case .replaced: report(.memoryReplaced, "\(text): \(where_) is another than the device has", record)
    }
  }

  func report(_ report: DebugReport) {
    locked { state in
      state.reportCount += 1
      if state.reports.count == Limits.debugReports { state.reports.removeFirst() }
      state.reports.append(report)
    }
    if let handler = options.onReport { return handler(report) }
    DebugReport.write(report.description)
  }

  var reports: [DebugReport] { locked { $0.reports } }
  var reportCount: UInt64 { locked { $0.reportCount } }

  /// The domain is closed: tells what is alive. The second call does nothing.
  func domainClosed() {
    let (mappings, registrations) = locked { state -> ([DebugRecord], [DebugRegistration]) in
      guard !state.isClosed else { return ([], []) }
      state.isClosed = true
      return (
        state.live.sorted { $0.key < $1.key }.map(\.value), state.registrations.values.sorted { $0.memory < $1.memory }
      )
    }
    for record in mappings.prefix(Limits.debugAlive) {
      report(.aliveAtClose, "\(record.text), is alive when the domain is closed", record)
    }
    if mappings.count > Limits.debugAlive {
      report(.aliveAtClose, "\(mappings.count - Limits.debugAlive) more mappings are alive", nil)
    }
    for registration in registrations {
      report(about: registration, .registeredAtClose, "is alive when the domain is closed")
    }
  }

  /// Tells of new faults which mistakes they are.
  func look(at faults: [Fault]) {
    for fault in faults { if let iova = fault.iova { look(at: fault, iova) } }
  }

  private func look(at fault: Fault, _ iova: IOVA) {
    let gap = UInt64(options.guardPages) * (granuleMask + 1)
    let (live, before, ended) = locked { state in
      (
        state.live.values.first { $0.pages(granuleMask).contains(iova.rawValue) },
        state.live.values.first { record in
          let end = record.pages(granuleMask).upperBound
          return iova.rawValue >= end && iova.rawValue - end < gap
        },
        (state.ended[state.nextEnded...] + state.ended[..<state.nextEnded])
          .last { $0.record.pages(granuleMask).contains(iova.rawValue) }?.record
      )
    }
    let what = fault.access == .write ? "a write" : fault.access == .read ? "a read" : "an access"
    if let live {
      guard live.forbids(fault.access) else { return }
      report(.wrongDirection, "\(live.text): \(what) of the device to \(iova) was refused", live)
    } else if let before {
      report(.overrun, "\(before.text): \(what) of the device behind its end, to \(iova), was refused", before)
    } else if let ended {
      // What was wrong all the time may have been before the end.
      let kind: DebugReport.Kind = ended.forbids(fault.access) ? .wrongDirection : .afterUnmap
      report(kind, "\(ended.text), has ended: \(what) of the device to \(iova) was refused", ended)
    }
  }

  /// Whose memory an address of this process is, in one sentence; nil where it is in no live mapping.
  func describe(_ pointer: UInt64) -> String? {
    let found = locked { state in
      state.live.values.first { pointer >= $0.memory && pointer - $0.memory < UInt64(padded($0.byteCount)) }
    }
    return found.map { "0x\(String(pointer, radix: 16)) is in \($0.text), mapped at \($0.mappedAt)" }
  }
}

extension DebugRecord {
  /// Whether the direction of the mapping has no place for an access of the device.
  fileprivate func forbids(_ access: Fault.Access) -> Bool {
    access == .write ? !self.access.canWrite : access == .read && !self.access.canRead
  }
}
