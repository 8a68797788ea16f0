import AddressSpace
import Synchronization

/// The data path: address, record, translation, and back; a page of code without retain, release, allocation or a lock that
/// all processors share.
extension DomainCore {
  /// Maps whole pages at an address of the store's choice, within `limits`: above the first of them when that has no room.
  @inline(__always)
  func map(_ base: UnsafeRawPointer, byteCount: Int, limits: AddressLimits, access: DMAAccess) -> Result<
    IOVA, MapFailure
  > {
    guard isOwner else { return .failure(.forked) }
    let length = padded(byteCount)
    let host = UInt64(UInt(bitPattern: base))
    if length > records.largestByteCount { return mapLarge(host, length, limits, access) }
    let slot = unsafe slots.lock()
    guard unsafe !slot.pointee.tally.isClosed else {
      unsafe slot.pointee.unlock()
      return .failure(.closed)
    }
    unsafe slot.pointee.tally.inFlight &+= 1
    // Before the kernel call, and taken back if that fails: ``DomainState/report(_:_:)``.
    unsafe slot.pointee.tally.counts.maps &+= 1
    unsafe slot.pointee.tally.counts.liveBytes &+= length
    unsafe slot.pointee.unlock()
    if lazyMode.load(ordering: .relaxed) != .strict { flushOverdue() }
    let iova: IOVA
    if let address = space.allocateHere(byteCount: length, limit: limits.first, lowest: lowest(limits)) {
      iova = address
    } else {
      do throws(RangeStoreFailure) { iova = try place(length, limits) } catch {
        return unsafe undo(slot, length, systemCalls: 0, spaceFailure(error))
      }
    }
    guard records.enter(iova, host: host, byteCount: length) else {
      space.free(iova, byteCount: length)
      return unsafe undo(slot, length, systemCalls: 0, .space(.outOfMemory))
    }
    do throws(Errno) {
      if let directCalls {
        try directCalls.map(iova: iova.rawValue, address: host, byteCount: length, access: access)
      } else {
        try translation.map(iova: iova.rawValue, address: host, byteCount: length, access: access)
      }
    } catch { return unsafe undo(slot, iova, host: host, length, error) }
    if unsafe slots.leave(slot, systemCalls: callsEach) { index(iova, host: host, length) }
    return .success(iova)
  }

  /// What an address from the caches must be at least. A device that gets addresses above 4 GiB gets no others, as long as there
  /// are any: one that cannot drive their bits fails with the first.
  @inline(__always)
  func lowest(_ limits: AddressLimits) -> UInt64 { lowest(limits.first) }

  @inline(__always)
  func lowest(_ first: UInt64) -> UInt64 { first >> 32 == 0 ? 0 : highAddresses }

  /// An address that the loaded magazine has not got.
  @inline(never)
  private func place(_ length: UInt64, _ limits: AddressLimits) throws(RangeStoreFailure) -> IOVA {
    let iova = try afterDrain { () throws(RangeStoreFailure) in try allocate(length, limits) }
    // What ended inside of it was at addresses of another size. A length is rounded up to a power of two.
    let mask = UInt64.max >> UInt64((length - 1 | granuleMask).leadingZeroBitCount)
    records.forgetEnded(in: IOVARange(start: iova, last: IOVA(iova.rawValue | mask))!)
    return iova
  }

  private func allocate(_ length: UInt64, _ limits: AddressLimits) throws(RangeStoreFailure) -> IOVA {
    if limits.first < limits.last {
      do throws(RangeStoreFailure) {
        return try space.allocateElsewhere(byteCount: length, limit: limits.first, mayEmptyCaches: false)
      } catch {
        guard error == .noSpace || error == .fragmented else { throw error }
      }
    }
    var last = limits
    last.first = limits.last
    return try space.allocateElsewhere(
      byteCount: length, limit: last.last, lowest: lowest(last), mayEmptyCaches: true)
  }

