import AddressSpace
import Synchronization

/// Collects the faults of one device from the kernel's log, a piece at a time.
///
/// Only what is logged after it was made. Its memory is bounded, whatever the log says.
package final class FaultLog: Sendable {
  private let kernel: any Kernel
  let device: PCIAddress
  /// The device's requester ids, stream ids or endpoints, for messages without a PCI address.
  private let requesterIDs: Set<UInt32>
  private let state: Mutex<State>

  private struct State {
    /// The next line to read.
    var next: UInt64 = 0
    /// Whether the log could be read at least once.
    var hasBegun = false
    /// Whether it has had a line: then the next has the next number, unless some were lost.
    var hasLine = false
    var parser = FaultParser()
    var report = FaultReport()
    /// Events that were added: they have numbers behind all of the log's.
    var eventCount: UInt64 = 0
    /// Numbers of faults that debug mode has seen.
    var seen: Set<UInt64> = []

    /// Passes over what is in the log.
    mutating func begin(_ lines: [KernelLogLine]) {
      hasBegun = true
      guard let last = lines.last else { return }
      (next, hasLine) = (last.sequence &+ 1, true)
    }
  }

  /// `requesterIDs` are the ids by which the IOMMU knows the device: without, the one of its address, which is right
  /// but for bridges' aliases and firmware that numbers streams otherwise.
  package init(kernel: any Kernel, device: PCIAddress, requesterIDs: [UInt32]? = nil) {
    (self.kernel, self.device) = (kernel, device)
    self.requesterIDs = Set(requesterIDs ?? [UInt32(device.requesterID)])
    var state = State()
    do throws(Errno) {
      state.begin(try kernel.kernelLog(from: 0))
    } catch {
      state.report.unreadable = .kernelLog(error, device)
    }
    self.state = Mutex(state)
  }

  /// Reads what was logged since the last time, and tells all that was found.
  ///
  /// Never fails: a log that may not be read is in ``FaultReport/unreadable``. `tell` gets each fault with an address once, and
  /// adds what is known of that. The corresponding file is `/dev/kmsg`.
  package func collect(telling tell: (inout Fault) -> Void = { _ in }) -> FaultReport {
    let from = state.withLock { $0.next }
    do throws(Errno) {
      // Not under the lock: it sleeps.
      let lines = try kernel.kernelLog(from: from)
      return state.withLock { state in
        read(lines, &state, tell)
        return state.report
      }
    } catch {
      return state.withLock { state in
        state.report.unreadable = .kernelLog(error, device)
        return state.report
      }
    }
  }

  /// Adds faults that the process has by another way than the log; `tell` as for ``collect(telling:)``.
  package func add(_ events: UnreadFaults, telling tell: (inout Fault) -> Void = { _ in }) {
    if events.faults.isEmpty, events.lost == 0 { return }
    state.withLock { state in
      state.report.lostEvents = state.report.lostEvents.addingClamped(events.lost)
      state.report.count += events.olderCount
      for var fault in events.faults {
        (fault.device, fault.source) = (device.description, .eventQueue)
        fault.sequence = 1 << 63 + state.eventCount
        state.eventCount += 1
        tell(&fault)
        add(fault, &state.report)
      }
    }
  }

  /// Faults with an address that it has not told before, for debug mode, which looks at each once. One without may still get it, with
  /// the kernel's next line.
  package func takeUnseen() -> [Fault] {
    state.withLock { state in
      let placed = state.report.faults.filter { $0.iova != nil }, seen = state.seen
      // Of those that have left the report none comes back.
      state.seen = Set(placed.map(\.sequence))
      return placed.filter { !seen.contains($0.sequence) }
    }
  }

  private func read(_ lines: [KernelLogLine], _ state: inout State, _ tell: (inout Fault) -> Void) {
    state.report.unreadable = nil
    guard state.hasBegun else {
      // The first time that the log can be read: what is in it may be older than the device.
      state.begin(lines)
      state.report.hasGap = true
      return
    }
    if state.hasLine, let first = lines.first, first.sequence > state.next { state.report.hasGap = true }
    for line in lines where line.sequence >= state.next {
      (state.next, state.hasLine) = (line.sequence &+ 1, true)
      take(state.parser.read(line), &state.report, tell)
    }
  }

  private func take(
    _ outcome: FaultParser.Outcome, _ report: inout FaultReport, _ tell: (inout Fault) -> Void
  ) {
    switch outcome {
    case .nothing: break
    case .suppressed(let count):
      report.suppressed = report.suppressed.addingClamped(count)
    case .overflow: report.hasOverflow = true
    case .fault(var fault):
      guard isOurs(fault) else { return }
      tell(&fault)
      add(fault, &report)
    case .more(var fault):
      let known = report.faults.last { $0.sequence == fault.sequence }
      if let known, let story = known.story {
        (fault.mapping, fault.story) = (known.mapping, story.retold(fault))
      } else {
        tell(&fault)
      }
      if let index = report.faults.lastIndex(where: { $0.sequence == fault.sequence }) {
        // What it says now may be that it is another device's.
        if isOurs(fault) { report.faults[index] = fault } else { _ = report.faults.remove(at: index) }
      } else if isOurs(fault) {
        add(fault, &report)
      }
    }
  }

  private func add(_ fault: Fault, _ report: inout FaultReport) {
    report.count += 1
    if report.faults.count == Limits.faults { report.faults.removeFirst() }
    report.faults.append(fault)
  }

  private func isOurs(_ fault: Fault) -> Bool {
    if let text = fault.device, let address = PCIAddress(text) {
      // Without a domain it may be any.
      let isWhole = text.utf8.count { $0 == UInt8(ascii: ":") } > 1
      return isWhole ? address == device : address.requesterID == device.requesterID
    }
    return fault.requesterID.map(requesterIDs.contains) ?? false
  }
}

extension UInt64 {
  fileprivate func addingClamped(_ other: UInt64) -> UInt64 {
    let (sum, overflow) = addingReportingOverflow(other)
    return overflow ? .max : sum
  }
}

extension Limits {
  /// So many faults of a device are kept, the latest.
  package static let faults = 64
}

extension DMAError {
  fileprivate static func kernelLog(_ errno: Errno, _ device: PCIAddress) -> DMAError {
    var error = DMAError(.system, "read /dev/kmsg", errno: errno, device: device.description)
    switch errno {
    case .notPermitted, .accessDenied:
      error.code = .permission
      error.remedy =
        "Run with CAP_SYSLOG, or set the sysctl kernel.dmesg_restrict to 0 and make /dev/kmsg readable"
    case .noEntry, .noDevice, .noSuchAddressOrDevice: error.code = .notSupported
    default: break
    }
    return error
  }
}
