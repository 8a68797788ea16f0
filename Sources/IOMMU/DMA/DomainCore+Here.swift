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
///
/// Rare turns are functions of their own that go on to the end, rather than come back: what is in registers need not be kept for them.
extension DomainCore {
  /// As ``map(_:byteCount:limits:access:)``, if ``here`` says that maps go this way; the address, or 0, and nothing has changed.
  @inline(__always)
  func mapHere(
    _ base: UnsafeRawPointer, _ byteCount: Int, _ addressing: DeviceAddressing, _ access: DMAAccess
  ) -> UInt64 {
    let length = padded(byteCount), host = UInt64(UInt(bitPattern: base))
    guard isOwner, length <= records.largestByteCount, !isFlushDue else { return 0 }
    // The limits are read with the slot held: who lowers them passes all slots before it looks what is in use.
    let slot = unsafe slots.lock(), first = addressing.limits.first
    guard unsafe !slot.pointee.tally.isClosed, let iova = space.popHere(byteCount: length, limit: first) else {
      unsafe slot.pointee.unlock()
      return 0
    }
    guard iova.rawValue >= lowest(first), records.enterNear(iova, host: host, byteCount: length),
      unsafe shortWay.unsafelyUnwrapped.pointee.map(
        iova: iova.rawValue, address: host, byteCount: length, canWrite: access.canWrite)
    else { return unsafe mapByWalk(slot, iova, host, length, first, access) }
    return unsafe endMap(slot, iova, host, length)
  }

  @inline(__always)
  private func endMap(
    _ slot: UnsafeMutablePointer<DomainSlots.Slot>, _ iova: IOVA, _ host: UInt64, _ length: UInt64
  ) -> UInt64 {
    unsafe slot.pointee.tally.counts.maps &+= 1
    unsafe slot.pointee.tally.counts.liveBytes &+= length
    let isIndexed = unsafe slot.pointee.tally.isIndexed
    unsafe slot.pointee.unlock()
    return isIndexed ? indexed(iova, host, length) : iova.rawValue
  }

  @inline(never)
  private func indexed(_ iova: IOVA, _ host: UInt64, _ length: UInt64) -> UInt64 {
    index(iova, host: host, length)
    return iova.rawValue
  }

  /// What was not known is looked for; it is known then.
  @inline(never)
  private func mapByWalk(
    _ slot: UnsafeMutablePointer<DomainSlots.Slot>, _ iova: IOVA, _ host: UInt64, _ length: UInt64, _ first: UInt64,
    _ access: DMAAccess
  ) -> UInt64 {
    if iova.rawValue >= lowest(first), records.enterHere(iova, host: host, byteCount: length),
      hardwareTables!.mapHere(iova: iova.rawValue, address: host, byteCount: length, access: access)
    {
      return unsafe endMap(slot, iova, host, length)
    }
    records.remove(iova)
    unsafe slot.pointee.unlock()
    // Whoever makes the index now does not see it, and who was making it may have.
    locked { $0.unindex(iova, host: host) }
    space.free(iova, byteCount: length)
    return 0
  }

  /// As ``unmapLazily(_:length:memory:)`` of a buffer that the caller goes on to own; nil, and nothing has changed, where it begins
  /// otherwise.
  @inline(__always)
  func unmapHere(_ iova: IOVA, _ byteCount: Int) -> Result<UInt64, MapFailure>? {
    guard here.load(ordering: .relaxed) >= HereMode.lazy else { return nil }
    let now = max(coarseNow(), 1), length = padded(byteCount)
    guard isOwner, length <= records.largestByteCount, !isFlushDue(at: now) else { return nil }
    let slot = unsafe slots.lock(), mode = here.load(ordering: .relaxed)
    guard unsafe !slot.pointee.tally.isClosed, mode >= HereMode.lazy else {
      unsafe slot.pointee.unlock()
      return nil
    }
    guard let (place, record) = unsafe records.liveNear(iova),
      let cleared = unsafe shortWay.unsafelyUnwrapped.pointee.pages.clear(iova.rawValue, byteCount: length)
    else { return unsafe unmapByWalk(slot, iova, length, now, mode) }
    return unsafe endUnmap(slot, iova, length, now, mode, place, record, cleared)
  }

  @inline(never)
  private func unmapByWalk(
    _ slot: UnsafeMutablePointer<DomainSlots.Slot>, _ iova: IOVA, _ length: UInt64, _ now: UInt64, _ mode: UInt8
  ) -> Result<UInt64, MapFailure>? {
    guard let (place, record) = unsafe records.live(iova),
      let cleared = hardwareTables!.clearHere(iova: iova.rawValue, byteCount: length)
    else {
      unsafe slot.pointee.unlock()
      return nil
    }
    return unsafe endUnmap(slot, iova, length, now, mode, place, record, cleared)
  }

  @inline(__always)
  private func endUnmap(
    _ slot: UnsafeMutablePointer<DomainSlots.Slot>, _ iova: IOVA, _ length: UInt64, _ now: UInt64, _ mode: UInt8,
    _ place: UnsafeMutablePointer<Atomic<UInt64>>, _ record: MappingTable.Record, _ cleared: UInt64
  ) -> Result<UInt64, MapFailure>? {
    unsafe MappingTable.endHere(place, record)
    unsafe slot.pointee.tally.counts.queuedBytes &+= length
    let isIndexed = unsafe slot.pointee.tally.countUnmap(length, systemCalls: 0)
    let ring = unsafe queue.ring(isSingle: mode == HereMode.single)
    @inline(__always) func entry() -> FlushQueue.Entry {
      FlushQueue.Entry(iova: iova.rawValue, byteCount: length, time: now, isRecorded: true)
    }
    guard cleared == length, case .queued(let number) = unsafe queue.append(entry(), to: ring) else {
      return unsafe unmapRest(slot, entry(), record, isIndexed: isIndexed, cleared)
    }
    queue.noteQueued(at: now)
    guard unsafe hasNoMoreToDo(ring), !isIndexed else {
      return unsafe doMore(slot, ring, iova, record, isIndexed: isIndexed, number)
    }
    unsafe slot.pointee.unlock()
    return .success(number)
  }

  /// With the slot held.
  @inline(never)
  private func doMore(
    _ slot: UnsafeMutablePointer<DomainSlots.Slot>, _ ring: UnsafeMutablePointer<FlushQueue.Ring>, _ iova: IOVA,
    _ record: MappingTable.Record, isIndexed: Bool, _ number: UInt64
  ) -> Result<UInt64, MapFailure>? {
    unsafe slot.pointee.tally.inFlight &+= 1
    unsafe slot.pointee.unlock()
    if isIndexed { unindex(iova, record) }
    if unsafe !hasNoMoreToDo(ring) { unsafe doMore(ring) }
    unsafe slots.leave(slot)
    tellOfTimer()
    return .success(number)
  }

  /// What of it may wait, or went wrong; with the slot held.
  @inline(never)
  private func unmapRest(
    _ slot: UnsafeMutablePointer<DomainSlots.Slot>, _ entry: FlushQueue.Entry, _ record: MappingTable.Record,
    isIndexed: Bool, _ cleared: UInt64
  ) -> Result<UInt64, MapFailure>? {
    unsafe slot.pointee.tally.inFlight &+= 1
    unsafe slot.pointee.unlock()
    if isIndexed { unindex(IOVA(entry.iova), record) }
    return unsafe queueAndLeave(slot, entry, cleared == entry.byteCount ? nil : .mismatch(cleared))
  }
}
