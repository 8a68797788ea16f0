import AddressSpace
import CIOMMU

/// The memory mapped once for all that the mappings on a processor were found in last, and how many of those are counted here.
///
/// While a range stands in a slot it is mapped, wanted, not ended, and nobody has claimed it: whoever changes what is wanted, or
/// ends one, clears all slots first, see ``DomainCore/withoutHits(_:)``. So finding it again takes no lock that processors share, and writes to no line that they do.
@safe
struct StandingHit: BitwiseCopyable {
  /// Where it begins in this process, and its length in bytes: 0, which nothing lies in, where there is none.
  private(set) var host: UInt64 = 0, byteCount: UInt64 = 0
  /// From an address of this process to the device's.
  private(set) var shift: UInt64 = 0
  private(set) var range: UnsafeMutablePointer<StandingRange>?
  /// Mappings that began here, less those that ended here; ``StandingRange/live`` has the others. May be below zero.
  var live = 0

  init() {}

  init(_ range: UnsafeMutablePointer<StandingRange>) {
    host = unsafe range.pointee.host
    byteCount = unsafe range.pointee.byteCount
    shift = unsafe range.pointee.iova &- range.pointee.host
    unsafe self.range = range
  }

  /// Where memory lies for the device; nil where not all of it is in the range, or some of it above `limit`.
  @inline(__always)
  func find(_ address: UInt64, _ length: UInt64, _ limit: UInt64) -> IOVA? {
    let offset = address &- host, iova = address &+ shift
    guard offset < byteCount, length <= byteCount &- offset, iova &+ (length &- 1) <= limit else { return nil }
    return IOVA(iova)
  }

  /// Gives the range what was counted of it here. With the lock of ``StandingMaps`` held.
  mutating func fold() {
    if let range = unsafe range { unsafe range.pointee.live += live }
    self = StandingHit()
  }
}

extension DomainSlots {
  /// Begins a mapping in the memory that this processor's slot names; nil where that is not in it, or somebody has the slot.
  @inline(__always)
  func takeHit(
    _ host: UInt64, byteCount: UInt64, limit: UInt64
  ) -> (iova: IOVA, range: StandingMaps.Range)? {
    let slot = unsafe own
    guard unsafe slot.pointee.tryLock() else { return nil }
    defer { unsafe slot.pointee.unlock() }
    guard let iova = unsafe slot.pointee.hit.find(host, byteCount, limit), let range = unsafe slot.pointee.hit.range
    else { return nil }
    unsafe slot.pointee.hit.live &+= 1
    unsafe slot.pointee.tally.counts.maps &+= 1
    unsafe slot.pointee.tally.counts.liveBytes &+= byteCount
    return unsafe (iova, range)
  }

  /// Ends a mapping in the memory that this processor's slot names; false where it names other, or somebody has the slot.
  @inline(__always)
  func giveHit(_ range: StandingMaps.Range, byteCount: UInt64) -> Bool {
    let slot = unsafe own
    guard unsafe slot.pointee.tryLock() else { return false }
    defer { unsafe slot.pointee.unlock() }
    guard unsafe slot.pointee.hit.range == range else { return false }
    unsafe slot.pointee.hit.live &-= 1
    unsafe slot.pointee.tally.counts.unmaps &+= 1
    unsafe slot.pointee.tally.counts.liveBytes &-= byteCount
    return true
  }
}

extension DomainCore {
  /// Calls a function on the table of standing maps while no slot names any of them, and none begins to. O(processors).
  func withoutHits<Result>(_ body: (inout StandingMaps.Table) -> Result) -> Result {
    slots.withAllHits { hits in
      standing.locked { table in
        hits.foldAll()
        return body(&table)
      }
    }
  }

  /// ``DomainSlots/takeHit(_:byteCount:limit:)`` of what the slot does not name, which does from now on. O(log n) in the number
  /// of ranges, and with the lock of all.
  @inline(never)
  func takeMiss(
    _ host: UInt64, byteCount: UInt64, limit: UInt64
  ) -> (iova: IOVA, range: StandingMaps.Range)? {
    let slot = unsafe slots.lock()
    defer { unsafe slot.pointee.unlock() }
    guard unsafe !slot.pointee.tally.isClosed else { return nil }
    return unsafe standing.locked { table in
      guard let range = unsafe table.usable(host, byteCount) else { return nil }
      let hit = unsafe StandingHit(range)
      guard let iova = hit.find(host, byteCount, limit) else { return nil }
      unsafe slot.pointee.hit.fold()
      unsafe slot.pointee.hit = hit
      unsafe slot.pointee.hit.live = 1
      unsafe slot.pointee.tally.counts.maps &+= 1
      unsafe slot.pointee.tally.counts.liveBytes &+= byteCount
      return unsafe (iova, range)
    }
  }

  /// ``DomainSlots/giveHit(_:byteCount:)`` of what the slot does not name; true when it was the last mapping in a range that is
  /// not to stay.
  @inline(never)
  func giveMiss(_ range: StandingMaps.Range, byteCount: UInt64) -> Bool {
    let slot = unsafe slots.lock()
    defer { unsafe slot.pointee.unlock() }
    unsafe slot.pointee.tally.counts.unmaps &+= 1
    unsafe slot.pointee.tally.counts.liveBytes &-= byteCount
    return standing.locked { table in
      // What some slot names stays, so that then the sum of all does not matter.
      unsafe range.pointee.live -= 1
      return unsafe range.pointee.live == 0 && (!table.isWanted || range.pointee.isEnded)
    }
  }
}
