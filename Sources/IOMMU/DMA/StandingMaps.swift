import AddressSpace
import Synchronization

/// The memory that can be mapped once for all, by its address in this process.
///
/// A sorted table behind a spin lock that is never held across a system call, with the range that was found last at hand.
/// Ranges stay at their place, so that a mapping knows its own without a search. Whoever wants to map, unmap or remove one
/// claims it first: then it is his until he releases it, and the lock is free for everybody else.
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
    /// The one that was found last.
    var last: Range?
    /// Of mappings without a kernel call of their own, and of registrations.
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

  /// Says whether all are to be mapped.
  func setWanted(_ isWanted: Bool) { locked { $0.isWanted = isWanted } }

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

// MARK: - The data path

extension StandingMaps {
  /// Begins a mapping without a kernel call: where memory lies for the device, if all of it lies in one range that is
  /// mapped, and not above `limit`. O(log n) in the number of ranges, O(1) in the one that was found last.
  @inline(__always)
  func take(_ host: UInt64, byteCount: UInt64, limit: UInt64) -> (iova: IOVA, range: Range)? {
    unsafe guarded.pointee.lock.lock()
    defer { unsafe guarded.pointee.lock.unlock() }
    guard unsafe guarded.pointee.table.isWanted, let range = unsafe guarded.pointee.table.find(host, byteCount) else {
      return nil
    }
    guard unsafe range.pointee.isUsable else { return nil }
    let iova = unsafe range.pointee.iova &+ (host &- range.pointee.host)
    guard iova &+ (byteCount &- 1) <= limit else { return nil }
    unsafe range.pointee.live += 1
    unsafe guarded.pointee.table.counts.maps &+= 1
    unsafe guarded.pointee.table.counts.liveByteCount &+= byteCount
    return unsafe (IOVA(iova), range)
  }

  /// Ends a mapping that ``take(_:byteCount:limit:)`` began; true when it was the last in a range that is not to stay.
  @inline(__always)
  func give(_ range: Range, byteCount: UInt64) -> Bool {
    unsafe guarded.pointee.lock.lock()
    defer { unsafe guarded.pointee.lock.unlock() }
    unsafe range.pointee.live -= 1
    unsafe guarded.pointee.table.counts.unmaps &+= 1
    unsafe guarded.pointee.table.counts.liveByteCount &-= byteCount
    return unsafe range.pointee.live == 0 && (!guarded.pointee.table.isWanted || range.pointee.isEnded)
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

  /// The range that all of some memory lies in.
  @inline(__always)
  mutating func find(_ host: UInt64, _ byteCount: UInt64) -> StandingMaps.Range? {
    if let last = unsafe last, unsafe last.pointee.covers(host, byteCount) { return unsafe last }
    return unsafe search(host, byteCount)
  }

  @inline(never)
  private mutating func search(_ host: UInt64, _ byteCount: UInt64) -> StandingMaps.Range? {
    let above = place(host &+ 1)
    guard above > 0, unsafe ranges[above - 1].pointee.covers(host, byteCount) else { return nil }
    unsafe last = unsafe ranges[above - 1]
    return unsafe last
  }
}
