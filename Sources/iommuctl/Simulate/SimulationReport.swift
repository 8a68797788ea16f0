import IOMMU
import IOMMUSimulation

/// What `simulate` tells: a table, a document, and a page.
struct SimulationReport {
  let trace: Trace
  /// In pages of 4 KiB.
  let threshold: Int
  let hardware: SimulationHardware
  let results: [SimulationResult]

  /// Writes the document, or the table.
  func tell(_ context: Context, page: String?) {
    if context.isJSON { return context.document(keys) }
    context.say("On simulated machines, which exist only in this process. All times are virtual.")
    context.say(heading)
    if let changes = hardware.text { context.say(changes) }
    context.say()
    context.console.out(table)
    if let doubt { context.say("\n\(doubt)") }
    if results.contains(where: { $0.noRoom > 0 }) {
      context.say("\nFor some maps there was no room: --json tells of how many.")
    }
    if let page { context.say("\nThe page is \(page)") }
  }

  /// What is to be known of the rows; nil where nothing is.
  var doubt: String? {
    guard results.contains(where: { $0.what.iommu == .vtd }) else { return nil }
    return "On VT-d tables of a process were not yet run on hardware: its rows are the simulated VT-d's alone."
  }

  /// What was run, in a line.
  var heading: String {
    "trace \(trace.name), seed \(trace.seed), digest 0x\(hexadecimal(trace.digest, digits: 16)), "
      + "mappings \(trace.mapCount)"
  }

  // With all places, so that columns are easily read.
  static func gigabits(_ value: Double) -> String { decimal(value, 1, isPadded: true) }
  static func reads(_ value: Double) -> String { decimal(value, 3, isPadded: true) }

  private var table: String {
    var table = Table(
      "IOMMU", "COSTS", "POLICY", "COMMANDS", "SYNCS", "STALLS", "P50 NS", "P99 NS", "EXPOSED NS", "GBIT/S", "ACHIEVED",
      "READS/PAGE")
    for result in results {
      table.add(
        result.what.iommu.rawValue, result.what.costs.name, result.what.policy.rawValue, String(result.sent.commands),
        String(result.sent.syncs), String(result.sent.stalls), result.p50.map { String($0) },
        result.p99.map { String($0) }, String(result.longestExposure), result.throughput.map(Self.gigabits),
        result.achieved.map(Self.gigabits), result.readsPerPage.map(Self.reads))
    }
    return table.text
  }

  private var keys: [(String, JSON)] {
    [
      ("trace", .object(trace.keys)), ("threshold_pages", JSON(threshold)), ("producers", JSON(hardware.producers)),
      ("range_invalidation", .bool(hardware.hasRanges)),
      ("policies", .array(results.map { .object($0.keys) })),
    ]
  }
}