  /// ``map(_:byteCount:limits:access:)`` of more than 2 MiB. What is longer than an area takes a call for each.
  @inline(never)
  private func mapLarge(_ host: UInt64, _ length: UInt64, _ limits: AddressLimits, _ access: DMAAccess) -> Result<
    IOVA, MapFailure
  > {
    guard enter() else { return .failure(.closed) }
    defer { leave() }
    if lazyMode.load(ordering: .relaxed) != .strict { flushOverdue() }
    let iova: IOVA
    do throws(RangeStoreFailure) {
      iova = try afterDrain { () throws(RangeStoreFailure) in
        try locked(insertions: 2) { state throws(RangeStoreFailure) in
          let request = RangeStore.Request(byteCount: length, alignment: Self.alignment(length))
          let iova = try state.take(request, limits, tag: host)
          state.mapped(iova, host: host, byteCount: length, systemCalls: callsEach)
          return iova
        }
      }
    } catch { return noSpace(error) }
    let (failure, calls) = mapInAreas(iova.rawValue, host: host, length, access)
    if let failure { return undo(iova, byteCount: length, failure, calls: calls) }
    if calls > 1 { locked { $0.statistics.systemCalls &+= callsEach &* (calls - 1) } }
    return .success(iova)
  }

  /// Tries again when addresses that are cached, wait for a flush, or are looked after for a moment may be what is in the way, and not
  /// what was asked for.
  @inline(__always)
  func afterDrain(_ body: () throws(RangeStoreFailure) -> IOVA) throws(RangeStoreFailure) -> IOVA {
    do throws(RangeStoreFailure) { return try body() } catch {
      guard mayPass(error) else { throw error }
      let isHeld = processOwned != nil
      if isHeld { holdReclaim() }
      defer { if isHeld { resumeReclaim() } }
      return try makingRoom(error, triesAtOnce: isHeld, body)
    }
  }

  /// Makes room as far as there is any to be made, after a try that failed.
  ///
  /// - Parameter triesAtOnce: Whether there may be some already.
  private func makingRoom(
    _ reason: RangeStoreFailure, triesAtOnce: Bool, _ body: () throws(RangeStoreFailure) -> IOVA
  ) throws(RangeStoreFailure) -> IOVA {
    var reason = reason, tries = roomTries
    if triesAtOnce {
      do throws(RangeStoreFailure) { return try body() } catch { reason = error }
      guard mayPass(reason) else { throw reason }
    }
    while tries > 0, makeAddressRoom(reason, sparesGaps: tries > 1) {
      do throws(RangeStoreFailure) { return try body() } catch { reason = error }
      guard mayPass(reason) else { throw reason }
      tries -= 1
    }
    guard lazyMode.load(ordering: .relaxed) != .strict || cache.count > 0, drain() == nil else { throw reason }
    // What was flushed is cached now.
    _ = makeAddressRoom(reason)
    return try body()
  }

  /// How often room is made before somebody has to wait for it: in debug mode what waits goes first, and gaps only if they must.
  var roomTries: Int { debug == nil ? 1 : 2 }

  /// Natural alignment up to 2 MiB: as the kernel's allocator, without the waste of large sizes.
  @inline(__always)
  static func alignment(_ length: UInt64) -> PageSize {
    length >= 1 << 21
      ? PageSize(shift: 21) : PageSize(shift: UInt8(truncatingIfNeeded: 64 &- (length &- 1).leadingZeroBitCount))
  }

  @inline(never)
  func noSpace(_ reason: RangeStoreFailure) -> Result<IOVA, MapFailure> {
    locked { $0.statistics.failedMaps += 1 }
    return .failure(spaceFailure(reason))
  }

  /// Why there are no addresses. What waits is not flushed any more when the domain ends, so that this says nothing of them then.
  func spaceFailure(_ reason: RangeStoreFailure) -> MapFailure {
    isClosed.load(ordering: .relaxed) ? .closed : .space(reason)
  }

  /// A map that the store knows failed, after so many calls. What could not be taken back keeps its addresses.
  @inline(never)
  func undo(
    _ iova: IOVA, byteCount: UInt64, _ failure: MapFailure, calls: UInt64 = 1
  ) -> Result<IOVA, MapFailure> {
    locked { state in
      if case .stuck = failure { state.statistics.leakedBytes += byteCount } else { state.forget(iova) }
      state.statistics.failedMaps += 1
      state.statistics.maps -= 1
      // One was counted with the mapping.
      state.statistics.systemCalls &+= callsEach &* (calls &- 1)
      state.statistics.liveMappings -= 1
      state.statistics.liveBytes -= byteCount
    }
    return .failure(failure)
  }

