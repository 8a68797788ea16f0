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
  /// Never fails: a log that may not be read is in ``FaultReport/unreadable``. `mapping` is asked once for each fault with
  /// an address. The corresponding file is `/dev/kmsg`.
  package func collect(mapping: (IOVA) -> Fault.Mapping? = { _ in nil }) -> FaultReport {
    let from = state.withLock { $0.next }
    do throws(Errno) {
      // Not under the lock: it sleeps.
      let lines = try kernel.kernelLog(from: from)
      return state.withLock { state in
        read(lines, &state, mapping)
        return state.report
      }
    } catch {
      return state.withLock { state in
        state.report.unreadable = .kernelLog(error, device)
        return state.report
      }
    }
  }

  /// Adds faults that the process has by another way than the log, oldest first.
  ///
  /// - Parameter isIncomplete: Whether some were lost.
  package func add(_ faults: [Fault], isIncomplete: Bool, mapping: (IOVA) -> Fault.Mapping? = { _ in nil }) {
    if faults.isEmpty, !isIncomplete { return }
    state.withLock { state in
      if isIncomplete { state.report.hasGap = true }
      for var fault in faults {
        fault.mapping = fault.iova.flatMap(mapping)
        fault.device = device.description
        add(fault, &state.report)
      }
    }
  }

  private func read(_ lines: [KernelLogLine], _ state: inout State, _ mapping: (IOVA) -> Fault.Mapping?) {
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
      take(state.parser.read(line), &state.report, mapping)
    }
  }

  private func take(
    _ outcome: FaultParser.Outcome, _ report: inout FaultReport, _ mapping: (IOVA) -> Fault.Mapping?
  ) {
    switch outcome {
    case .nothing: break
    case .suppressed(let count):
      let (sum, overflow) = report.suppressed.addingReportingOverflow(count)
      report.suppressed = overflow ? .max : sum
    case .lost: report.hasGap = true
    case .fault(var fault):
      guard isOurs(fault) else { return }
      fault.mapping = fault.iova.flatMap(mapping)
      add(fault, &report)
    case .more(var fault):
      let known = report.faults.last { $0.sequence == fault.sequence }
      fault.mapping = known?.mapping ?? fault.iova.flatMap(mapping)
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
