import AddressSpace
import Synchronization

/// The other half of the data path: translation, record, address.
extension DomainCore {
  /// Unmaps what ``map`` mapped. On success the device cannot reach it any more and the IOVA is free, or in a lazy mode
  /// will be when ``FlushQueue/finished`` has reached the number that is the answer; then `memory` is freed as well. With
  /// 0 for an answer nothing waits, and `memory` is the caller's to free.
  @inline(__always)
  func unmap(
    _ iova: IOVA, byteCount: Int, freeing memory: UnsafeMutableRawPointer? = nil
  ) -> Result<UInt64, MapFailure> {
    guard isOwner else { return .failure(.forked) }
    let length = padded(byteCount)
    if lazyMode.load(ordering: .relaxed) != .strict { return unsafe unmapLazily(iova, length: length, memory: memory) }
    return unmapNow(iova, length)
  }

  @inline(__always)
  private func unmapNow(_ iova: IOVA, _ length: UInt64) -> Result<UInt64, MapFailure> {
    if length > UInt64(Limits.areaByteCount), callsEach != 0 { return unmapLarge(iova, length) }
    let slot = unsafe slots.lock()
    guard unsafe !slot.pointee.tally.isClosed else {
      unsafe slot.pointee.unlock()
      return unmapClosed(iova, length)
    }
    unsafe slot.pointee.tally.inFlight &+= 1
    unsafe slot.pointee.unlock()
    do throws(Errno) {
      let done =
        if let directCalls {
          try directCalls.unmap(iova: iova.rawValue, byteCount: length)
        } else {
          try translation.unmap(iova: iova.rawValue, byteCount: length)
        }
      if done != length {
        unsafe slots.leave(slot)
        return .failure(.mismatch(done))
      }
    } catch {
      unsafe slots.leave(slot)
      return .failure(.system(error))
    }
    guard let record = records.end(iova) else { return unsafe endStored(slot, iova, length) }
    unsafe slot.pointee.relock()
    unsafe slot.pointee.tally.inFlight &-= 1
    let isIndexed = unsafe slot.pointee.tally.countUnmap(length, systemCalls: callsEach)
    unsafe slot.pointee.unlock()
    if isIndexed { unindex(iova, record) }
    space.free(iova, byteCount: length)
    return .success(0)
  }

  /// Ends a mapping that the store knows.
  @inline(never)
  private func endStored(
    _ slot: UnsafeMutablePointer<DomainSlots.Slot>, _ iova: IOVA, _ length: UInt64
  ) -> Result<UInt64, MapFailure> {
    locked { $0.unmapped(iova, byteCount: length, systemCalls: callsEach) }
    unsafe slots.leave(slot)
    return .success(0)
  }

  /// Ends a mapping of a closed domain: the kernel unmaps everything by itself.
  @inline(never)
  func unmapClosed(_ iova: IOVA, _ length: UInt64) -> Result<UInt64, MapFailure> {
    waitUntilEmptied()
    guard let record = records.end(iova) else {
      locked { $0.unmapped(iova, byteCount: length, systemCalls: 0) }
      return .success(0)
    }
    countUnmap(iova, record, length, systemCalls: 0)
    return .success(0)
  }

  /// Counts a mapping that has ended, and frees its address.
  func countUnmap(_ iova: IOVA, _ record: MappingTable.Record, _ length: UInt64, systemCalls: UInt64) {
    let slot = unsafe slots.lock()
    let isIndexed = unsafe slot.pointee.tally.countUnmap(length, systemCalls: systemCalls)
    unsafe slot.pointee.unlock()
    if isIndexed { unindex(iova, record) }
    space.free(iova, byteCount: length)
  }

  @inline(never)
  func unindex(_ iova: IOVA, _ record: MappingTable.Record) { locked { $0.unindex(iova, host: record.host) } }
}

extension DomainSlots.Tally {
  /// With the lock held: counts a mapping that has ended; whether there is an index of host addresses.
  @inline(__always)
  mutating func countUnmap(_ byteCount: UInt64, systemCalls: UInt64) -> Bool {
    counts.unmaps &+= 1
    counts.liveBytes &-= byteCount
    counts.systemCalls &+= systemCalls
    return isIndexed
  }
}
