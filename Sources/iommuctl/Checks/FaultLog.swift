package import IOMMU

/// A request of a device that the IOMMU refused, as the kernel's log tells it.
package struct LoggedFault: Hashable {
  package let iova: UInt64
  /// nil where the log does not tell reads from writes.
  package let isWrite: Bool?

  var access: String? { isWrite.map { $0 ? "write" : "read" } }
}

/// Reads what the kernel's log says of a device's faults from now on.
package struct FaultLog {
  private let kernel: any Kernel
  private let device: PCIAddress
  private var next: UInt64
  /// Why the log cannot be read, nil when it can.
  private(set) var failure: Errno?

  init(_ host: Host, _ device: PCIAddress) {
    (kernel, self.device, next) = (host.kernel, device, 0)
    do throws(Errno) { next = (try kernel.kernelLog(from: 0).last?.sequence).map { $0 + 1 } ?? 0 } catch {
      failure = error
    }
  }

  /// The faults since the last call, one a page and kind: a transfer may fault once for every word. The kernel writes
  /// them from an interrupt, so this waits for the first, at most half a second.
  mutating func take() -> [LoggedFault] {
    for _ in 0..<50 {
      guard failure == nil, let lines = try? kernel.kernelLog(from: next) else { return [] }
      let faults = Self.faults(lines.map(\.text), of: device)
      if !faults.isEmpty {
        next = lines.last!.sequence + 1
        return faults
      }
      kernel.sleep(.milliseconds(10))
    }
    return []
  }
}

extension FaultLog {
  /// What the log says, in words. A real kernel writes so many faults in a few seconds and no more: none is no failure
  /// there, since the memory shows what happened. The simulated one writes them all.
  func account(of faults: [LoggedFault], _ machine: Machine) throws(CaseStop) -> String {
    if let failure { return "the kernel's log, which has the faults, cannot be read: \(failure)" }
    if faults.isEmpty {
      try require(!machine.host.isSimulated, "The kernel's log shows no fault")
      return "the kernel's log shows no fault: it limits how many it writes"
    }
    return
      "the IOMMU refused it: \(faults.count) \(faults.count == 1 ? "fault" : "faults") in the kernel's log"
  }
}

// MARK: - The lines

extension FaultLog {
  /// The faults that lines of the VT-d, SMMUv3 and virtio drivers tell of.
  package static func faults(_ lines: [String], of device: PCIAddress) -> [LoggedFault] {
    var found: [LoggedFault] = []
    for (index, line) in lines.enumerated() {
      let next = index + 1 < lines.count ? lines[index + 1] : ""
      guard let fault = vtd(line, device) ?? smmu(line, next, device) ?? virtio(line, device) else {
        continue
      }
      let page = fault.iova & ~0xfff
      if !found.contains(where: { $0.iova & ~0xfff == page && $0.isWrite == fault.isWrite }) {
        found.append(fault)
      }
    }
    return found
  }

  /// `DMAR: [DMA Write NO_PASID] Request device [00:02.0] fault addr 0x1000 [fault reason 0x05] …`
  private static func vtd(_ line: String, _ device: PCIAddress) -> LoggedFault? {
    guard let name = text(in: line, after: "Request device [", until: "]"),
      PCIAddress(name)?.requesterID == device.requesterID,
      let iova = number(in: line, after: "fault addr ")
    else { return nil }
    return LoggedFault(iova: iova, isWrite: line.contains("[DMA Write"))
  }

  /// `… event: F_TRANSLATION client: 0000:00:02.0 sid: 0x10 ssid: 0x0 iova: 0x1000 ipa: 0x0`, and on the next line
  /// `… unpriv data write s1 …`.
  private static func smmu(_ line: String, _ next: String, _ device: PCIAddress) -> LoggedFault? {
    guard line.contains("event: F_"), let name = text(in: line, after: "client: ", until: " "),
      PCIAddress(name) == device, let iova = number(in: line, after: " iova: ")
    else { return nil }
    let isWrite = next.contains(" write ") ? true : next.contains(" read ") ? false : nil
    return LoggedFault(iova: iova, isWrite: isWrite)
  }

  /// `virtio_iommu virtio0: page fault from EP 16 at 0x1000 [W]`
  private static func virtio(_ line: String, _ device: PCIAddress) -> LoggedFault? {
    guard let endpoint = text(in: line, after: "fault from EP ", until: " "),
      UInt16(endpoint) == device.requesterID, let iova = number(in: line, after: " at ")
    else { return nil }
    let flags = text(in: line, after: "[", until: "]") ?? ""
    return LoggedFault(iova: iova, isWrite: flags.contains("W") ? true : flags.contains("R") ? false : nil)
  }

  private static func text(in line: String, after mark: String, until end: Character) -> String? {
    guard let range = line.firstRange(of: mark) else { return nil }
    return String(line[range.upperBound...].prefix { $0 != end })
  }

  private static func number(in line: String, after mark: String) -> UInt64? {
    text(in: line, after: mark, until: " ").flatMap { word in
      word.hasPrefix("0x") ? UInt64(word.dropFirst(2), radix: 16) : nil
    }
  }
}
