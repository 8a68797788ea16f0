import IOMMU

/// The simulated kernel's log: numbered lines, the last few thousand of them.
struct KernelLog {
  private(set) var lines: [KernelLogLine] = []
  private var next: UInt64 = 0
  private static let limit = 4096

  mutating func add(_ text: String, at time: UInt64) {
    lines.append(KernelLogLine(sequence: next, time: time, text: text))
    next += 1
    if lines.count > 2 * Self.limit { lines.removeFirst(Self.limit) }
  }
}
