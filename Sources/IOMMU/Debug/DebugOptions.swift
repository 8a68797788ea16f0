import Glibc
import Synchronization

/// What debug mode looks after, chosen when a device is opened; see <doc:DebugMode>.
///
/// ```swift
/// let nic = try Device("0000:03:00.0", debug: DebugOptions())
/// ```
///
/// It belongs to the domain, so devices that are opened with `sharing:` have that of the first. A process that does not ask has
/// the defaults where the environment variable `SWIFT_IOMMU_DEBUG` is `1`, `true`, `yes` or `on`. The corresponding kernel
/// option is `CONFIG_DMA_API_DEBUG`.
public struct DebugOptions: Sendable {
  /// How many pages of addresses behind each mapping stay free, so that a device that runs past its end is refused: 0…256.
  /// Where addresses are short, and behind a mapping as long as a boundary of the device's, there is none.
  public var guardPages: Int
  /// How many further mappings have to end before the addresses of one that ended are given out again: 0…2²⁰. Less where
  /// there are no others. Not for addresses of the caller's choice.
  public var heldAddresses: Int
  /// Whether a buffer's pages are taken from the CPU while a device owns it: a load or store gets SIGSEGV where it happens.
  public var keepsCPUOut: Bool
  /// How many frames of the calls that led to a map, and to an unmap, are kept: 0…64.
  public var frameCount: Int
  /// What a report is handed to, on the thread that found it, without a lock held; nil writes a line to the standard error.
  public var onReport: (@Sendable (DebugReport) -> Void)?

  /// Options; numbers beyond their bounds are brought within them.
  public init(
    guardPages: Int = 1, heldAddresses: Int = 1024, keepsCPUOut: Bool = true, frameCount: Int = 12,
    onReport: (@Sendable (DebugReport) -> Void)? = nil
  ) {
    self.guardPages = min(max(guardPages, 0), 256)
    self.heldAddresses = min(max(heldAddresses, 0), 1 << 20)
    self.keepsCPUOut = keepsCPUOut
    self.frameCount = min(max(frameCount, 0), 64)
    self.onReport = onReport
  }

  /// No debug mode, whatever the environment says: for simulations, whose addresses must not depend on it.
  package static var off: DebugOptions {
    var options = DebugOptions()
    options.isOff = true
    return options
  }
  private var isOff = false

  /// What was asked for, or what the environment asks for.
  static func inForce(_ asked: DebugOptions?) -> DebugOptions? {
    if let asked {
      if asked.isOff { return nil }
      // What was set since is brought within its bounds.
      return DebugOptions(
        guardPages: asked.guardPages, heldAddresses: asked.heldAddresses, keepsCPUOut: asked.keepsCPUOut,
        frameCount: asked.frameCount, onReport: asked.onReport)
    }
    guard let text = unsafe getenv("SWIFT_IOMMU_DEBUG") else { return nil }
    return isOn(unsafe String(cString: text)) ? DebugOptions() : nil
  }

  /// Whether a value of the environment variable switches debug mode on, in any letters' case. One that means nothing does, since
  /// who sets it wants something, and that is told once.
  private static func isOn(_ value: String) -> Bool {
    switch value.lowercased() {
    case "1", "true", "yes", "on": return true
    case "", "0", "false", "no", "off": return false
    default:
      if !isTold.exchange(true, ordering: .relaxed) {
        DebugReport.write(
          "iommu debug: SWIFT_IOMMU_DEBUG=\(value.prefix(40)) is none of 1, true, yes, on, 0, false, no, off: debug mode is on"
        )
      }
      return true
    }
  }

  private static let isTold = Atomic<Bool>(false)
}

extension Limits {
  /// Reports that a domain keeps, the latest; and mappings that have ended, for the mistakes that come after them.
  package static let debugReports = 256, debugEnded = 1024
  /// Mappings that are told one by one when a domain is closed.
  package static let debugAlive = 32
  /// The longest memory of which debug mode keeps a copy to compare with, and all copies, in bytes.
  package static let debugCopyByteCount = 1 << 20, debugCopiesByteCount = 64 << 20
  /// The longest memory of the caller's whose pages are noted for one mapping, in bytes: 8 bytes a page, read anew at its end.
  package static let debugPagesByteCount = 16 << 20
  /// Gaps that give way to what another device cannot reach.
  package static let debugGapsInTheWay = 1024
  /// Buffers whose pages are taken from the CPU at a time: each splits a mapping of the process, which may have 65,530.
  package static let debugProtected = 8192
}
