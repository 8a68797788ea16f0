public import AddressSpace

/// A request of a device that the IOMMU refused, as the kernel's log or an event queue tells it.
///
/// The format differs with the IOMMU and the kernel's version; what a message does not say is nil or unknown.
public struct Fault: Hashable, Sendable, CustomStringConvertible {
  /// A mapping that a fault hit.
  public struct Mapping: Hashable, Sendable {
    /// Its addresses, whole pages.
    public var range: IOVARange
    /// Whether it was still there when the fault was read from the log; else it had ended not long before.
    public var isLive: Bool

    package init(range: IOVARange, isLive: Bool) { (self.range, self.isLive) = (range, isLive) }
  }

  /// What the device tried.
  public enum Access: String, Hashable, Sendable, CaseIterable {
    /// To read memory.
    case read
    /// To write memory.
    case write
    /// The message does not say.
    case unknown
  }

  /// Why it was refused.
  public enum Kind: String, Hashable, Sendable, CaseIterable {
    /// Nothing is mapped at the address. VT-d's second stage says the same when something is mapped there, but not for
    /// this access.
    case translation
    /// What is mapped there may not be read, not be written, or not by this device.
    case permission
    /// The address is above the IOMMU's input size.
    case addressSize
    /// It was an interrupt and not DMA: the message has no table entry.
    case interruptRemapping
    /// Something else, such as a device that is in no domain: see ``Fault/reason``.
    case other
  }

  /// Where a fault is told.
  public enum Source: String, Hashable, Sendable, CaseIterable {
    /// In the kernel's log.
    case kernelLog = "kernel-log"
    /// In an event queue of the hardware that this process reads, where it owns the page tables.
    case eventQueue = "event-queue"
  }

  /// The address that the device used; nil where the message has none.
  public var iova: IOVA?
  /// The mapping that the address lies in or lay in, where ``DMADomain/faults`` knows one.
  public var mapping: Mapping?
  /// What that address has to do with the domain's mappings, where ``DMADomain/faults`` tells of an address.
  public var story: Story?
  /// What the device tried.
  public var access: Access
  /// Why it was refused.
  public var kind: Kind
  /// The stage of translation that refused it: 1, whose tables are the process's where it owns any, or 2; nil where the message does
  /// not say.
  public var stage: Int?
  /// The device's PCI address as the message writes it, such as `0000:00:01.0` or, by VT-d, `00:01.0`.
  public var device: String?
  /// The number by which the IOMMU knows the device: requester id, stream id (SMMUv3) or endpoint (virtio-iommu).
  public var requesterID: UInt32?
  /// The IOMMU's own words.
  public var reason: String
  /// When the kernel logged it, or it was taken from the event queue, since boot.
  public var time: Duration
  /// The first line of the message; the words of an event.
  public var line: String
  /// Where it was told.
  public package(set) var source = Source.kernelLog
  /// The first line's number in the log, or above 2⁶³ the event's in the order in which they were taken; tells faults apart.
  package var sequence: UInt64

  /// A fault that a line of the log begins to tell.
  package init(
    _ line: KernelLogLine, iova: IOVA? = nil, access: Access = .unknown, kind: Kind = .other,
    device: String? = nil,
    requesterID: UInt32? = nil, reason: String
  ) {
    (self.iova, self.access, self.kind) = (iova, access, kind)
    (self.device, self.requesterID, self.reason) = (device, requesterID, reason)
    (time, sequence) = (.nanoseconds(Int64(clamping: line.time)), line.sequence)
    self.line = line.text
  }

  /// One line, such as `0000:00:01.0: write to 0x1000: translation (F_TRANSLATION)`.
  public var description: String {
    let who = device ?? requesterID.map { "requester 0x\(String($0, radix: 16))" } ?? "unknown device"
    let what = access == .write ? "write to" : access == .read ? "read of" : "access to"
    return "\(who): \(what) \(iova.map(\.description) ?? "no address"): \(kind.rawValue) (\(reason))"
  }
}

/// The faults of a device that were found in the kernel's log and in event queues, and what is missing.
public struct FaultReport: Hashable, Sendable {
  /// The latest faults since the device was opened, oldest first, a bounded number.
  public var faults: [Fault] = []
  /// How many faults were found in all, with those that ``faults`` no longer holds.
  public var count = 0
  /// Messages of an IOMMU that the kernel counted and did not log, of any device.
  public var suppressed: UInt64 = 0
  /// Events that a full event queue of the process's has lost, of any device behind the same IOMMU: it says so, or its numbers do.
  public var lostEvents: UInt64 = 0
  /// Whether an event queue of the hardware's own, or the fault registers of a VT-d, were full; how many were lost nobody knows.
  public var hasOverflow = false
  /// Whether the log was overwritten before it was read.
  public var hasGap = false
  /// Why the log could not be read the last time; nil when it was.
  public var unreadable: DMAError?

  /// Whether there may have been faults that are not counted here.
  public var mayBeIncomplete: Bool { missing != nil }

  /// What is missing, or may be, in words; nil where nothing is known to be.
  public var missing: String? {
    var parts: [String] = []
    if suppressed > 0 { parts.append("the kernel has held back \(suppressed) messages") }
    if lostEvents > 0 { parts.append("a full event queue has lost \(lostEvents) events") }
    if hasOverflow { parts.append("the IOMMU's own record of faults has overflowed") }
    if hasGap { parts.append("the kernel's log was overwritten before it was read") }
    if let unreadable { parts.append("the kernel's log cannot be read: \(unreadable)") }
    return parts.isEmpty ? nil : parts.joined(separator: "; ")
  }

  package init() {}
}
