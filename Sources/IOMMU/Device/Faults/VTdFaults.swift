import AddressSpace

/// The messages of Intel VT-d.
///
/// ```
/// DMAR: [DMA Write NO_PASID] Request device [00:02.0] fault addr 0x1000 [fault reason 0x05] PTE Write access is not set
/// DMAR: [DMA Read PASID 0x5] Request device [00:02.0] fault addr 0x1000 [fault reason 0x71] SM: Present bit …
/// DMAR: [DMA Write] Request device [00:02.0] PASID ffffffff fault addr 1000 [fault reason 05] PTE Write access …
/// DMAR: [INTR-REMAP] Request device [00:02.0] fault index 0x7 [fault reason 0x22] Present field in the IRTE entry …
/// DMAR: DRHD: handling fault status reg 3
/// ```
/// The last comes before the faults that are read then; bit 0 of the number (`FSTS.PFO`) says that others found no register free.
/// Before 5.x the address has no 0x and the reason is decimal; before 4.x the reason has a line of its own.
struct VTdFaults: Sendable {
  /// A fault whose reason is still to come.
  private var pending: Fault?

  mutating func read(_ text: LineScanner, _ line: KernelLogLine) -> FaultParser.Outcome {
    var text = text
    guard text.skip(past: "DMAR:") else { return .nothing }
    guard text.has("Request device [") else { return Self.hasLost(text) ? .overflow : readReason(text) }
    pending = nil
    guard text.skip(past: "["), let what = text.upTo("]"), text.skip(past: "Request device ["),
      let device = text.upTo("]"), let address = PCIAddress(device)
    else { return .nothing }
    let isInterrupt = what.hasPrefix("INTR-REMAP")
    guard text.skip(past: isInterrupt ? "fault index " : "fault addr "), let number = text.hexadecimal()
    else {
      return .nothing
    }
    var fault = Fault(
      line, device: device, requesterID: UInt32(address.requesterID), reason: "no reason logged")
    if isInterrupt {
      fault.kind = .interruptRemapping
    } else {
      fault.iova = IOVA(number)
      fault.access = what.hasPrefix("DMA Write") ? .write : what.hasPrefix("DMA Read") ? .read : .unknown
    }
    guard let reason = Reason(&text) else {
      pending = fault
      return .fault(fault)
    }
    return .fault(fault.refused(reason))
  }

  /// `DMAR: DRHD: handling fault status reg 3`: bit 0 of `FSTS_REG`, `PFO`, is set where a fault found the recording registers full.
  private static func hasLost(_ text: LineScanner) -> Bool {
    var text = text
    guard text.skip(past: "handling fault status reg "), let status = text.hexadecimal() else { return false }
    return status & 1 == 1
  }

  private mutating func readReason(_ text: LineScanner) -> FaultParser.Outcome {
    var text = text
    guard let fault = pending, let reason = Reason(&text) else { return .nothing }
    pending = nil
    return .more(fault.refused(reason))
  }

  /// `[fault reason 0x05] PTE Write access is not set`.
  struct Reason {
    let number: UInt64
    let text: String

    init?(_ scanner: inout LineScanner) {
      guard scanner.skip(past: "[fault reason "), let number = scanner.prefixedNumber(),
        scanner.skip(past: "]")
      else { return nil }
      (self.number, text) = (number, scanner.remainder)
    }

    /// As far as the kernel's words tell.
    var stage: Int? { text.contains("first-level") ? 1 : text.contains("second-level") ? 2 : nil }

    /// By number where the first versions of the specification fixed it, else by what the kernel calls it.
    var kind: Fault.Kind {
      switch number {
      case 0x20...0x26: return .interruptRemapping
      case 4: return .addressSize
      case 5, 6: return .translation
      case 1...0xd: return .other
      default: break
      }
      if text.contains("canonical") || text.contains("beyond") { return .addressSize }
      // An entry of a second level that is clear lacks both rights: the same as for number 5 and 6.
      if text.contains("second-level"), text.contains("ermission") { return .translation }
      if text.contains("ermission") || text.contains("rivilege") { return .permission }
      // Of the device's own entries, a present bit that is clear means that it is in no domain.
      return text.contains("Present bit") && text.contains("paging entry") ? .translation : .other
    }
  }
}

extension Fault {
  fileprivate func refused(_ reason: VTdFaults.Reason) -> Fault {
    var fault = self
    fault.reason = reason.text.isEmpty ? "fault reason \(reason.number)" : reason.text
    if fault.kind != .interruptRemapping { (fault.kind, fault.stage) = (reason.kind, reason.stage) }
    return fault
  }
}