  /// The kernel refused what has its address and its record.
  @inline(never)
  private func undo(
    _ slot: UnsafeMutablePointer<DomainSlots.Slot>, _ iova: IOVA, host: UInt64, _ length: UInt64, _ error: Errno
  ) -> Result<IOVA, MapFailure> {
    records.remove(iova)
    // Whoever makes the index now does not see it, and who has made it may have.
    locked { $0.unindex(iova, host: host) }
    space.free(iova, byteCount: length)
    return unsafe undo(slot, length, systemCalls: callsEach, .system(error))
  }

  /// Takes back what was counted of a map.
  @inline(never)
  private func undo(
    _ slot: UnsafeMutablePointer<DomainSlots.Slot>, _ length: UInt64, systemCalls: UInt64, _ failure: MapFailure
  ) -> Result<IOVA, MapFailure> {
    locked { $0.statistics.failedMaps += 1 }
    unsafe slot.pointee.relock()
    unsafe slot.pointee.tally.counts.maps &-= 1
    unsafe slot.pointee.tally.counts.liveBytes &-= length
    unsafe slot.pointee.unlock()
    unsafe slots.leave(slot, systemCalls: systemCalls)
    return .failure(failure)
  }

  @inline(never)
  func index(_ iova: IOVA, host: UInt64, _ byteCount: UInt64) {
    locked(insertions: 1) { $0.hosts.insert(iova, host: host, byteCount: byteCount) }
  }
}

extension RangeStore {
  /// The first limit, and where there is no room below it the last. A first try that must fail is one comparison.
  func allocate(
    _ request: Request, _ limits: AddressLimits, kind: Kind = .allocation, tag: UInt64 = 0, auxiliary: UInt32 = 0
  ) throws(RangeStoreFailure) -> IOVA {
    var request = request
    request.limit = limits.first
    if limits.first < limits.last {
      do throws(RangeStoreFailure) {
        return try allocate(request, kind: kind, tag: tag, auxiliary: auxiliary)
      } catch {
        guard error == .noSpace || error == .fragmented else { throw error }
      }
      request.limit = limits.last
    }
    return try allocate(request, kind: kind, tag: tag, auxiliary: auxiliary)
  }
}

extension DomainState {
  /// Counts a mapping that has its address, and the kernel calls that make it, which may be still to come; with the lock taken
  /// for an insertion, which is the index's.
  mutating func mapped(_ iova: IOVA, host: UInt64, byteCount: UInt64, systemCalls: UInt64) {
    count(byteCount: byteCount, systemCalls: systemCalls)
    hosts.insert(iova, host: host, byteCount: byteCount)
  }

  /// Counts a mapping.
  mutating func count(byteCount: UInt64, systemCalls: UInt64) {
    statistics.maps &+= 1
    statistics.systemCalls &+= systemCalls
    statistics.liveMappings &+= 1
    statistics.liveBytes &+= byteCount
  }

  /// Takes back an address that was given out by the store.
  ///
  /// - Parameter reserved: The reservation that has it again; nil where it is free, in debug mode after a while.
  mutating func forget(_ iova: IOVA, reserved: IOVARange? = nil) {
    let host: UInt64?
    if let reserved { host = fence(iova, in: reserved) } else { host = release(iova)?.tag }
    if let host { unindex(iova, host: host) }
  }

  @inline(never)
  mutating func unindex(_ iova: IOVA, host: UInt64) { hosts.remove(iova, host: host) }

  @inline(__always)
  mutating func unmapped(_ iova: IOVA, byteCount: UInt64, systemCalls: UInt64, reserved: IOVARange? = nil) {
    forget(iova, reserved: reserved)
    noteEnded(iova, byteCount: byteCount)
    statistics.unmaps &+= 1
    statistics.systemCalls &+= systemCalls
    statistics.liveMappings &-= 1
    statistics.liveBytes &-= byteCount
  }
}
