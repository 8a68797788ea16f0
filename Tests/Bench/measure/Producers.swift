import IOMMU
import IOMMUSimulation
import PageTables

/// 16 producers on one simulated command queue of 64 entries against one: unmaps of 16 pages in a time, on hardware without range
/// commands, planned for the places that are free.
enum Producers {
  private static let unmaps = 4096

  static func run() -> Measurement {
    let one = rate(1), all = rate(16)
    return Measurement(value: all / one, anchor: "one, unmaps a virtual ms", anchorValue: one, repeats: 1)
  }

  /// Unmaps in a virtual millisecond, by all producers together.
  private static func rate(_ producers: Int) -> Double {
    let costs = CostTable.smmu300
    var queue = ContendedQueue(capacityShift: 6, costs: costs), left = unmaps
    let accounts = queue.run(producers: producers, pause: costs.systemCall) { _, free, _ in
      guard left > 0 else { return nil }
      left -= 1
      var gather = Gather(tracksRanges: true), plan = SMMUPlan(.init(asid: 1, granule: 12, hasRanges: false))
      gather.add(0x1000_0000, 16 << 12, leafShift: 12)
      plan.make(for: gather, budget: InvalidationBudget.limit(freeSlots: free))
      return plan.count
    }
    return Double(unmaps) * 1e6 / Double(accounts.map(\.end).max()!)
  }
}
