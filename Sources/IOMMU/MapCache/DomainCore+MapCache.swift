import AddressSpace
import Synchronization

/// Mapping and unmapping owned buffers through the ``MapCache``, where there is one.
extension DomainCore {
  /// A buffer's address, and what the device may do there: maybe more than was asked for.
  struct Placed: BitwiseCopyable {
    var iova: IOVA
    var access: UInt8
  }

  /// As ``map(_:byteCount:limits:access:)``, for a buffer of this domain.
  @inline(__always)
  func mapOwned(
    _ base: UnsafeRawPointer, byteCount: Int, limits: AddressLimits, access: DMAAccess
  ) -> Result<Placed, MapFailure> {
    if cache.isOpen.load(ordering: .relaxed) {
      return unsafe mapCached(base, byteCount: byteCount, limits: limits, access: access)
    }
    switch unsafe map(base, byteCount: byteCount, limits: limits, access: access) {
    case .success(let iova): return .success(Placed(iova: iova, access: access.rawValue))
    case .failure(let failure): return .failure(failure)
    }
  }

  @inline(never)
  private func mapCached(
    _ base: UnsafeRawPointer, byteCount: Int, limits: AddressLimits, access: DMAAccess
  ) -> Result<Placed, MapFailure> {
    guard isOwner else { return .failure(.forked) }
    guard enter() else { return .failure(.closed) }
    defer { leave() }
    tearDownOverdue()
    let host = UInt64(UInt(bitPattern: base)), length = padded(byteCount)
    // Within the first limits only: the address policy shall see what a map without a cache would show it.
    let within = lowest(limits)...limits.first
    var isIndexed = false
    let kept = cache.take(host: host, byteCount: length, access: access.rawValue, limits: within) { kept in
      isIndexed = revive(IOVA(kept.iova), host: host, byteCount: length)
    }
    if let kept {
      // Without the cache's lock, as it may take memory.
      if isIndexed { index(IOVA(kept.iova), host: host, length) }
      return .success(Placed(iova: IOVA(kept.iova), access: kept.access))
    }
    switch makingRoom({ unsafe map(base, byteCount: byteCount, limits: limits, access: access) }) {
    case .success(let iova): return .success(Placed(iova: iova, access: access.rawValue))
    case .failure(let failure): return .failure(failure)
    }
  }

  /// As ``unmap(_:byteCount:freeing:)``, for a buffer that the caller goes on to own.
  @inline(__always)
  func unmapOwned(_ iova: IOVA, of base: UnsafeRawPointer, byteCount: Int, access: UInt8) -> Result<UInt64, MapFailure>
  {
    if cache.isOpen.load(ordering: .relaxed), unsafe keep(iova, of: base, byteCount: byteCount, access: access) {
      return .success(0)
    }
    return unsafe unmap(iova, byteCount: byteCount)
  }

  /// Keeps the map of a mapping that ends; false when it must be unmapped, as there is no room or no cache any more.
  @inline(never)
  private func keep(_ iova: IOVA, of base: UnsafeRawPointer, byteCount: Int, access: UInt8) -> Bool {
    guard isOwner, enter() else { return false }
    let isKept = unsafe keepEntered(iova, of: base, byteCount: byteCount, access: access)
    leave()
    tellOfTimer()
    return isKept
  }

  private func keepEntered(_ iova: IOVA, of base: UnsafeRawPointer, byteCount: Int, access: UInt8) -> Bool {
    tearDownOverdue()
    let length = padded(byteCount)
    let kept = MapCache.Kept(
      iova: iova.rawValue, host: UInt64(UInt(bitPattern: base)), byteCount: length, access: access, time: coarseNow())
    var offered = offer(kept)
    if offered == .full {
      // Once: making room for a long buffer could take as many calls as there are short ones.
      _ = tearDown(.untilRoom(length), atMost: 1)
      offered = offer(kept)
    }
    guard offered == .kept else { return false }
    if !queue.isTimerArmed.load(ordering: .relaxed) { armOrFlush(after: cache.timeout.load(ordering: .relaxed)) }
    return true
  }

