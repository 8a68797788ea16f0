public import AddressSpace
import Synchronization

extension DMADomain {
  /// Maps much memory of the caller's, an area of 32 MiB at a time, on several threads if wanted, until somebody stops it.
  ///
  /// Pinning takes the kernel about 1 ms an area of 4 KiB pages, in which it cannot be interrupted; this is also how long
  /// the last area may take after `isCancelled` has said so. Otherwise as ``map(unsafe:_:at:widening:)``, which does the
  /// same on one thread to the end.
  ///
  /// Under ``Protection/bounce``, and for parts of a ``Registration`` with ``Protection/persistent``, there is no kernel call
  /// to spread or to stop: the memory is mapped as a whole, by this thread.
  ///
  /// - Parameters:
  ///   - memory: Stays allocated and in place until it is unmapped.
  ///   - direction: What the device does with it.
  ///   - address: The address that it gets; nil for one of the library's choice.
  ///   - widening: Whether the device may reach the rest of the first and the last page.
  ///   - threads: How many threads map, this one included; the others end before the call returns. More than one pay
  ///     where the kernel has to find the pages, as it does for each in turn.
  ///   - isCancelled: Asked before each area, on any of the threads, on several of them at once. When it says so, what is
  ///     mapped by then comes back: the mapping's ``UnsafeMapping/byteCount`` is less than the memory's. It may use the device as
  ///     any code may, and close it too.
  /// - Returns: The mapping; nil when it was stopped before anything was mapped.
  /// - Throws: As ``map(unsafe:_:at:widening:)``; what was mapped until then is taken back. `.closed` when the domain is closed
  ///   meanwhile, which waits for the areas under way and not for the rest; all is out of reach when this returns.
  public func mapBulk(
    unsafe memory: UnsafeRawBufferPointer, _ direction: DMADirection, at address: IOVA? = nil, widening: Bool = false,
    threads: Int = 1, isCancelled: @escaping @Sendable () -> Bool = { false }
  ) throws(DMAError) -> UnsafeMapping? {
    if core.isOwner { try unsafe core.debug?.check(memory, "map(unsafe:)") }
    let mapping = try unsafe mapBulkUnrecorded(
      memory, direction, at: address, widening: widening, threads: threads, isCancelled: isCancelled)
    guard let mapping else { return nil }
    guard let debug = core.debug else { return mapping }
    return unsafe debug.recorded(mapping, memory, direction.access)
  }

  func mapBulkUnrecorded(
    _ memory: UnsafeRawBufferPointer, _ direction: DMADirection, at address: IOVA?, widening: Bool, threads: Int,
    isCancelled: @escaping @Sendable () -> Bool
  ) throws(DMAError) -> UnsafeMapping? {
    if core.alternative.load(ordering: .relaxed) != .none,
      let mapping = try unsafe mapOtherwise(
        unsafe: memory, direction, at: address, widening: widening, "map(unsafe:)")
    {
      return mapping
    }
    let pages = try unsafe pages(of: memory, widening: widening)
    let limits = addressing.limits
    let bulk = DomainCore.Bulk(
      host: pages.host, byteCount: UInt64(pages.byteCount), threads: threads, isCancelled: isCancelled)
    switch core.map(bulk, at: address, limits, access: direction.access) {
    case .success(let done):
      guard let done else { return nil }
      if address == nil, limits.isAboveFirst(done) { tripped() }
      return unsafe UnsafeMapping(
        core: .passRetained(core), pages: (done.start, Int(done.byteCount)),
        address: IOVA(done.start.rawValue + UInt64(pages.offset)),
        byteCount: min(memory.count, Int(done.byteCount) - pages.offset))
    case .failure(let failure):
      if address == nil { noteFailure(failure, limits) }
      waitIfClosed(failure)
      throw core.failed(
        failure, "map(unsafe:)", address, host: pages.host, byteCount: pages.byteCount, limit: limits.last
      )
      .on(deviceName)
    }
  }
}

