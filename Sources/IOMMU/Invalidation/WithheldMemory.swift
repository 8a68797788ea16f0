import Synchronization

/// Memory that was freed while a range that leads to it waits for a flush: it goes when that has finished.
///
/// It needs no place in a ring: the range has one, so that a flush comes in any case. What limits it is its length in bytes.
final class WithheldMemory: Sendable {
  private struct Item {
    var memory: UInt
    var byteCount: Int
    /// It may go when ``FlushQueue/finished`` has reached this.
    var number: UInt64
  }

  private let items = Mutex<[Item]>([])
  /// The lowest number, never above it; the highest of all where there is nothing.
  private let lowest = Atomic<UInt64>(.max)
  private let held = Atomic<Int>(0)

  /// In bytes.
  var byteCount: Int { held.load(ordering: .relaxed) }

  func add(_ memory: UnsafeMutableRawPointer, byteCount: Int, until number: UInt64) {
    items.withLock { items in
      items.append(Item(memory: UInt(bitPattern: memory), byteCount: byteCount, number: number))
      lowest.store(min(number, lowest.load(ordering: .relaxed)), ordering: .relaxed)
      held.wrappingAdd(byteCount, ordering: .relaxed)
    }
  }

  /// Whether some of it may go.
  @inline(__always)
  func isDue(_ finished: UInt64) -> Bool { lowest.load(ordering: .relaxed) <= finished }

  /// Takes out what may go: where it is. O(all).
  func takeDue(_ finished: UInt64) -> [UInt] {
    items.withLock { items in
      var due: [UInt] = []
      var least = UInt64.max
      items.removeAll { item in
        guard item.number <= finished else {
          least = min(least, item.number)
          return false
        }
        due.append(item.memory)
        held.wrappingSubtract(item.byteCount, ordering: .relaxed)
        return true
      }
      lowest.store(least, ordering: .relaxed)
      return due
    }
  }
}

// MARK: - Memory that was freed

extension DomainCore {
  /// Frees memory whose last unmap was queued under a number: now, or when that number is reached.
  func free(_ memory: UnsafeMutableRawPointer, byteCount: Int, after number: UInt64) {
    // What is kept of it goes first.
    if cache.count > 0, unsafe !tearDownMaps(of: memory) {
      return locked { $0.statistics.leakedBytes += padded(byteCount) }
    }
    guard number > queue.finished.load(ordering: .acquiring) else { return unsafe streaming.free(memory) }
    guard enter() else {
      // All is out of reach with the domain, whatever was flushed before.
      waitUntilEmptied()
      return unsafe streaming.free(memory)
    }
    defer { leave() }
    // A single buffer waits, however long it is.
    if withheld.byteCount > Limits.withheldByteCount, case .done = flush() { reclaimAll() }
    // Whole pages, as it takes them.
    unsafe withheld.add(memory, byteCount: Int(padded(byteCount)), until: number)
    // The flush may have finished while it was added: who finishes one sees it, or this sees that.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
    releaseWithheld()
  }

  /// Frees what may go.
  @inline(never)
  func releaseWithheld() {
    let finished = queue.finished.load(ordering: .acquiring)
    guard withheld.isDue(finished) else { return }
    for place in withheld.takeDue(finished) { unsafe streaming.free(UnsafeMutableRawPointer(bitPattern: place)!) }
  }
}

extension Limits {
  /// With how much freed memory that waits, in bytes, a flush is made before more has to: what a ring of lists of 64 pages comes to.
  package static let withheldByteCount = 64 << 20
}
