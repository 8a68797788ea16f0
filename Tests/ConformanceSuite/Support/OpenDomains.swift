import IOMMU
import Synchronization

/// The domains of open devices, by address; none is kept open by it.
final class OpenDomains: Sendable {
  private struct Weak { weak var domain: DMADomain? }
  private let domains = Mutex<[String: Weak]>([:])

  func note(_ device: Device) {
    domains.withLock { $0[device.address.description] = Weak(domain: device.dma) }
  }

  subscript(device: String) -> DMADomain? { domains.withLock { $0[device]?.domain } }

  /// Bytes that are pinned for their page tables; where devices share them, once for each.
  var tableBytes: UInt64 {
    domains.withLock { $0.values.compactMap(\.domain) }.reduce(0) { $0 + $1.statistics.tableBytes }
  }
}