extension UnsafeMapping {
  /// Takes the memory out of the device's reach, an area of 32 MiB at a time, on several threads if wanted, until
  /// somebody stops it.
  ///
  /// The kernel unpins page by page: 4 KiB pages take 69 ns each, so that an area takes at most 1 ms, in which it cannot be
  /// interrupted; 1 GiB in one call would take 18 ms. Otherwise as ``unmap()``, which does the same on one thread to the end.
  ///
  /// - Parameters:
  ///   - threads: How many threads unmap, this one included; the others end before the call returns.
  ///   - isCancelled: Asked before each area, on any of the threads, on several of them at once. It may use the device as any
  ///     code may, and close it too: then nothing is left to unmap.
  /// - Returns: nil when all is unmapped; when it was stopped, what is still mapped: the end of the memory.
  /// - Throws: As ``unmap()``.
  public consuming func unmapBulk(
    threads: Int = 1, isCancelled: @escaping @Sendable () -> Bool = { false }
  ) throws(DMAError) -> UnsafeMapping? {
    let (core, kind, pages, address, byteCount) = unsafe (core, kind, pages, address, byteCount)
    discard self
    let record = unsafe core._withUnsafeGuaranteedRef { $0.isOwner ? $0.debug?.record(of: kind) : nil }
    let plain: MappingKind
    switch unsafe core._withUnsafeGuaranteedRef({ $0.endRecord(of: kind) }) {
    case .success(let found): plain = found
    case .failure(let failure): throw unsafe DomainCore.leak(core, failure, "unmap", pages.address, pages.byteCount)
    }
    guard plain.isOwn else {
      if let error = unsafe DomainCore.dropUnsafe(core, plain, pages.address, pages.byteCount) { throw error }
      return nil
    }
    let result = unsafe DomainCore.unmapBulk(core, pages.address, pages.byteCount, threads, isCancelled)
    switch result {
    case .failure(let error): throw error
    case .success(pages.byteCount): return nil
    case .success(0):
      let rest = unsafe UnsafeMapping(core: core, pages: pages, address: address, byteCount: byteCount)
      return DebugTracker.recordedAgain(rest, record, skipping: 0)
    case .success(let done):
      let start = IOVA(pages.address.rawValue + UInt64(done))
      let gone = Int(start.rawValue - address.rawValue)
      let rest = unsafe UnsafeMapping(
        core: core, pages: (start, pages.byteCount - done), address: start, byteCount: byteCount - gone)
      return DebugTracker.recordedAgain(rest, record, skipping: gone)
    }
  }
}

extension DomainCore {
  /// Memory to map an area at a time.
  struct Bulk {
    var host: UInt64, byteCount: UInt64
    var threads: Int
    var isCancelled: @Sendable () -> Bool
  }

  /// Maps whole pages, at an address of the store's choice or at `fixed`; nil when nothing was mapped until it was stopped.
  ///
  /// - Precondition: The caller has not entered.
  func map(_ bulk: Bulk, at fixed: IOVA?, _ limits: AddressLimits, access: DMAAccess) -> Result<IOVARange?, MapFailure>
  {
    guard isOwner else { return .failure(.forked) }
    guard enter() else { return .failure(.closed) }
    let iova: IOVA
    do throws(RangeStoreFailure) {
      defer { leave() }
      iova = try afterDrain { () throws(RangeStoreFailure) in try place(bulk, fixed, limits) }
    } catch {
      _ = noSpace(error)
      return .failure(spaceFailure(error))
    }
    let host = bulk.host
    let work = BulkWork(byteCount: bulk.byteCount, threads: bulk.threads, isCancelled: bulk.isCancelled) {
      [self] offset, length in
      guard enter() else { return .closed }
      defer { leave() }
      do throws(Errno) {
        try mapMakingRoom(
          iova: iova.rawValue + offset, address: host + offset, byteCount: length, access: access)
        return nil
      } catch { return .system(error) }
    }
    if let failure = work.failure { return .failure(undo(iova, bulk.byteCount, work, failure)) }
    return locked(insertions: 1) { state in
      if work.tried < bulk.byteCount { state.keep(iova, from: 0, to: work.tried) }
      guard work.tried > 0 else {
        state.statistics.systemCalls &+= callsEach &* work.calls
        return .success(nil)
      }
      state.mapped(iova, host: host, byteCount: work.tried, systemCalls: callsEach &* work.calls)
      return .success(IOVARange(start: iova, byteCount: work.tried))
    }
  }

  private func place(_ bulk: Bulk, _ fixed: IOVA?, _ limits: AddressLimits) throws(RangeStoreFailure) -> IOVA {
    guard let fixed else {
      let request = RangeStore.Request(byteCount: bulk.byteCount, alignment: Self.alignment(bulk.byteCount))
      return try locked(insertions: 2) { state throws(RangeStoreFailure) in
        try state.take(request, limits, tag: bulk.host)
      }
    }
    guard let range = IOVARange(start: fixed, byteCount: bulk.byteCount) else { throw .overflow }
    try locked(insertions: 1) { state throws(RangeStoreFailure) in
      try state.store.insert(RangeStore.Node(range: range, kind: .fixed, tag: bulk.host), limit: limits.now.last)
    }
    return fixed
  }

  /// Not all areas could be mapped: unmaps those that were. If that fails, the range keeps its addresses. The close of the domain
  /// does it by itself.
  private func undo(_ iova: IOVA, _ byteCount: UInt64, _ work: BulkWork, _ failure: MapFailure) -> MapFailure {
    var failure = failure, calls = work.calls, stuck: UInt64 = 0
    for area in work.done where !failure.isClosed {
      guard enter() else {
        (failure, stuck) = (.closed, 0)
        break
      }
      defer { leave() }
      calls += 1
      let done = try? translation.unmap(iova: iova.rawValue + area.offset, byteCount: area.byteCount)
      if done != area.byteCount { stuck += area.byteCount }
    }
    locked { state in
      state.statistics.failedMaps += 1
      state.statistics.systemCalls &+= callsEach &* calls
      state.statistics.leakedBytes += stuck
      if stuck == 0 { state.forget(iova) }
    }
    guard stuck > 0, case .system(let errno) = failure else { return failure }
    return .stuck(errno)
  }

