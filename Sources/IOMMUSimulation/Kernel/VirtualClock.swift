import IOMMU
import Synchronization

/// The simulated machine's clock: the real one, or one that stands still, and how far it jumped ahead because somebody waited
/// for a device, or was charged for work of kernel and hardware.
struct VirtualClock {
  private struct Timer {
    let time: UInt64
    let device: PCIAddress
  }

  /// How far it jumped, which others read without the kernel's lock.
  let ahead: Ahead
  /// All that was charged, in nanoseconds.
  private(set) var charged: UInt64 = 0
  private var timers: [Timer] = []

  init(followsRealTime: Bool) { ahead = Ahead(followsRealTime: followsRealTime) }

  /// Nanoseconds, of which only those who hold the kernel's lock change how they run.
  final class Ahead: Sendable {
    let followsRealTime: Bool
    private let nanoseconds = Atomic<UInt64>(0)
    /// Where a clock of its own begins: not at 0, which means no time to some.
    private static let beginning: UInt64 = 1_000_000_000

    init(followsRealTime: Bool) { self.followsRealTime = followsRealTime }

    func add(_ time: UInt64) { nanoseconds.wrappingAdd(time, ordering: .releasing) }

    /// The real clock is read first, so that nobody sees the machine's go back.
    var now: UInt64 {
      let real = followsRealTime ? HostSystem.nanoseconds() : Self.beginning
      return real &+ nanoseconds.load(ordering: .acquiring)
    }

    /// Up to a tick of the real kernel behind ``now``.
    var coarseNow: UInt64 {
      let real = followsRealTime ? HostSystem.coarseNanoseconds() : Self.beginning
      return real &+ nanoseconds.load(ordering: .acquiring)
    }
  }

  var now: UInt64 { ahead.now }

  mutating func wake(_ device: PCIAddress, after nanoseconds: UInt64) {
    timers.append(Timer(time: now + nanoseconds, device: device))
    timers.sort { $0.time < $1.time }
  }

  /// The time of the first timer.
  var nextWake: UInt64? { timers.first?.time }

  /// Moves time forward to this, if it is ahead.
  mutating func advance(to time: UInt64) {
    let now = now
    if time > now { ahead.add(time - now) }
  }

  /// Moves time forward by what some work takes.
  mutating func charge(_ nanoseconds: UInt64) {
    guard nanoseconds > 0 else { return }
    ahead.add(nanoseconds)
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
