/// What the hardware of an IOMMU does wrong, on request.
struct Misbehaviour {
  /// The invalidation from now that is lost, and who has to have sent it; nil for anyone.
  var lostInvalidation: (left: Int, sender: SMMUCounters.Sender?)?
  /// How long nothing is taken from the command queue.
  var stall: UInt64 = 0
  /// Batches of others that stand before each of the process's, and how many commands each has beside its sync.
  var crowd: (batches: Int, commands: Int)?
  /// How many events will find the queue full.
  var lostEvents = 0
  /// Events stay in the queue: the kernel's thread does not get to run.
  var holdsEvents = false

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
