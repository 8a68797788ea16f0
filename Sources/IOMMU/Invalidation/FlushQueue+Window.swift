import AddressSpace
import Synchronization

/// How long entries wait: what the statistics call the window, and what makes an entry overdue.
extension FlushQueue {
  /// Notes how far a flush of this number reaches; when the oldest range was queued that it takes out of reach, or 0.
  /// Only the one who flushes may ask. O(rings + entries that were queued since the number was taken).
  func cover(before number: UInt64) -> UInt64 {
    var oldest: UInt64 = 0
    forEachRing { ring in
      var end = ring.tail
      while end > ring.firstUncovered, ring.entry(end - 1).counter >= number { end -= 1 }
      ring.covering = end
      oldest = earlier(oldest, ring.firstRange(before: end))
    }
    return oldest
  }

  /// The flush has finished: what it covered waits no longer. Before ``finished`` tells so, and entries go.
  func setCovered() { forEachRing { $0.covered = max($0.covered, $0.covering) } }

  /// Gives the hint, after the entry was queued.
  @inline(__always)
  func noteQueued(at time: UInt64) { if oldest.load(ordering: .relaxed) == 0 { lowerOldest(time) } }

  /// Makes the hint exact, as of a moment during this call; the answer is what it was then. O(rings).
  ///
  /// The hint is taken away before the rings are looked at, each under its lock: who queued in a ring before that is seen
  /// here, and who queues after it finds no hint and gives his own.
  @discardableResult
  func refreshOldest() -> UInt64 {
    oldest.store(0, ordering: .sequentiallyConsistent)
    var found: UInt64 = 0
    forEachRing { found = earlier(found, $0.firstRange(before: $0.tail)) }
    if found != 0 { lowerOldest(found) }
    return found
  }

  @inline(never)
  private func lowerOldest(_ time: UInt64) {
    var current = oldest.load(ordering: .relaxed)
    while current == 0 || current > time {
      let result = oldest.weakCompareExchange(expected: current, desired: time, ordering: .relaxed)
      if result.exchanged { return }
      current = result.original
    }
  }

  /// Returns when everything that was taken out of the rings before has been given back.
  func waitForReleases(_ kernel: any Kernel) {
    for index in 0..<ringCount {
      // Giving back makes no system call.
      while unsafe rings![index].releasing.load(ordering: .acquiring) != 0 { kernel.sleep(.microseconds(20)) }
    }
  }

  private func forEachRing(_ body: (inout Ring.Waiting) -> Void) {
    for index in 0..<ringCount {
      unsafe rings![index].lock.lock()
      unsafe body(&rings![index].waiting)
      unsafe rings![index].lock.unlock()
    }
  }

  private func earlier(_ first: UInt64, _ second: UInt64) -> UInt64 {
    first == 0 || second == 0 ? max(first, second) : min(first, second)
  }
}

extension FlushQueue.Ring.Waiting {
  /// Of the first entry that may be the first that no finished flush has covered: entries below ``head`` are gone, whoever
  /// covered them, and their memory may be.
  fileprivate var firstUncovered: Int { max(covered, head) }

  fileprivate func entry(_ place: Int) -> FlushQueue.Entry { unsafe entries![place & mask] }

  /// When the first range was queued that waits for a flush, below a place; 0 for none.
  fileprivate func firstRange(before end: Int) -> UInt64 {
    firstUncovered < end ? entry(firstUncovered).time : 0
  }
}
