import AddressSpace
import Synchronization

/// Unmapping in lazy mode: the range waits in a ring, and with it its address and, where it was dropped, its memory.
extension DomainCore {
  /// Queues a range whose mapping ends now; the number that ``FlushQueue/finished`` has reached when it is out of reach.
  ///
  /// `memory` of the streaming arena is freed then. A range that finds no room, while another thread flushes or a switch
  /// is under way, is taken out of reach on the spot: the answer is 0, and the memory is the caller's to free.
  @inline(never)
  func unmapLazily(_ iova: IOVA, length: UInt64, memory: UnsafeMutableRawPointer?) -> Result<UInt64, MapFailure> {
    let slot = unsafe slots.lock()
    guard unsafe !slot.pointee.tally.isClosed else {
      unsafe slot.pointee.unlock()
      return unmapClosed(iova, length)
    }
    unsafe slot.pointee.tally.inFlight &+= 1
    unsafe slot.pointee.unlock()
    let now = flushOverdue(at: coarseNow())
    var entry = FlushQueue.Entry(
      iova: iova.rawValue, byteCount: length, memory: UInt(bitPattern: memory), time: max(now, 1))
    let failure = clear(entry)
    // From here on nobody finds it.
    if let record = records.end(iova) {
      entry.isRecorded = true
      unsafe slot.pointee.relock()
      unsafe slot.pointee.tally.counts.queuedBytes &+= length
      let isIndexed = unsafe slot.pointee.tally.countUnmap(length, systemCalls: 0)
      unsafe slot.pointee.unlock()
      if isIndexed { unindex(iova, record) }
    } else {
      locked { $0.retire(iova, byteCount: length) }
    }
    return unsafe queueAndLeave(slot, entry, failure)
  }

  /// ``queueOrUnmap(_:_:)``, and the end of a call that a slot counts.
  func queueAndLeave(
    _ slot: UnsafeMutablePointer<DomainSlots.Slot>, _ entry: FlushQueue.Entry, _ failure: MapFailure?
  ) -> Result<UInt64, MapFailure> {
    let result = queueOrUnmap(entry, failure)
    unsafe slots.leave(slot)
    tellOfTimer()
    if case .failure(.closed) = result { return endClosed() }
    return result
  }

  /// Of a range that was taken apart already; the kernel unmaps everything by itself.
  @inline(never)
  private func endClosed() -> Result<UInt64, MapFailure> {
    waitUntilEmptied()
    return .success(0)
  }

  /// As ``unmapLazily(_:length:memory:)``, for a range with several parts, of an area's worth at most: it waits as one,
  /// with the gaps between them. The parts' memory is not freed.
  ///
  /// - Precondition: The caller has entered.
  func unmapLazily(
    _ parts: UnsafePointer<MemoryPart>, count: Int, from iova: IOVA, byteCount: UInt64
  ) -> Result<UInt64, MapFailure> {
    let now = flushOverdue(at: coarseNow())
    var entry = FlushQueue.Entry(
      iova: iova.rawValue, byteCount: byteCount, gapByteCount: byteCount, time: max(now, 1))
    for index in 0..<count { entry.gapByteCount -= unsafe parts[index].pages(granuleMask).byteCount }
    let failure = clear(entry)
    var next: UInt64 = 0
    for index in 0..<count {
      let part = unsafe parts[index], length = part.pages(granuleMask).byteCount
      locked { state in
        if part.placement > next { state.retireGap(IOVA(iova.rawValue + next)) }
        state.retire(IOVA(iova.rawValue + part.placement), byteCount: length)
      }
      next = part.placement + length
    }
    return queueOrUnmap(entry, failure)
  }

  /// Queues a range that is cleared, or could not be, and retired; unmaps it on the spot where there is no room.
  private func queueOrUnmap(_ entry: FlushQueue.Entry, _ failure: MapFailure?) -> Result<UInt64, MapFailure> {
    if let failure { return stuck(failure, entry.byteCount) }
    if let number = enqueue(entry) { return .success(number) }
    return unmapOnTheSpot(entry)
  }

  /// There is no room in the ring while another thread unmaps what is queued, or a switch is under way: this does not wait
  /// for them any longer.
  @inline(never)
  private func unmapOnTheSpot(_ entry: FlushQueue.Entry) -> Result<UInt64, MapFailure> {
    if let processOwned {
      do throws(Errno) { try processOwned.invalidate(iova: entry.iova, byteCount: entry.byteCount) } catch {
        return stuck(.system(error), entry.byteCount)
      }
    } else {
      let mapped = entry.byteCount - entry.gapByteCount
      let (failure, _, calls) = unmapWaiting(entry.iova, entry.byteCount, mapped: mapped)
      // ``leaked(_:_:_:_:)`` counts the one that failed.
      let isCounted = failure.map(\.isClosed) ?? true
      locked { $0.statistics.systemCalls += isCounted ? calls : calls - 1 }
      if let failure { return stuck(failure, entry.byteCount) }
    }
    let released = releaseAddresses(of: entry)
    slots.count { $0.queuedBytes &-= released }
    return .success(0)
  }

