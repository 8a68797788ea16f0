import AddressSpace

/// The mappings of a domain by host address, from the first question on.
///
/// It is made while others map and unmap, with the store's lock held for one entry at a time: whoever asks meanwhile goes on
/// making it, and the same entry twice is one. Each mapping that begins or ends tells it from the moment on
/// when it is there, complete or not. Guarded by the store's lock.
struct HostIndex: ~Copyable {
  private var intervals: IntervalIndex?
  /// One that had no memory for an entry. Memory is not given back with a lock held.
  private var dropped: IntervalIndex?
  /// Whether every mapping is in it.
  private(set) var isComplete = false
  /// Of the one that is made or complete.
  private(set) var number: UInt64 = 0

  /// Puts an index in place, unless there is one; its number. What it did not take, or has no use for, is left in the arguments.
  mutating func begin(_ fresh: inout IntervalIndex?, _ old: inout IntervalIndex?) -> UInt64 {
    old = dropped.take()
    if intervals == nil {
      intervals = fresh.take()
      number += 1
    }
    return number
  }

  /// Whether this one is still to be made.
  func isUnderWay(_ number: UInt64) -> Bool { self.number == number && intervals != nil && !isComplete }

  /// Every mapping is in the one with this number, if that is still there; whether one is complete.
  mutating func finish(_ number: UInt64) -> Bool {
    if isUnderWay(number) { isComplete = true }
    return isComplete
  }

  /// Enters a mapping, if there is an index. Without memory for one entry it goes, and the next question makes another.
  mutating func insert(_ iova: IOVA, host: UInt64, byteCount: UInt64) {
    guard intervals != nil else { return }
    do throws(RangeStoreFailure) {
      try intervals!.insert(.init(start: host, byteCount: byteCount, address: iova))
    } catch {
      guard error == .outOfMemory else { return }
      dropped = intervals.take()
      isComplete = false
    }
  }

  mutating func remove(_ iova: IOVA, host: UInt64) { intervals?.remove(start: host, address: iova) }

  /// A mapping that has all of some memory.
  func find(_ host: UInt64, _ byteCount: UInt64) -> IntervalIndex.Interval? {
    intervals?.find(containing: host, byteCount: byteCount)
  }

  // MARK: - Memory

  /// As ``IntervalIndex/announceInsertion()``; 0 where there is no index.
  mutating func announceInsertion() -> Int { intervals?.announceInsertion() ?? 0 }

  /// Adds memory if there is an index, or leaves it to the caller.
  mutating func add(_ chunk: inout BlockChunk?) {
    guard intervals != nil, let memory = chunk.take() else { return }
    intervals!.add(memory)
  }

  /// Lets the memory of the index run out after so many more chunks. For tests.
  func limitMemory(toChunks count: Int) { intervals?.limitMemory(toChunks: count) }
}

// MARK: - Making it

extension DomainCore {
  /// A mapping that has all of some memory of this process; nil as well when there is no memory for an index.
  func mapping(of host: UInt64, byteCount: UInt64) -> IntervalIndex.Interval? {
    repeat {
      let (isComplete, found) = locked { state in (state.hosts.isComplete, state.hosts.find(host, byteCount)) }
      if isComplete { return found }
    } while makeIndex()
    return nil
  }

  /// Makes the index, or helps with it: O(n log n). Whether it is complete; else there was no memory.
  private func makeIndex() -> Bool {
    // Asked for, and given back where another thread was faster, without the lock.
    var fresh = try? IntervalIndex(isFed: true), old: IntervalIndex?
    guard fresh != nil else { return false }
    let number = locked { state in
      // Told before the mappings are looked at, so that none is missed.
      defer { slots.setIndexed() }
      return state.hosts.begin(&fresh, &old)
    }
    records.forEach { start, _, _ in
      locked(insertions: 1) { state in
        // As it is now: what has ended since takes nothing out.
        guard state.hosts.isUnderWay(number), let record = records.mapping(at: start) else { return }
        state.hosts.insert(start, host: record.host, byteCount: record.byteCount)
      }
    }
    var from: IOVA? = IOVA(0)
    while let start = from { from = locked(insertions: 1) { $0.indexNext(from: start, number) } }
    return locked { $0.hosts.finish(number) }
  }

  /// With the lock held: gives it back to ask for memory for one entry of the index.
  @inline(never)
  func feedIndex(_ insertions: Int) {
    while true {
      let byteCount = unsafe state.pointee.hosts.announceInsertion()
      if byteCount == 0 { return }
      space.unlockStore()
      var chunk = BlockChunk(byteCount: byteCount)
      let isMissing = chunk == nil
      space.lockStore(insertions: insertions)
      unsafe state.pointee.hosts.add(&chunk)
      if isMissing { break }
      guard chunk != nil else { continue }
      // The index is gone.
      space.unlockStore()
      chunk = nil
      space.lockStore(insertions: insertions)
    }
    _ = unsafe state.pointee.hosts.announceInsertion()
  }
}

extension DomainState {
  /// Enters the first of the store's mappings from an address on, of a few nodes; where to go on, nil behind the last.
  fileprivate mutating func indexNext(from start: IOVA, _ number: UInt64) -> IOVA? {
    var from = start
    for _ in 0..<16 {
      guard hosts.isUnderWay(number), let node = store.next(from: from) else { return nil }
      if node.isMapping { hosts.insert(node.start, host: node.tag, byteCount: node.byteCount) }
      guard node.range.last.rawValue < .max else { return nil }
      from = IOVA(node.range.last.rawValue + 1)
      if node.isMapping { break }
    }
    return from
  }
}
