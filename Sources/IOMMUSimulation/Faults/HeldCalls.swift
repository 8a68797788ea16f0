import IOMMU
import Synchronization

/// Calls that wait for each other's sake, asleep in the real kernel: a thread that is held takes no lock and runs no code.
final class HeldCalls: Sendable {
  /// Readable from ``letGo()`` on.
  private let event: Int32?
  private let held = Atomic<Int>(0)

  init() { event = try? HostSystem.createEvent() }

  deinit { if let event { HostSystem.close(event) } }

  var count: Int { held.load(ordering: .acquiring) }

  func wait() {
    guard let event else { return }
    held.wrappingAdd(1, ordering: .acquiringAndReleasing)
    while (try? HostSystem.wait([event], nanoseconds: -1)) == nil {}
    held.wrappingSubtract(1, ordering: .acquiringAndReleasing)
  }

  func letGo() { if let event { try? HostSystem.signalEvent(event) } }
}
