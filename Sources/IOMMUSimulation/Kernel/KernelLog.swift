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

/// The simulated machine's clock: the real one, and how far it jumped ahead because somebody waited for a device, or was
/// charged for work of kernel and hardware.
struct VirtualClock {
  private struct Timer {
    let time: UInt64
    let device: PCIAddress
  }

  private var offset: UInt64 = 0
  /// All that was charged, in nanoseconds.
  private(set) var charged: UInt64 = 0
  private var timers: [Timer] = []

  var now: UInt64 { HostSystem.nanoseconds() + offset }

  mutating func wake(_ device: PCIAddress, after nanoseconds: UInt64) {
    timers.append(Timer(time: now + nanoseconds, device: device))
    timers.sort { $0.time < $1.time }
  }

  /// The time of the first timer.
  var nextWake: UInt64? { timers.first?.time }

  /// Moves time forward to this, if it is ahead.
  mutating func advance(to time: UInt64) {
    let now = now
    if time > now { offset += time - now }
  }

  /// Moves time forward by what some work takes.
  mutating func charge(_ nanoseconds: UInt64) {
    offset += nanoseconds
    charged += nanoseconds
  }

  /// Takes the devices whose time has come, in order.
  mutating func takeDue() -> [PCIAddress] {
    let now = now
    let due = timers.prefix { $0.time <= now }
    timers.removeFirst(due.count)
    return due.map(\.device)
  }
}