  /// On tables of this process the entry goes at once: what is cached of it is all that a device still has.
  ///
  /// Before the range is numbered: a flush that starts afterwards leaves nothing of it behind. And before it is retired:
  /// who looks whether memory is mapped sees the mapping, or nothing leads to that memory any more.
  private func clear(_ entry: FlushQueue.Entry) -> MapFailure? {
    if processOwned == nil { return nil }
    do throws(Errno) {
      let done = try processOwned!.clear(iova: entry.iova, byteCount: entry.byteCount)
      return done == entry.byteCount - entry.gapByteCount ? nil : .mismatch(done)
    } catch { return .system(error) }
  }

  /// The range stays where it is, and its address taken.
  private func stuck(_ failure: MapFailure, _ length: UInt64) -> Result<UInt64, MapFailure> {
    locked { $0.statistics.queuedBytes &-= length }
    return .failure(failure)
  }

  /// nil when the entry has to be dealt with at once.
  private func enqueue(_ entry: FlushQueue.Entry) -> UInt64? {
    while true {
      let mode = lazyMode.load(ordering: .acquiring)
      if mode == .strict { return nil }
      let ring = unsafe queue.ring(mode)
      switch unsafe queue.append(entry, to: ring) {
      case .queued(let number):
        queue.noteQueued(at: entry.time)
        if unsafe !hasNoMoreToDo(ring) { unsafe doMore(ring) }
        return number
      case .full:
        unsafe reclaim(ring, all: true)
        if unsafe queue.hasRoom(ring) { continue }
        switch flush() {
        case .done: break
        case .busy where unsafe awaitFlush(of: ring) || flushBeside(): break
        case .busy, .failed: return nil
        }
        unsafe reclaim(ring, all: true)
      case .closed:
        // The mode was changed after it was read.
        if lazyMode.load(ordering: .acquiring) == mode { return nil }
      }
    }
  }

  /// Whether an entry that was queued needs neither the timer nor the room that a flush made.
  @inline(__always)
  func hasNoMoreToDo(_ ring: UnsafeMutablePointer<FlushQueue.Ring>) -> Bool {
    guard queue.isTimerArmed.load(ordering: .relaxed) else { return false }
    return unsafe ring.pointee.settled.load(ordering: .relaxed) == queue.finished.load(ordering: .relaxed)
  }

  @inline(never)
  func doMore(_ ring: UnsafeMutablePointer<FlushQueue.Ring>) {
    if !queue.isTimerArmed.load(ordering: .relaxed) { armOrFlush(after: queue.timeout.load(ordering: .relaxed)) }
    unsafe reclaim(ring, all: false)
  }

  /// Frees what may go of one ring: a few entries, or as long as there are any.
  @inline(never)
  func reclaim(_ ring: UnsafeMutablePointer<FlushQueue.Ring>, all: Bool) {
    var batch = FlushQueue.Batch(repeating: .init())
    while true {
      let count = unsafe queue.take(from: ring, &batch)
      if count > 0 {
        var released: UInt64 = 0
        for index in 0..<count {
          let entry = unsafe batch[unchecked: index]
          // Most are, and their addresses fit into the loaded magazine.
          if entry.isRecorded, entry.memory == 0 {
            space.free(IOVA(entry.iova), byteCount: entry.byteCount)
            released &+= entry.byteCount
          } else {
            released &+= release(entry)
          }
        }
        slots.count { $0.queuedBytes &-= released }
        unsafe ring.pointee.releasing.wrappingSubtract(1, ordering: .releasing)
      }
      if !all || count < FlushQueue.Batch.count { break }
    }
    if withheld.isDue(queue.finished.load(ordering: .relaxed)) { releaseWithheld() }
  }

  func reclaimAll() {
    for index in 0..<queue.ringCount { unsafe reclaim(queue.rings! + index, all: true) }
  }

  /// The range is out of reach: its address may be given out again, and its memory. As ``releaseAddresses(of:)``.
  @inline(never)
  private func release(_ entry: FlushQueue.Entry) -> UInt64 {
    let released = releaseAddresses(of: entry)
    if let memory = unsafe UnsafeMutableRawPointer(bitPattern: entry.memory) { unsafe streaming.free(memory) }
    return released
  }

  /// Gives addresses back; how many bytes of them a slot has counted as queued. A list has many nodes; the lock is held for
  /// one at a time.
  private func releaseAddresses(of entry: FlushQueue.Entry) -> UInt64 {
    if entry.isRecorded {
      space.free(IOVA(entry.iova), byteCount: entry.byteCount)
      return entry.byteCount
    }
    var done: UInt64 = 0
    while done < entry.byteCount, let next = locked({ $0.releaseRetired(IOVA(entry.iova + done)) }) { done += next }
    return 0
  }
}

extension FlushQueue {
  /// The number that ``finished`` has to reach for all entries of a ring to go; 0 where there are none.
  func numberOfLast(_ ring: UnsafeMutablePointer<Ring>) -> UInt64 {
    unsafe ring.pointee.lock.lock()
    defer { unsafe ring.pointee.lock.unlock() }
    let tail = unsafe ring.pointee.waiting.tail
    guard unsafe tail > ring.pointee.waiting.head else { return 0 }
    return unsafe ring.pointee.waiting.entries![(tail - 1) & ring.pointee.waiting.mask].counter + 1
  }

  func hasRoom(_ ring: UnsafeMutablePointer<Ring>) -> Bool {
    unsafe ring.pointee.lock.lock()
    defer { unsafe ring.pointee.lock.unlock() }
    return unsafe ring.pointee.waiting.tail - ring.pointee.waiting.head < ring.pointee.waiting.mask
  }
}
