import AddressSpace
import CIOMMU
import Synchronization

/// Flushing: everything that waits goes out of the devices' reach, with one invalidation where the tables are ours.
extension DomainCore {
  /// What came of a flush.
  enum Flush {
    case done
    /// Another thread flushes just now. What it began with may not be all that is queued now.
    case busy
    /// The kernel refused: what it refused stays queued, and the next flush tries again. Or the domain was closed meanwhile,
    /// which takes everything out of reach.
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
      } else if !failure!.isClosed {
        state.statistics.failedFlushes += 1
      }
    }
    return failure.map { .failed($0) } ?? .done
  }

  /// Whether a flush ends within a few turns of the processor that was begun after all that is queued in a ring: of many threads that
  /// find the ring full while one of them flushes, or is about to, not each shall make a flush of its own.
  @inline(never)
  func awaitFlush(of ring: UnsafeMutablePointer<FlushQueue.Ring>) -> Bool {
    let number = unsafe queue.numberOfLast(ring)
    for _ in 0..<Limits.turnsForAFlush {
      if queue.finished.load(ordering: .acquiring) >= number { return true }
      guard queue.started.load(ordering: .relaxed) >= number else { return false }
      ci_yield()
    }
    return false
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

  /// On tables that the kernel owns, one ioctl a contiguous run that is not too long for one; the last failure.
  private func unmapQueued(before number: UInt64, _ systemCalls: inout UInt64) -> MapFailure? {
    var waiting = queue.waiting(before: number)
    waiting.sort { $0.iova < $1.iova }
    var failure: MapFailure?, first = 0
    while first < waiting.count {
      // Whoever closes the domain waits for this, and takes out of reach what is left.
      if isClosed.load(ordering: .relaxed) { return .closed }
      let end = Self.endOfRun(waiting, from: first)
      failure = unmapRun(waiting[first..<end], &systemCalls) ?? failure
      first = end
    }
    return failure
  }

  /// Where the run ends that begins at an index: ranges without a gap between them, of an area's worth in all and not so many
  /// that their invalidations take too long.
  private static func endOfRun(_ waiting: [FlushQueue.Waiting], from first: Int) -> Int {
    var end = first + 1, byteCount = waiting[first].mappedByteCount
    while end < min(waiting.count, first + Limits.rangesOfACall) {
      byteCount += waiting[end].mappedByteCount
      let isNeighbour = waiting[end].iova == waiting[end - 1].iova + waiting[end - 1].byteCount
      guard isNeighbour, byteCount <= UInt64(Limits.areaByteCount) else { break }
      end += 1
    }
    return end
  }

  /// Unmaps a run as a whole, or where the kernel refuses that each range by itself: one must not keep its neighbours in reach.
  private func unmapRun(_ run: ArraySlice<FlushQueue.Waiting>, _ systemCalls: inout UInt64) -> MapFailure? {
    guard var failure = unmapAtOnce(run, &systemCalls) else { return nil }
    for index in run.indices where run.count > 1 { failure = unmapAtOnce(run[index...index], &systemCalls) ?? failure }
    return run.allSatisfy(queue.isUnmapped) ? nil : failure
  }

  /// A single range that is longer than an area takes a call for each, and goes on where an earlier flush has stopped.
  private func unmapAtOnce(_ run: ArraySlice<FlushQueue.Waiting>, _ systemCalls: inout UInt64) -> MapFailure? {
    let first = run.first!
    let byteCount = run.reduce(0) { $0 + $1.byteCount }, mapped = run.reduce(0) { $0 + $1.mappedByteCount }
    let (failure, done, calls) = unmapWaiting(first.iova, byteCount, mapped: mapped, from: first.unmappedByteCount)
    systemCalls += calls
    if failure == nil {
      for waiting in run { queue.setUnmapped(waiting) }
    } else if run.count == 1 {
      queue.setUnmapped(first, byteCount: done)
    }
    return failure
  }

  /// Unmaps a range that waits or was to wait: area by area, or by one call where there are gaps, between which areas may have
  /// any length and are an area's worth in all.
  func unmapWaiting(
    _ iova: UInt64, _ byteCount: UInt64, mapped: UInt64, from start: UInt64 = 0
  ) -> (failure: MapFailure?, done: UInt64, calls: UInt64) {
    if mapped == byteCount { return unmapInAreas(iova, byteCount, from: start) }
    do throws(Errno) {
      let done = try translation.unmap(iova: iova, byteCount: byteCount)
      return (done == mapped ? nil : .mismatch(done), 0, 1)
    } catch { return (.system(error), 0, 1) }
  }
}

extension Limits {
  /// How often a thread lets others run before it does not wait for their flush any longer.
  package static let turnsForAFlush = 64
  /// How many ranges one call of a flush unmaps at most: the kernel invalidates for each of them, which takes up to 2 µs on real
  /// hardware, and has some 0.7 µs of bookkeeping. As many as the ring of a processor holds.
  package static let rangesOfACall = 256
}

extension FlushQueue {
  /// A range that waits, and its place in the rings.
  struct Waiting {
    var iova: UInt64, byteCount: UInt64, gapByteCount: UInt64
    /// How much of it an earlier flush has unmapped, which then failed.
    var unmappedByteCount: UInt64
    fileprivate var ring: Int, index: Int

    var mappedByteCount: UInt64 { byteCount - gapByteCount }
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
        guard entry.counter < number, !entry.isUnmapped else { continue }
        found.append(
          Waiting(
            iova: entry.iova, byteCount: entry.byteCount, gapByteCount: entry.gapByteCount,
            unmappedByteCount: UInt64(entry.unmappedAreas) * UInt64(Limits.areaByteCount), ring: ring, index: index))
      }
    }
    return found
  }

  func setUnmapped(_ waiting: Waiting) { unsafe entry(waiting.ring, waiting.index).pointee.isUnmapped = true }

  /// Of a range of several areas some are unmapped.
  func setUnmapped(_ waiting: Waiting, byteCount: UInt64) {
    let areas = UInt32(truncatingIfNeeded: byteCount / UInt64(Limits.areaByteCount))
    unsafe entry(waiting.ring, waiting.index).pointee.unmappedAreas = areas
  }

  func isUnmapped(_ waiting: Waiting) -> Bool { unsafe entry(waiting.ring, waiting.index).pointee.isUnmapped }

  private func entry(_ ring: Int, _ index: Int) -> UnsafeMutablePointer<Entry> {
    unsafe rings![ring].waiting.entries! + (index & rings![ring].waiting.mask)
  }
}
