import AddressSpace
import Synchronization

/// Mapping once for all, and taking that back.
extension DomainCore {
  /// Maps a claimed range that is not mapped; whether above the first limit.
  func raise(
    _ range: StandingMaps.Range, _ limits: AddressLimits, _ operation: String
  ) throws(DMAError) -> Bool {
    let memory = unsafe range.pointee.memory
    let iova = try mapArena(memory, alignment: PageSize(byteCount: granuleMask + 1)!, limits, operation)
    unsafe standing.raised(range, at: iova)
    if processOwned == nil { unsafe debug?.pinned(range.pointee.host, true) }
    return unsafe limits.isAboveFirst(IOVARange(start: iova, byteCount: range.pointee.byteCount)!)
  }

  /// Unmaps a claimed range, an area at a time; nothing is done where it is not mapped. After a failure the rest stays
  /// mapped, and the next call goes on with it.
  func lower(_ range: StandingMaps.Range) -> MapFailure? {
    if processOwned == nil { unsafe debug?.pinned(range.pointee.host, false) }
    let iova = unsafe range.pointee.iova, area = unsafe UInt64(range.pointee.memory.areaByteCount)
    while unsafe range.pointee.iova != 0 {
      let start = unsafe range.pointee.loweredByteCount
      let length = unsafe min(area, range.pointee.byteCount - start)
      if let failure = lower(iova + start, byteCount: length) { return failure }
      // The addresses are free before the range can be mapped anew.
      if unsafe start + length == range.pointee.byteCount { locked { $0.forget(IOVA(iova)) } }
      unsafe standing.lowered(range, by: length)
    }
    return nil
  }

  private func lower(_ iova: UInt64, byteCount: UInt64) -> MapFailure? {
    // Closed: the kernel unmaps everything by itself. Who waits for that must not have entered.
    guard enter() else { return nil }
    defer { leave() }
    do throws(Errno) {
      if let processOwned {
        // An earlier attempt may have cleared it, whose invalidation failed.
        let done = try processOwned.clear(iova: iova, byteCount: byteCount)
        try processOwned.invalidate(iova: iova, byteCount: byteCount)
        return done == byteCount || done == 0 ? nil : .mismatch(done)
      }
      let done = try translation.unmap(iova: iova, byteCount: byteCount)
      return done == byteCount ? nil : .mismatch(done)
    } catch { return .system(error) }
  }

  /// Calls `body` with each range of which `fits` holds, claimed; it releases or removes it.
  ///
  /// - Parameter waits: Whether to wait for those that somebody else has claimed, which is for a few kernel calls.
  func forEachStanding<Failure: Error>(
    waits: Bool, _ fits: (StandingRange, Bool) -> Bool, _ body: (StandingMaps.Range) throws(Failure) -> Void
  ) throws(Failure) {
    var from: UInt64 = 0
    while true {
      switch standing.claim(from: from, skipsBusy: !waits, fits) {
      case .none: return
      case .busy:
        // Whoever has it may have to wait until all calls have left, and this may be one.
        if isClosed.load(ordering: .acquiring) { return }
        kernel.sleep(.microseconds(20))
      case .range(let range):
        unsafe from = range.pointee.host + 1
        try unsafe body(range)
      }
    }
  }

  /// Unmaps what is not to be mapped and has no live mapping inside; the last failure.
  func lowerIdle(waits: Bool) -> MapFailure? {
    var failure: MapFailure?
    unsafe forEachStanding(waits: waits) { range, isWanted in
      range.iova != 0 && range.live == 0 && !isWanted
    } _: { range in
      failure = unsafe lower(range) ?? failure
      unsafe standing.release(range)
    }
    withholdLeftOvers()
    return failure
  }

  /// New buffers are not made of memory that stays within reach after the protection was changed.
  private func withholdLeftOvers() { streaming.withhold { standing.isLeftOver($0) } }

  /// A mapping was the last in a range that is not to stay.
  @inline(never)
  func afterLast() {
    _ = lowerIdle(waits: false)
    finishEnded(waits: false)
  }

  /// On return nothing is mapped that is not to be, but for what live mappings are inside of.
  func settle() -> MapFailure? {
    // Both are tried, whatever the first comes to.
    let failure = finishEnded(waits: true)
    return lowerIdle(waits: true) ?? failure
  }
}

// MARK: - Switching

extension DomainCore {
  /// What a protection wants mapped is mapped, or this throws and nothing has changed; whether above the first limit.
  func prepare(_ new: Protection, _ limits: AddressLimits) throws(DMAError) -> Bool {
    if Alternative(new) == .short {
      let (timed, isAbove) = try timeCopies(limits)
      copyLimits.withLock { $0 = timed }
      return isAbove
    }
    guard new == .persistent else { return false }
    var isAbove = false
    setStandingWanted(true)
    do throws(DMAError) {
      try unsafe forEachStanding(waits: true) { range, _ in
        (range.iova == 0 || range.loweredByteCount > 0) && !range.isEnded
      } _: { range throws(DMAError) in
        defer { unsafe standing.release(range) }
        if let failure = unsafe lower(range) { throw failed(failure, "switchProtection") }
        if try unsafe raise(range, limits, "switchProtection") { isAbove = true }
      }
    } catch {
      abandon()
      throw error
    }
    withholdLeftOvers()
    return isAbove
  }

  /// A switch that was prepared does not come about.
  func abandon() {
    guard way != .persistent else { return }
    setStandingWanted(false)
    _ = lowerIdle(waits: true)
  }

  /// The new protection takes over from the old one as far as that is about what is mapped once for all. After a failure
  /// the old one is in force.
  func takeOver(_ new: Protection) -> MapFailure? {
    let old = way
    setWay(Alternative(new))
    guard old == .persistent, new != .persistent else { return nil }
    setStandingWanted(false)
    guard let failure = lowerIdle(waits: true) else { return nil }
    setStandingWanted(true)
    withholdLeftOvers()
    setWay(old)
    return failure
  }
}

/// What the data path does in the place of a map of its own: what it reads of a ``Protection``.
enum Alternative: UInt8, AtomicRepresentable {
  case none, persistent, bounce
  /// Short memory of the caller's is copied.
  case short
  /// Debug mode: ``DomainCore/way`` has which of the others.
  case debug

  init(_ protection: Protection) {
    switch protection {
    case .persistent: self = .persistent
    case .bounce: self = .bounce
    case .automatic(let options) where options.copiesShortMemory: self = .short
    default: self = .none
    }
  }
}
