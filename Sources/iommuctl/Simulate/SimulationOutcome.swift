import IOMMU
import IOMMUSimulation

/// What came of a simulation.
struct SimulationOutcome: Sendable {
  /// What was put into the hardware's queue.
  var sent = QueueCounts()
  /// What each unmap took, in nanoseconds, in any order.
  var latencies: [UInt64] = []
  /// The longest from an unmap until the invalidation that covers it was done, in nanoseconds.
  var longestExposure: UInt64 = 0
  var transfer = Transfer()
  /// Bytes that were moved, and from the beginning to the end, in nanoseconds.
  var byteCount: UInt64 = 0, elapsed: UInt64 = 0
  /// Maps for which there was no room.
  var noRoom = 0

  /// A latency that so many hundredths of all are at or below; nil of none.
  func percentile(_ hundredths: Int, of sorted: [UInt64]) -> UInt64? {
    sorted.isEmpty ? nil : sorted[(sorted.count * hundredths + 99) / 100 - 1]
  }
}

/// One line of a report.
struct SimulationResult: Sendable {
  let what: SimulationCase
  let unmaps: Int
  let sent: QueueCounts
  let p50: UInt64?, p99: UInt64?, longestExposure: UInt64
  /// By the formula, and by the clock, in 10⁹ bits a second to three places.
  let throughput: Double?, achieved: Double?
  let readsPerPage: Double?
  let noRoom: Int

  init(_ what: SimulationCase, _ outcome: SimulationOutcome) {
    func rounded(_ value: Double?) -> Double? { value.map { ($0 * 1000).rounded() / 1000 } }
    let latencies = outcome.latencies.sorted()
    self.what = what
    unmaps = latencies.count
    sent = outcome.sent
    (p50, p99) = (outcome.percentile(50, of: latencies), outcome.percentile(99, of: latencies))
    longestExposure = outcome.longestExposure
    throughput = rounded(outcome.transfer.gigabits)
    achieved = rounded(outcome.elapsed == 0 ? nil : Double(outcome.byteCount) * 8 / Double(outcome.elapsed))
    readsPerPage = rounded(outcome.transfer.readsPerPage)
    noRoom = outcome.noRoom
  }

  /// Of an unmap; nil of none.
  var commandsPerUnmap: Double? { unmaps == 0 ? nil : Double(sent.commands) / Double(unmaps) }

  var keys: [(String, JSON)] {
    [
      ("name", .string(what.policy.rawValue)), ("iommu", .string(what.iommu.rawValue)),
      ("costs", .string(what.costs.name)), ("unmaps", JSON(unmaps)), ("commands", JSON(sent.commands)),
      ("syncs", JSON(sent.syncs)), ("stalls", JSON(sent.stalls)), ("queue_entries", JSON(what.queueEntries)),
      ("p50_unmap_ns", JSON(p50)), ("p99_unmap_ns", JSON(p99)),
      ("longest_exposure_ns", .uint(longestExposure)), ("throughput_gbps", JSON(throughput)),
      ("achieved_gbps", JSON(achieved)), ("memory_reads_per_page", JSON(readsPerPage)), ("no_room", JSON(noRoom)),
    ]
  }
}
