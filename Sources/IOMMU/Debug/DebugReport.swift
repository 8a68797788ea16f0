public import AddressSpace
import Glibc

/// A mistake that debug mode has found: what, where, and where the mapping was made.
public struct DebugReport: Sendable, CustomStringConvertible {
  /// What was done wrong.
  public enum Kind: String, Hashable, Sendable, CaseIterable {
    /// Something was unmapped that is not mapped, or no more: a double unmap.
    case notMapped
    /// Something was to be unmapped in part that was mapped as a whole.
    case wrongSize
    /// A device wrote to a mapping that it may only read, or read one that it may only write; also of one that has ended by the
    /// time that the fault is looked at.
    case wrongDirection
    /// Memory that a device only reads changed while it was mapped, by the CPU without a `sync(for: .device)` or by a device.
    case contentsChanged
    /// A device ran past the end of a mapping, into the guard pages.
    case overrun
    /// A device reached for a mapping after its end.
    case afterUnmap
    /// Memory that is mapped or registered was given back to the operating system, or moved.
    case memoryGone
    /// The same, and there is other memory at its address now.
    case memoryReplaced
    /// A mapping was alive when the domain was closed.
    case aliveAtClose
    /// A registration was.
    case registeredAtClose
  }

  /// What was done wrong.
  public let kind: Kind
  /// One sentence about it.
  public let text: String
  /// The device that errors name.
  public let device: String
  /// Where the mapping begins for the device; nil for a registration.
  public let address: IOVA?
  /// Where its memory begins in this process; 0 where none is known.
  public let memory: UInt
  /// Its length in bytes.
  public let byteCount: Int
  /// Where the mapping, or the registration, was made.
  public let mappedAt: DebugBacktrace
  /// Where it was ended, if it was.
  public let unmappedAt: DebugBacktrace
  /// Where the mistake was found.
  public let foundAt: DebugBacktrace

  /// One line: the sentence, and the innermost frames of where the mapping was made.
  public var description: String {
    var line = "iommu debug: \(device): \(kind.rawValue): \(text)"
    if !mappedAt.isEmpty { line += "; mapped at \(mappedAt)" }
    if !unmappedAt.isEmpty { line += "; ended at \(unmappedAt)" }
    return line
  }

  /// Writes a line to the standard error.
  static func write(_ line: String) {
    var bytes = Array((line + "\n").utf8)
    _ = unsafe bytes.withUnsafeMutableBytes { unsafe Glibc.write(2, $0.baseAddress, $0.count) }
  }
}