  /// Unmaps what ``map(_:at:_:access:)`` mapped, or the rest of it: the reference goes back once nothing is left, and
  /// stays for good when a call fails.
  ///
  /// - Returns: How many bytes were unmapped, from the start on.
  static func unmapBulk(
    _ core: Unmanaged<DomainCore>, _ iova: IOVA, _ byteCount: Int, _ threads: Int,
    _ isCancelled: @escaping @Sendable () -> Bool
  ) -> Result<Int, DMAError> {
    let result = unsafe core._withUnsafeGuaranteedRef { $0.unmap(iova, UInt64(byteCount), threads, isCancelled) }
    switch result {
    case .success(let done):
      if done == byteCount { unsafe core.release() }
      return .success(done)
    case .failure(let failure):
      return .failure(
        unsafe core._withUnsafeGuaranteedRef { $0.leaked(failure.reason, "unmap", iova, Int(failure.left)) })
    }
  }

  /// Ends an unsafe mapping of several areas; nil on success.
  static func dropBulk(_ core: Unmanaged<DomainCore>, _ iova: IOVA, _ byteCount: Int) -> DMAError? {
    if case .failure(let error) = unsafe unmapBulk(core, iova, byteCount, 1, { false }) { return error }
    return nil
  }

  private struct Remainder: Error {
    var reason: MapFailure
    var left: UInt64
  }

  /// - Precondition: The caller has not entered.
  private func unmap(
    _ iova: IOVA, _ byteCount: UInt64, _ threads: Int, _ isCancelled: @escaping @Sendable () -> Bool
  ) -> Result<Int, Remainder> {
    guard isOwner else { return .failure(Remainder(reason: .forked, left: byteCount)) }
    let work = BulkWork(byteCount: byteCount, threads: threads, isCancelled: isCancelled) { [self] offset, length in
      guard enter() else { return .closed }
      defer { leave() }
      do throws(Errno) {
        let done = try translation.unmap(iova: iova.rawValue + offset, byteCount: length)
        return done == length ? nil : .mismatch(done)
      } catch { return .system(error) }
    }
    var done = work.tried
    let calls = work.calls
    switch work.failure {
    case nil: break
    case .closed?:
      // The kernel unmaps everything by itself.
      waitUntilEmptied()
      done = byteCount
    case let reason?:
      // ``leaked(_:_:_:_:)`` counts one.
      locked { $0.statistics.systemCalls &+= callsEach &* (calls - 1) }
      return .failure(Remainder(reason: reason, left: byteCount - work.doneByteCount))
    }
    if done == byteCount, let record = records.end(iova) {
      // A mapping of one area, which was not made by ``map(_:at:_:access:)``.
      countUnmap(iova, record, byteCount, systemCalls: callsEach &* calls)
      return .success(Int(done))
    }
    locked(insertions: 1) { state in
      if done == byteCount {
        state.unmapped(iova, byteCount: byteCount, systemCalls: callsEach &* calls)
      } else {
        state.statistics.systemCalls &+= callsEach &* calls
        state.statistics.liveBytes &-= done
        if done > 0 {
          state.noteEnded(iova, byteCount: done)
          state.keepMapped(iova, from: done, to: byteCount)
        }
      }
    }
    return .success(Int(done))
  }
}

extension DomainState {
  /// Shortens a node to a part of it, maybe to nothing, which takes no memory.
  mutating func keep(_ iova: IOVA, from start: UInt64, to end: UInt64) {
    guard let node = store.find(containing: iova) else { return }
    // Who looks for memory finds it as soon as it has its addresses, before all of it is mapped.
    unindex(iova, host: node.tag)
    if end < node.byteCount { freeGap(behind: node.range.last) }
    guard let range = IOVARange(start: IOVA(iova.rawValue + start), byteCount: end - start) else {
      store.remove(iova)
      return
    }
    store.replace(iova, with: RangeStore.Node(range: range, kind: node.kind, tag: node.tag + start))
  }

  /// The same of a mapping, with the lock taken for an insertion, which is the index's.
  mutating func keepMapped(_ iova: IOVA, from start: UInt64, to end: UInt64) {
    keep(iova, from: start, to: end)
    let rest = IOVA(iova.rawValue + start)
    if let node = store.find(containing: rest) { hosts.insert(rest, host: node.tag, byteCount: node.byteCount) }
  }
}
