import AddressSpace
import Synchronization

/// The story of a fault: what the tables, the flush queue and debug mode know of its address.
extension DomainCore {
  func story(of fault: Fault) -> Fault.Story? {
    guard let address = fault.iova else { return nil }
    var found = locked { $0.find(address) }
    var neighbour = found.near.map { range in locked { $0.details(range) } }
    let waiting = found.place == .live ? nil : queue.waiting(at: address)
    if let waiting { (found.place, found.mapping) = (.ended, details(waiting)) }
    if let debug { complete(&found, &neighbour, debug, at: address, waiting) }
    if found.place == .live, isClosed.load(ordering: .acquiring) {
      found.place = .ended
      found.mapping?.end = .closed
    }
    return Fault.Story(
      fault, at: address, found.place, found.mapping, neighbour, isNested: processOwned != nil)
  }

  /// Puts what debug mode knows in the place of what the tables do.
  private func complete(
    _ found: inout DomainState.Finding, _ neighbour: inout Fault.MappingDetails?, _ debug: DebugTracker,
    at address: IOVA, _ waiting: FlushQueue.Queued?
  ) {
    let known = debug.mappings(at: address)
    if found.place == .live {
      if let live = known.live { found.mapping = debug.details(live) }
    } else if !found.isBehind, let ended = known.ended {
      (found.place, found.mapping) = (.ended, debug.details(ended))
      if ended.endsLazily { found.mapping?.end = waiting.map { end(of: $0) } ?? .flushed }
    }
    // Not where the nearest is no mapping of a driver's, as coherent memory.
    if let nearest = known.nearest, let near = found.near,
      nearest.gap(to: address, granuleMask) <= near.gap(to: address)
    {
      neighbour = debug.details(nearest)
    }
  }

  /// A range that was unmapped and is in the queue still.
  private func details(_ entry: FlushQueue.Queued) -> Fault.MappingDetails {
    var details = Fault.MappingDetails(range: IOVARange(start: IOVA(entry.iova), byteCount: entry.byteCount)!)
    let now = coarseNow()
    details.end = end(of: entry)
    details.endedAgo = .nanoseconds(Int64(clamping: now > entry.time ? now - entry.time : 0))
    return details
  }

  private func end(of entry: FlushQueue.Queued) -> Fault.MappingDetails.End {
    entry.counter < queue.finished.load(ordering: .acquiring) ? .flushed : .queued
  }
}

extension FlushQueue {
  /// Of an entry what does not change while it is queued: whoever flushes marks it without a lock.
  struct Queued { var iova: UInt64, byteCount: UInt64, counter: UInt64, time: UInt64 }

  /// The range that has an address and waits, or is flushed and not yet given back; of several the one that was queued last.
  ///
  /// O(entries), a few at a time: whoever unmaps waits for no more than those.
  func waiting(at address: IOVA) -> Queued? {
    var latest: Queued?
    for index in 0..<ringCount {
      guard let entry = unsafe newest(in: rings! + index, at: address.rawValue) else { continue }
      if entry.time >= latest?.time ?? 0 { latest = entry }
    }
    return latest
  }

  private func newest(in ring: UnsafeMutablePointer<Ring>, at address: UInt64) -> Queued? {
    var next = Int.max
    while next > 0 {
      unsafe ring.pointee.lock.lock()
      defer { unsafe ring.pointee.lock.unlock() }
      // Entries go, and others come, while the lock is not held; a switch may even begin anew.
      let head = unsafe ring.pointee.waiting.head
      var place = min(next, unsafe ring.pointee.waiting.tail)
      next = max(place - Batch.count, head)
      while place > next {
        place -= 1
        let entry = unsafe ring.pointee.waiting.entries! + (place & ring.pointee.waiting.mask)
        let iova = unsafe entry.pointee.iova, byteCount = unsafe entry.pointee.byteCount
        guard address >= iova, address - iova < byteCount else { continue }
        return unsafe Queued(
          iova: iova, byteCount: byteCount, counter: entry.pointee.counter, time: entry.pointee.time)
      }
      if next == head { return nil }
    }
    return nil
  }
}
