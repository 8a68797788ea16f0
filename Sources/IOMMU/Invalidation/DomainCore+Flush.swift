import AddressSpace
import Synchronization

/// Flushing: everything that waits goes out of the devices' reach, with one invalidation where the tables are ours.
extension DomainCore {
  /// What came of a flush.
  enum Flush {
    case done
    /// Another thread flushes just now. What it began with may not be all that is queued now.
    case busy
    /// The kernel refused: what it refused stays queued, and the next flush tries again.
    case failed(MapFailure)
  }

  /// Takes what was queued before this call out of reach, and tells ``FlushQueue/finished``.
  @inline(never)
  func flush() -> Flush {
    guard queue.isFlushing.compareExchange(expected: false, desired: true, ordering: .acquiring).exchanged else {
      return .busy
    }
    defer { queue.isFlushing.store(false, ordering: .releasing) }
    let number = queue.started.wrappingAdd(1, ordering: .sequentiallyConsistent).newValue
    let since = queue.cover(before: number)
    var systemCalls: UInt64 = 0
    let failure =
      if let processOwned { invalidateAll(processOwned) } else { unmapQueued(before: number, &systemCalls) }
    let now = coarseNow()
    let window = since == 0 || now < since ? 0 : now - since
    if failure == nil {
      queue.setCovered()
      queue.finish(number)
    }
    queue.refreshOldest()
    locked { state in
      state.statistics.systemCalls += systemCalls
      if failure == nil {
        state.statistics.flushes += 1
        state.statistics.longestWindowNanoseconds = max(state.statistics.longestWindowNanoseconds, window)
      } else {
        state.statistics.failedFlushes += 1
      }
    }
    return failure.map { .failed($0) } ?? .done
  }

  /// A flush while another one is under way, whose thread may not be running: on tables of this process, whose flush is one
  /// invalidation and looks at no ring. False on other tables, or when it failed.
  @inline(never)
  func flushBeside() -> Bool {
    guard let processOwned else { return false }
    let number = queue.started.wrappingAdd(1, ordering: .sequentiallyConsistent).newValue
    guard invalidateAll(processOwned) == nil else {
      locked { $0.statistics.failedFlushes += 1 }
      return false
    }
    queue.finish(number)
    locked { $0.statistics.flushes += 1 }
    return true
  }

  /// On tables of this process, whose entries were cleared before they were queued: one invalidation for all of them.
  private func invalidateAll(_ processOwned: any ProcessOwnedTranslation) -> MapFailure? {
    do throws(Errno) { try processOwned.invalidateAll() } catch { return .system(error) }
    return nil
  }

  /// On tables that the kernel owns, one ioctl a contiguous run; the last failure.
  private func unmapQueued(before number: UInt64, _ systemCalls: inout UInt64) -> MapFailure? {
    var waiting = queue.waiting(before: number)
    waiting.sort { $0.iova < $1.iova }
    var failure: MapFailure?, first = 0
    while first < waiting.count {
      var end = first + 1
      while end < waiting.count, waiting[end].iova == waiting[end - 1].iova + waiting[end - 1].byteCount { end += 1 }
      let run = waiting[first..<end]
      systemCalls += 1
      if var reason = unmapRun(run) {
        // One that the kernel refuses must not keep its neighbours in reach.
        for index in run.indices where run.count > 1 {
          systemCalls += 1
          reason = unmapRun(waiting[index...index]) ?? reason
        }
        if !run.allSatisfy(queue.isUnmapped) { failure = reason }
      }
      first = end
    }
    return failure
  }

  private func unmapRun(_ run: ArraySlice<FlushQueue.Waiting>) -> MapFailure? {
    let byteCount = run.reduce(0) { $0 + $1.byteCount }, gaps = run.reduce(0) { $0 + $1.gapByteCount }
    do throws(Errno) {
      let done = try translation.unmap(iova: run.first!.iova, byteCount: byteCount)
      if done != byteCount - gaps { return .mismatch(done) }
    } catch { return .system(error) }
    for waiting in run { queue.setUnmapped(waiting) }
    return nil
  }
}

extension FlushQueue {
  /// A range that waits, and its place in the rings.
  struct Waiting {
    var iova: UInt64, byteCount: UInt64, gapByteCount: UInt64
    fileprivate var ring: Int, index: Int
  }

  /// Ranges that were queued before a flush and are not unmapped yet. Only the one who flushes may ask: entries do not
  /// go before ``finished`` changes, so that they are his until then.
  func waiting(before number: UInt64) -> [Waiting] {
    var found: [Waiting] = []
    for ring in 0..<ringCount {
      let pointer = unsafe rings! + ring
      unsafe pointer.pointee.lock.lock()
      let places = unsafe pointer.pointee.waiting.head..<pointer.pointee.waiting.tail
      unsafe pointer.pointee.lock.unlock()
      for index in places {
        let entry = unsafe entry(ring, index).pointee
        guard entry.counter < number, !entry.isUnmapped, entry.byteCount != 0 else { continue }
        found.append(
          Waiting(
            iova: entry.iova, byteCount: entry.byteCount, gapByteCount: entry.gapByteCount, ring: ring, index: index))
      }
    }
    return found
  }

  func setUnmapped(_ waiting: Waiting) { unsafe entry(waiting.ring, waiting.index).pointee.isUnmapped = true }
  func isUnmapped(_ waiting: Waiting) -> Bool { unsafe entry(waiting.ring, waiting.index).pointee.isUnmapped }

  private func entry(_ ring: Int, _ index: Int) -> UnsafeMutablePointer<Entry> {
    unsafe rings![ring].waiting.entries! + (index & rings![ring].waiting.mask)
  }
}
