import IOMMU
import IOMMUSimulation

/// What the hardware and the kernel were asked for.
struct BenchCounters {
  var systemCalls: UInt64
  /// nil where nobody can tell: a real kernel does not count those of its own tables.
  var invalidations: UInt64?, syncs: UInt64?

  init(_ domain: DMADomain, _ machine: Machine) {
    systemCalls = domain.statistics.systemCalls
    let statistics = domain.statistics, counters = machine.simulated?.counters
    if counters == nil, domain.translation.owner == .process {
      (invalidations, syncs) = (statistics.invalidations, statistics.syncs)
      return
    }
    // On the simulated hardware each invalidation of the kernel's has a wait of its own.
    invalidations = counters.map { UInt64($0.invalidations + $0.processInvalidations) }
    syncs = counters.map { UInt64($0.invalidations + $0.processSyncs) }
  }

  /// What came since.
  func since(_ earlier: BenchCounters) -> BenchCounters {
    var result = self
    result.systemCalls -= earlier.systemCalls
    result.invalidations = invalidations.map { $0 - (earlier.invalidations ?? 0) }
    result.syncs = syncs.map { $0 - (earlier.syncs ?? 0) }
    return result
  }
}

/// What a benchmark measured.
struct BenchResult {
  /// With the names of a trace's phases; the sum alone where there is no trace.
  var phases: [(name: String, part: BenchPart)] = []
  var sum = BenchPart()
  /// nil where no device took part.
  var counters: BenchCounters?

  /// From the beginning to the end, the preparation of phases left out.
  var elapsed: UInt64 { phases.isEmpty ? sum.elapsed : phases.reduce(0) { $0 + $1.part.elapsed } }

  var operationsPerSecond: UInt64 {
    let elapsed = elapsed
    return elapsed == 0 ? 0 : UInt64(Double(sum.operations) * 1e9 / Double(elapsed))
  }

  /// So many of something for each operation.
  func perOperation(_ count: UInt64?) -> Double? {
    guard let count, sum.operations > 0 else { return nil }
    return Double(count) / Double(sum.operations)
  }
}

extension BenchPart {
  /// From the first thread's begin to the last one's end.
  var elapsed: UInt64 { lastEnd > firstBegin ? lastEnd - firstBegin : 0 }
}

extension BenchResult {
  /// The latencies of a kind: its keys, and its line.
  struct Latency {
    let key: String, title: String
    let mean: Double
    let histogram: LatencyHistogram

    /// Percentiles, and of how many latencies at least, so that one of them may lie beyond.
    private static let percentiles: [(key: String, title: String, part: Double, least: UInt64)] = [
      ("p50", "50 %", 0.5, 1), ("p99", "99 %", 0.99, 100), ("p99_9", "99.9 %", 0.999, 1000),
    ]
    /// What to say where a percentile is missing.
    static let shortage =
      "- stands where too few were timed: "
      + percentiles.dropFirst().map { "\($0.title) takes \($0.least)" }.joined(separator: ", ")

    /// Whether there are too few latencies for one of the percentiles.
    var isShort: Bool { Self.percentiles.contains { histogram.count < $0.least } }

    private func value(_ part: Double, least: UInt64) -> UInt64? {
      histogram.count < least ? nil : histogram.percentile(part)
    }

    var keys: [(String, JSON)] {
      let isAny = histogram.count > 0
      return [("mean", JSON(isAny ? mean : nil))]
        + Self.percentiles.map { ($0.key, JSON(value($0.part, least: $0.least))) }
        + [("max", JSON(isAny ? histogram.maximum : nil)), ("samples", .uint(histogram.count))]
    }
    var line: String {
      let percentiles = Self.percentiles.map {
        "\($0.title) \(value($0.part, least: $0.least).map { String($0) } ?? "-")"
      }
      return "\(title) ns: mean \(decimal(mean, 1)), \(percentiles.joined(separator: ", ")), "
        + "longest timed \(histogram.maximum), \(histogram.count) timed"
    }
  }

  /// What a part has latencies of, by what was measured.
  static func latencies(_ part: BenchPart, _ kind: BenchKind) -> [Latency] {
    func latency(_ key: String, _ title: String, _ histogram: LatencyHistogram) -> Latency {
      Latency(key: key, title: title, mean: histogram.mean, histogram: histogram)
    }
    var found: [Latency] = []
    switch kind {
    case .map: found = [latency("map_ns", "map", part.map), latency("unmap_ns", "unmap", part.unmap)]
    case .alloc, .queue, .lookup:
      let mean = part.batchCount == 0 ? part.pair.mean : Double(part.batchTime) / Double(part.batchCount)
      let isPair = kind != .lookup
      found.append(
        Latency(
          key: isPair ? "pair_ns" : "translate_ns", title: isPair ? "pair" : "translate", mean: mean,
          histogram: part.pair))
    }
    if part.failed.count > 0 { found.append(latency("no_room_ns", "no room", part.failed)) }
    return found
  }
}

/// A number with so many decimals, less those that are zero at the end unless it is padded.
func decimal(_ value: Double, _ places: Int, isPadded: Bool = false) -> String {
  guard value.isFinite, value.magnitude < 1e12 else { return "\(value)" }
  var scale = 1.0
  for _ in 0..<places { scale *= 10 }
  let scaled = Int64((value.magnitude * scale).rounded()), unit = Int64(scale)
  var fraction = String(scaled % unit + unit).dropFirst()
  while !isPadded, fraction.last == "0" { fraction.removeLast() }
  return (value < 0 && scaled != 0 ? "-" : "") + "\(scaled / unit)" + (fraction.isEmpty ? "" : ".\(fraction)")
}