  private func offer(_ kept: MapCache.Kept) -> MapCache.Offered {
    cache.offer(kept) { rest(IOVA(kept.iova), byteCount: kept.byteCount) }
  }
}

// MARK: - Tearing down

extension DomainCore {
  /// Has the kernel unmap what is kept, as far as it is meant; the last failure. What fails stays kept, and out of use; so does
  /// what is left when the domain is closed meanwhile, which takes everything out of reach.
  @discardableResult
  @inline(never)
  func tearDown(_ which: MapCache.Which, atMost rounds: Int = .max) -> MapFailure? {
    var batch = MapCache.Batch(repeating: .init())
    var failure: MapFailure?
    for _ in 0..<rounds {
      let count = cache.take(which, &batch)
      for index in 0..<count {
        let leaving = batch[index], (reason, done, calls) = unmapKept(leaving)
        slots.count { $0.systemCalls &+= callsEach &* calls }
        if let reason {
          cache.refuse(leaving.place, unmapped: done)
          failure = reason
        } else {
          release(IOVA(leaving.iova), byteCount: leaving.byteCount)
          cache.remove(leaving.place)
        }
      }
      if count < MapCache.Batch.count || failure.map(\.isClosed) ?? false { break }
    }
    return failure
  }

  /// Goes on where an earlier attempt has stopped.
  private func unmapKept(_ leaving: MapCache.Leaving) -> (failure: MapFailure?, done: UInt64, calls: UInt64) {
    // Whoever closes the domain waits for this.
    if isClosed.load(ordering: .relaxed) { return (.closed, leaving.unmapped, 0) }
    return unmapInAreas(leaving.iova, leaving.byteCount, from: leaving.unmapped)
  }

  /// On success, nothing that was kept before this call is within reach.
  @inline(never)
  func emptyCache() -> MapFailure? {
    guard cache.count > 0 else { return nil }
    let end = cache.number()
    repeat {
      // What is refused from here on is not tried twice.
      let pass = cache.number()
      var failure = tearDown(.ready(before: end))
      failure = tearDown(.refused(before: pass)) ?? failure
      if let failure { return failure }
      // Other threads' calls, which end by themselves.
      while cache.remainder(before: end) == .leaving { kernel.sleep(.microseconds(20)) }
    } while cache.remainder(before: end) != nil
    if cache.count == 0 { disarmTimer() }
    return nil
  }

  /// Takes memory that is about to be freed out of reach; false when the kernel refuses.
  @inline(never)
  func tearDownMaps(of memory: UnsafeMutableRawPointer) -> Bool {
    var isDone = false
    if enter() {
      isDone = tearDownMaps(of: UInt64(UInt(bitPattern: memory)))
      leave()
    }
    guard !isDone, isClosed.load(ordering: .acquiring) else { return isDone }
    waitUntilEmptied()
    return true
  }

  private func tearDownMaps(of host: UInt64) -> Bool {
    repeat {
      if tearDown(.of(host: host)) != nil { return false }
      while cache.remainder(host: host) == .leaving { kernel.sleep(.microseconds(20)) }
      // Another thread may have been refused.
    } while cache.remainder(host: host) != nil
    return true
  }

  /// What has not been used for long enough goes before anything else is done, where the timer has not seen to it.
  @inline(__always)
  private func tearDownOverdue() {
    guard let oldest = cache.oldestTime else { return }
    let now = coarseNow()
    if now > oldest, now - oldest > cache.timeout.load(ordering: .relaxed) &+ Limits.overdue { tearDownIdle(now) }
  }

  private func tearDownIdle(_ now: UInt64, atMost rounds: Int = .max) {
    let timeout = cache.timeout.load(ordering: .relaxed), pass = cache.number()
    if now >= timeout { tearDown(.idle(since: now - timeout), atMost: rounds) }
    tearDown(.refused(before: pass), atMost: rounds)
  }

