/// What the hardware of an IOMMU does wrong, on request.
struct Misbehaviour {
  /// The invalidation from now that is lost, and who has to have sent it; nil for anyone.
  var lostInvalidation: (left: Int, sender: SMMUCounters.Sender?)?
  /// How long nothing is taken from the command queue.
  var stall: UInt64 = 0
  /// Others who use the command queue; nil for nobody.
  var crowd: Crowd?
  /// How many events will find the queue full.
  var lostEvents = 0
  /// Events stay in the queue: the kernel's thread does not get to run.
  var holdsEvents = false

  /// Batches of others that stand before each of the process's.
  struct Crowd {
    let batches: Int
    /// How many commands each has, beside its sync.
    let commands: Int

    /// How long the hardware has to do with them.
    func nanoseconds(_ costs: CostTable) -> UInt64 {
      UInt64(batches) * (UInt64(commands) * costs.invalidation + costs.sync)
    }

    /// Whether a queue that has them in it lacks room for so many entries more. Drivers look for room for all that they put in at
    /// once: `queue_has_space` of `arm-smmu-v3.c`, `qi_submit_sync` of `drivers/iommu/intel/dmar.c`.
    func leavesNoRoom(for entries: Int, in capacity: Int) -> Bool { batches * (commands + 1) + entries > capacity }
  }

  /// Counts an invalidation; whether it is the one that is to be lost.
  mutating func losesInvalidation(from sender: SMMUCounters.Sender) -> Bool {
    guard let lost = lostInvalidation, lost.sender == nil || lost.sender == sender else { return false }
    guard lost.left == 1 else {
      lostInvalidation!.left -= 1
      return false
    }
    lostInvalidation = nil
    return true
  }
}
