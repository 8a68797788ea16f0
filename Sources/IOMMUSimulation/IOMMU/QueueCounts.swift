/// What was put into the invalidation queues of a machine's SMMUs or VT-ds since it began, whoever sent it.
package struct QueueCounts: Hashable, Sendable {
  /// Commands or descriptors, but for those that wait.
  package var commands = 0
  /// `CMD_SYNC`, or `inv_wait_dsc`.
  package var syncs = 0
  /// Times that a producer found a queue full.
  package var stalls = 0

  package init() {}

  package init(commands: Int, syncs: Int, stalls: Int) {
    (self.commands, self.syncs, self.stalls) = (commands, syncs, stalls)
  }

  /// What came since.
  package func since(_ earlier: QueueCounts) -> QueueCounts {
    QueueCounts(
      commands: commands - earlier.commands, syncs: syncs - earlier.syncs, stalls: stalls - earlier.stalls)
  }

  fileprivate mutating func add(_ sent: some Collection<Int>, syncs: Int) {
    commands += sent.reduce(0, +) - syncs
    self.syncs += syncs
  }
}

extension SimulatedHost {
  /// The queues of all units together; nothing where domains translate at once.
  package var queueCounts: QueueCounts {
    kernel.locked { state in
      var sum = QueueCounts()
      guard let iommu = state.iommu else { return sum }
      for counters in iommu.smmus.map(\.counters) {
        for sent in [counters.process, counters.kernel] { sum.add(sent.counts.values, syncs: sent.syncs) }
        sum.stalls += counters.queueStalls
      }
      for counters in iommu.vtds.map(\.counters) {
        for sent in [counters.process, counters.kernel] { sum.add(sent.counts.values, syncs: sent.syncs) }
        sum.stalls += counters.queueStalls
      }
      return sum
    }
  }
}
