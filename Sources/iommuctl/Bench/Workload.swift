import IOMMU

/// The workloads that papers and mailing lists measure IOMMUs with, as traces.
///
/// Each makes as many maps as it is asked for, and as many unmaps; what is still mapped at the end of the last phase is
/// unmapped there. The same arguments give the same trace on every machine.
package enum Workload: String, CaseIterable, Sendable {
  /// A network adapter's receive rings of 256 and 2048 descriptors, each of 64 pages as a list and in order, with frames to
  /// send of up to 16 pages in between. Source: Rubin et al., SOSP 2024.
  case w1 = "W1"
  /// An NVMe queue of 128 requests of 4 to 128 KiB, completed in random order; two of three are reads.
  case w2 = "W2"
  /// Ageing: 1 to 64 pages, mapped and unmapped by any thread, in any order. Source: Garry, linux-iommu 2021.
  case w3 = "W3"
  /// The space below 4 GiB filled with ranges of 64 pages, then one unmapped for one mapped, of 1 to 64 pages.
  case w4 = "W4"
  /// 1 GiB, 64 GiB and 1 TiB, in pieces of 4 KiB, 2 MiB and 1 GiB.
  case w5 = "W5"
  /// Mapped by one thread, unmapped by another, in order.
  case w6 = "W6"
  /// Pages, of which every other is unmapped, and then ranges of 64 pages that fit into none of the gaps.
  case w7 = "W7"
  /// The kernel benchmark's grid: 1 to 16 threads, 1, 8 and 64 pages.
  case w8 = "W8"
  /// A driver that changes the size of its buffers, as on a change of the MTU: all of the old size go, and what caches keep of
  /// them is of no use to the new. Source: linux-iommu, on the 32-bit-first policy.
  case w9 = "W9"

  /// How large it is to be.
  package struct Size: Sendable {
    /// Maps, each with its unmap.
    package var operations: Int
    /// Threads of the workloads that do not say it themselves.
    package var threads = 1
    /// Address bits of the device: what W4, W7 and W9 fill is not larger.
    package var addressBits = 64

    package init(operations: Int, threads: Int = 1, addressBits: Int = 64) {
      (self.operations, self.threads, self.addressBits) = (operations, threads, addressBits)
    }
  }

  /// How many operations show what it is about, in about a second.
  package var usualOperations: Int {
    switch self {
    case .w5: 900
    case .w1: 20_000
    case .w9: 250_000
    default: 100_000
    }
  }

  /// The trace. O(operations).
  package func trace(_ size: Size, seed: UInt64) -> Trace {
    let threads =
      switch self {
      case .w6: max(2, size.threads + size.threads % 2)
      case .w8: min(16, max(1, size.operations))
      default: size.threads
      }
    var maker = WorkloadMaker(
      builder: TraceBuilder(name: rawValue, seed: seed, threads: threads), random: Random(seed: seed), size: size)
    switch self {
    case .w1: maker.rings()
    case .w2: maker.requests()
    case .w3: maker.ageing()
    case .w4: maker.exhaustion()
    case .w5: maker.huge()
    case .w6: maker.producers(threads / 2)
    case .w7: maker.fragmentation()
    case .w8: maker.grid()
    case .w9: maker.resizing()
    }
    return maker.builder.trace
  }
}

extension Trace {
  /// Every thread maps and unmaps the same: what the benchmark does without a workload.
  static func uniform(
    operations: Int, threads: Int, count: Int, byteCount: UInt64, _ direction: DMADirection
  ) -> Trace {
    var maker = WorkloadMaker(
      builder: TraceBuilder(name: "uniform", seed: 0, threads: threads), random: Random(seed: 0),
      size: Workload.Size(operations: operations, threads: threads))
    maker.builder.beginPhase("all")
    maker.pairs(operations, threads, byteCount, direction, count: count)
    return maker.builder.trace
  }
}