  /// The timer: tears down what is due, and comes again for the rest, after so many nanoseconds.
  func tearDownWhenDue() -> UInt64? {
    guard cache.count > 0 else { return nil }
    let now = kernel.now()
    // Some thousand calls take tens of milliseconds, which a thread that closes the domain would wait for.
    tearDownIdle(now, atMost: Limits.roundsOfTheTimer)
    guard cache.count > 0 else { return nil }
    let timeout = cache.timeout.load(ordering: .relaxed), oldest = min(cache.oldestTime ?? now, now)
    return timeout - min(now - oldest, timeout)
  }
}

extension Limits {
  /// How many batches the timer tears down without looking whether there is something else to do: 512 calls, 10 ms where an
  /// invalidation takes 20 µs.
  package static let roundsOfTheTimer = 32
}

// MARK: - Room

extension DomainCore {
  /// Tries again where what is kept may be what is in the way: memory that it has pinned, or entries of a container.
  @inline(__always)
  func makingRoom(_ body: () -> Result<IOVA, MapFailure>) -> Result<IOVA, MapFailure> {
    let result = body()
    guard case .failure(.system(let errno)) = result, makesRoom(after: errno) else { return result }
    return body()
  }

  /// As ``Translation/map(iova:address:byteCount:access:)``, with ``makingRoom(_:)``.
  func mapMakingRoom(iova: UInt64, address: UInt64, byteCount: UInt64, access: DMAAccess) throws(Errno) {
    do throws(Errno) {
      return try translation.map(iova: iova, address: address, byteCount: byteCount, access: access)
    } catch { if !makesRoom(after: error) { throw error } }
    try translation.map(iova: iova, address: address, byteCount: byteCount, access: access)
  }

  /// The same for what grows an arena.
  func growMakingRoom(_ body: () throws(DMAError) -> Void) throws(DMAError) {
    do throws(DMAError) { return try body() } catch {
      guard let errno = error.errno, makesRoom(after: errno) else { throw error }
    }
    try body()
  }

  /// Empties the cache where that may mend an error; whether it did.
  @inline(never)
  func makesRoom(after errno: Errno) -> Bool {
    guard errno == .noMemory || errno == .noSpace, cache.count > 0, enter() else { return false }
    defer { leave() }
    return emptyCache() == nil
  }
}

// MARK: - Addresses and counters

/// All that the cache has to do with records and addresses: what ends with a mapping, and what with its map.
///
/// The first two are called with the cache's lock held, and take a slot's or the store's inside of it: so statistics show a
/// mapping as live or its map as kept.
extension DomainCore {
  /// A mapping ends and its map is kept: its address stays taken, as of one that waits for a flush.
  private func rest(_ iova: IOVA, byteCount: UInt64) {
    guard let record = records.end(iova) else {
      return locked { state in
        state.retire(iova, byteCount: byteCount)
        state.statistics.queuedBytes &-= byteCount
      }
    }
    let slot = unsafe slots.lock()
    let isIndexed = unsafe slot.pointee.tally.countUnmap(byteCount, systemCalls: 0)
    unsafe slot.pointee.unlock()
    if isIndexed { unindex(iova, record) }
  }

  /// A map that was kept is a mapping's again, without a system call; whether it has to be told to the index of host addresses.
  private func revive(_ iova: IOVA, host: UInt64, byteCount: UInt64) -> Bool {
    guard byteCount <= records.largestByteCount else {
      return locked { state in
        _ = state.store.setTag(host, at: iova)
        state.count(byteCount: byteCount, systemCalls: 0)
        return true
      }
    }
    // The table has a node for it, as there was a record before.
    _ = records.enter(iova, host: host, byteCount: byteCount)
    let slot = unsafe slots.lock()
    unsafe slot.pointee.tally.counts.maps &+= 1
    unsafe slot.pointee.tally.counts.liveBytes &+= byteCount
    let isIndexed = unsafe slot.pointee.tally.isIndexed
    unsafe slot.pointee.unlock()
    return isIndexed
  }

  /// A map that was kept is gone: its address is free.
  private func release(_ iova: IOVA, byteCount: UInt64) {
    if byteCount <= records.largestByteCount {
      space.free(iova, byteCount: byteCount)
    } else {
      locked { _ = $0.release(iova) }
    }
  }
}
