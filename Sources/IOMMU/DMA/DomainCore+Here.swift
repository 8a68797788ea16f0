import AddressSpace
import PageTables
import Synchronization

/// The shortest way: on tables in a hardware's format, of registered memory, a map is an address from a magazine, a record and a
/// store, and a lazy unmap a store and an entry in a ring. One taking of a slot covers all of it, with no call that can wait.
///
/// What looks from outside whether something is mapped, or wants no more mapped, passes all slots first (``DomainSlots/passAll()``):
/// who has one is done then, or sees what was changed.
///
/// Whatever is more than that goes the way that all others go, from its beginning. Both are part of their callers: on this path a call
/// costs as much as what it does.
extension DomainCore {
  /// As ``map(_:byteCount:limits:access:)``; the address, or 0, and nothing has changed.
  @inline(__always)
  func mapHere(
    _ base: UnsafeRawPointer, _ byteCount: Int, _ addressing: DeviceAddressing, _ access: DMAAccess
  ) -> UInt64 {
    let length = padded(byteCount), host = UInt64(UInt(bitPattern: base))
    guard let shortWay = unsafe shortWay, isOwner, length <= records.largestByteCount, !isFlushDue,
      !cache.isOpen.load(ordering: .relaxed)
    else { return 0 }
    // The limits are read with the slot held: who lowers them passes all slots before it looks what is in use.
    let slot = unsafe slots.lock(), first = addressing.limits.first
    guard unsafe !slot.pointee.tally.isClosed, let iova = space.popHere(byteCount: length, limit: first) else {
      unsafe slot.pointee.unlock()
      return 0
    }
    guard iova.rawValue >= lowest(first), records.enterHere(iova, host: host, byteCount: length),
      unsafe shortWay.pointee.map(iova: iova.rawValue, address: host, byteCount: length, canWrite: access.canWrite)
        || mapByWalk(iova.rawValue, host, length, access)
    else {
      records.remove(iova)
      unsafe slot.pointee.unlock()
      return giveBack(iova, host, length)
    }
    unsafe slot.pointee.tally.counts.maps &+= 1
    unsafe slot.pointee.tally.counts.liveBytes &+= length
    let isIndexed = unsafe slot.pointee.tally.isIndexed
    unsafe slot.pointee.unlock()
    if isIndexed { index(iova, host: host, length) }
    return iova.rawValue
  }

  /// As the short way, where what that needs was not known: it is then.
  @inline(never)
  private func mapByWalk(_ iova: UInt64, _ host: UInt64, _ length: UInt64, _ access: DMAAccess) -> Bool {
    hardwareTables!.mapHere(iova: iova, address: host, byteCount: length, access: access)
  }

  @inline(never)
  private func clearByWalk(_ iova: UInt64, _ length: UInt64) -> UInt64? {
    hardwareTables!.clearHere(iova: iova, byteCount: length)
  }

  @inline(never)
  private func giveBack(_ iova: IOVA, _ host: UInt64, _ length: UInt64) -> UInt64 {
    // Whoever makes the index now does not see it, and who was making it may have.
    locked { $0.unindex(iova, host: host) }
    space.free(iova, byteCount: length)
    return 0
  }

  /// As ``unmapLazily(_:length:memory:)`` of a buffer that the caller goes on to own; nil, and nothing has changed, where it begins
  /// otherwise.
  @inline(__always)
  func unmapHere(_ iova: IOVA, _ byteCount: Int) -> Result<UInt64, MapFailure>? {
    guard let shortWay = unsafe shortWay, lazyMode.load(ordering: .relaxed) != .strict else { return nil }
    let now = coarseNow(), length = padded(byteCount)
    guard isOwner, length <= records.largestByteCount, !isFlushDue(at: now), !cache.isOpen.load(ordering: .relaxed)
    else { return nil }
    let slot = unsafe slots.lock(), mode = lazyMode.load(ordering: .acquiring)
    guard unsafe !slot.pointee.tally.isClosed, mode != .strict,
      let (place, record) = unsafe records.live(iova),
      let cleared = unsafe shortWay.pointee.pages.clear(iova.rawValue, byteCount: length)
        ?? clearByWalk(iova.rawValue, length)
    else {
      unsafe slot.pointee.unlock()
      return nil
    }
    unsafe MappingTable.end(place, record)
    @inline(__always) func entry() -> FlushQueue.Entry {
      FlushQueue.Entry(iova: iova.rawValue, byteCount: length, time: max(now, 1), isRecorded: true)
    }
    unsafe slot.pointee.tally.counts.queuedBytes &+= length
    let isIndexed = unsafe slot.pointee.tally.countUnmap(length, systemCalls: 0), ring = unsafe queue.ring(mode)
    guard cleared == length, case .queued(let number) = unsafe queue.append(entry(), to: ring)
    else {
      unsafe slot.pointee.tally.inFlight &+= 1
      unsafe slot.pointee.unlock()
      return unsafe unmapRest(slot, entry(), record, isIndexed: isIndexed, cleared)
    }
    queue.noteQueued(at: max(now, 1))
    let isAll = unsafe hasNoMoreToDo(ring)
    if !isAll { unsafe slot.pointee.tally.inFlight &+= 1 }
    unsafe slot.pointee.unlock()
    if isIndexed { unindex(iova, record) }
    if !isAll { unsafe doMore(slot, ring) }
    return .success(number)
  }

  @inline(never)
  private func doMore(
    _ slot: UnsafeMutablePointer<DomainSlots.Slot>, _ ring: UnsafeMutablePointer<FlushQueue.Ring>
  ) {
    unsafe doMore(ring)
    unsafe slots.leave(slot)
    tellOfTimer()
  }

  /// What of it may wait, or went wrong.
  @inline(never)
  private func unmapRest(
    _ slot: UnsafeMutablePointer<DomainSlots.Slot>, _ entry: FlushQueue.Entry, _ record: MappingTable.Record,
    isIndexed: Bool, _ cleared: UInt64
  ) -> Result<UInt64, MapFailure> {
    if isIndexed { unindex(IOVA(entry.iova), record) }
    return unsafe queueAndLeave(slot, entry, cleared == entry.byteCount ? nil : .mismatch(cleared))
  }
}
