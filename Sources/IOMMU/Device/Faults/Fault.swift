public import AddressSpace

/// A request of a device that the IOMMU refused, as the kernel's log tells it.
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

  /// The address that the device used; nil where the message has none.
  public var iova: IOVA?
  /// The mapping that the address lies in or lay in, where ``DMADomain/faults`` knows one.
  public var mapping: Mapping?
  /// What the device tried.
  public var access: Access
  /// Why it was refused.
  public var kind: Kind
  /// The device's PCI address as the message writes it, such as `0000:00:01.0` or, by VT-d, `00:01.0`.
  public var device: String?
  /// The number by which the IOMMU knows the device: requester id, stream id (SMMUv3) or endpoint (virtio-iommu).
  public var requesterID: UInt32?
  /// The IOMMU's own words.
  public var reason: String
  /// When the kernel logged it, since boot.
  public var time: Duration
  /// The first line of the message.
  public var line: String
  /// The first line's number in the log; tells faults apart.
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

/// The faults of a device that were found in the kernel's log, and what is missing.
public struct FaultReport: Hashable, Sendable {
  /// The latest faults since the device was opened, oldest first, a bounded number.
  public var faults: [Fault] = []
  /// How many faults were found in all, with those that ``faults`` no longer holds.
  public var count = 0
  /// Messages of an IOMMU that the kernel counted and did not log, of any device.
  public var suppressed: UInt64 = 0
  /// Whether the log was overwritten before it was read, or events were lost that an IOMMU's queue had no room for.
  public var hasGap = false
  /// Why the log could not be read the last time; nil when it was.
  public var unreadable: DMAError?

  /// Whether there may have been faults that are not counted here.
  public var mayBeIncomplete: Bool { suppressed > 0 || hasGap || unreadable != nil }

  package init() {}
}
