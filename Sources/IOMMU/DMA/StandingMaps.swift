import AddressSpace
import Synchronization

/// The memory that can be mapped once for all, by its address in this process.
///
/// A sorted table behind a spin lock that is never held across a system call; the range that a processor found last is in its
/// slot, see ``StandingHit``. Ranges stay at their place, so that a mapping knows its own without a search. Whoever wants to map,
/// unmap or remove one claims it first: then it is his until he releases it, and the lock is free for everybody else.
@safe
final class StandingMaps: @unchecked Sendable {
  typealias Range = UnsafeMutablePointer<StandingRange>

  @safe
  struct Table {
    /// Whether the protection in force wants all of them mapped.
    var isWanted = false
    /// Sorted by ``StandingRange/host``; none overlap.
    var ranges: UnsafeMutablePointer<Range>
    var count = 0, capacity = 4
    /// Of copies, and of registrations.
    var counts = Counts()

    init() { unsafe ranges = .allocate(capacity: 4) }
  }

  /// What ``DMAStatistics`` tells of these.
  struct Counts {
    var maps: UInt64 = 0, unmaps: UInt64 = 0, liveByteCount: UInt64 = 0
    var standingByteCount: UInt64 = 0, bouncedByteCount: UInt64 = 0
    var registrations = 0, registeredByteCount: UInt64 = 0
  }

  /// The lock stands beside what it guards, and behind it: ThreadSanitizer takes a change of a part for one at the start of
  /// the whole.
  private struct Guarded: ~Copyable {
    var table = Table()
    let lock = SpinLock()
  }

  private let guarded: UnsafeMutablePointer<Guarded>
  /// Registrations that have ended and wait for mappings inside of them.
  let endedCount = Atomic<Int>(0)

  init() {
    unsafe guarded = .allocate(capacity: 1)
    unsafe guarded.initialize(to: Guarded())
  }

  deinit {
    let table = unsafe guarded.pointee.table
    for index in 0..<table.count { unsafe table.ranges[index].deallocate() }
    unsafe table.ranges.deallocate()
    unsafe guarded.deinitialize(count: 1)
    unsafe guarded.deallocate()
  }

  @inline(__always)
  func locked<Result>(_ body: (inout Table) -> Result) -> Result {
    unsafe guarded.pointee.lock.lock()
    defer { unsafe guarded.pointee.lock.unlock() }
    return unsafe body(&guarded.pointee.table)
  }

  /// Adds what is counted here to what the domain counts elsewhere.
  func add(to statistics: inout DMAStatistics) {
    let counts = locked { $0.counts }
    statistics.maps += counts.maps
    statistics.unmaps += counts.unmaps
    statistics.liveMappings += Int(counts.maps &- counts.unmaps)
    statistics.liveBytes += counts.liveByteCount
    (statistics.registrations, statistics.registeredBytes) = (counts.registrations, counts.registeredByteCount)
    (statistics.persistentBytes, statistics.bouncedBytes) = (counts.standingByteCount, counts.bouncedByteCount)
  }

  var isWanted: Bool { locked { $0.isWanted } }

  /// Counts a mapping that is neither a map of its own nor inside of a range.
  func count(maps: UInt64 = 0, unmaps: UInt64 = 0, byteCount: Int, copied: Int) {
    locked { table in
      table.counts.maps &+= maps
      table.counts.unmaps &+= unmaps
      table.counts.liveByteCount = table.counts.liveByteCount &+ (maps &- unmaps) &* UInt64(byteCount)
      table.counts.bouncedByteCount &+= UInt64(copied)
    }
  }
}

extension StandingMaps.Table {
  /// The place of the first range that begins at an address or above.
  func place(_ host: UInt64) -> Int {
    var low = 0, high = count
    while low < high {
      let middle = (low + high) / 2
      if unsafe ranges[middle].pointee.host < host { low = middle + 1 } else { high = middle }
    }
    return low
  }

  /// The range that all of some memory lies in, if mappings can be made inside of it. O(log n).
  func usable(_ host: UInt64, _ byteCount: UInt64) -> StandingMaps.Range? {
    let above = place(host &+ 1)
    guard isWanted, above > 0 else { return nil }
    let range = unsafe ranges[above - 1]
    return unsafe range.pointee.isUsable && range.pointee.covers(host, byteCount) ? range : nil
  }
}
