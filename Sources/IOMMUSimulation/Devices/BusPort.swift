import IOMMU
import Synchronization

/// What a ``DeviceBus`` talks to. It holds the machine weakly: a model that keeps its bus does not keep the machine.
final class BusPort: Sendable {
  private struct Link { weak var kernel: SimulatedKernel? }

  let address: PCIAddress
  private let link = Mutex(Link(kernel: nil))

  init(address: PCIAddress) { self.address = address }

  func connect(_ kernel: SimulatedKernel) { link.withLock { $0.kernel = kernel } }

  private var kernel: SimulatedKernel? { link.withLock { $0.kernel } }

  func transfer(_ iova: UInt64, byteCount: Int) throws(DeviceBus.Failure) -> [UInt8] {
    guard let kernel else { throw .gone }
    return try kernel.deviceReads(address, iova, byteCount: byteCount).get()
  }

  func transfer(_ iova: UInt64, bytes: [UInt8]) throws(DeviceBus.Failure) {
    guard let kernel else { throw .gone }
    try kernel.deviceWrites(address, iova, bytes).get()
  }

  func interrupt(_ vector: Int) { kernel?.deviceInterrupts(address, vector) }
  func setPin(_ asserted: Bool) { kernel?.deviceSetsPin(address, asserted) }
  var usesMessages: Bool { kernel?.deviceUsesMessages(address) ?? false }
  func wake(after delay: Duration) { kernel?.deviceWakes(address, after: delay) }
}
