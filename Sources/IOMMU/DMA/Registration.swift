import AddressSpace
import Synchronization

/// Memory of the caller's that was pinned for the domain once, so that later maps of it or of parts of it cost no system call.
///
/// ```swift
/// let frames = try device.dma.register(unsafe: pool)                      // one call a 32 MiB: pins all of it
/// let mapping = try device.dma.map(unsafe: frame, .toDevice)              // part of it: no system call
/// ```
///
/// The value owns the registration: memory is found by its address while the value lives, and not a moment longer. **The
/// memory must stay allocated, and at its place, until the value is gone and the last mapping made inside of it is unmapped.**
/// Who gives it back to the operating system before, and gets other memory at the same address, would map the old: <doc:DebugMode>
/// finds that out.
///
/// ## What is in the device's reach
///
/// - Where this process owns the page tables: nothing but what is mapped, as with any memory. The registration pins, and says
///   to the second stage what the first may lead to.
/// - Where the kernel owns them: **all of it, to read and to write, from the registration to its end**, since the registration
///   is the one long-lived map. That is what ``Protection/persistent`` says, and only with it can memory be registered there.
///
/// With ``Protection/persistent`` a part may begin and end in mid page, since no page comes into reach by it. When the
/// protection is changed, what is mapped once for all goes as it does for buffers; the registration stays, and has its use
/// again with the next ``Protection/persistent``.
///
/// Dropping the value ends the registration. While mappings inside are live that is delayed: no later map finds it, and it
/// goes with the last of them, or with the next ``DMADomain/drain()``. When the domain is closed, all registrations end.
///
/// ``DMADomain/setRegistrationPolicy(_:)`` has maps of memory that is not registered refused, where this process owns the tables.
///
/// Ending is for set-up and tear-down, and not for the data path. Where this process owns the page tables it looks whether any
/// of the memory is mapped, and no index leads from memory to its mappings, which would cost every map: it looks at all of them.
/// See ``unregister()``.
@safe
public struct Registration: ~Copyable, @unchecked Sendable {
  private let core: Unmanaged<DomainCore>
  private let range: StandingMaps.Range
  /// Length in bytes.
  public let byteCount: Int

  /// Takes over a reference to `core`.
  init(core: Unmanaged<DomainCore>, range: StandingMaps.Range, byteCount: Int) {
    unsafe (self.core, self.range) = unsafe (core, range)
    self.byteCount = byteCount
  }

  deinit {
    _ = unsafe Self.end(core, range)
    unsafe core.release()
  }

  /// Ends the registration, as dropping it does, and says when the kernel will not.
  ///
  /// The kernel call behind it is one `IOMMU_IOAS_UNMAP` or `VFIO_IOMMU_UNMAP_DMA` for each 32 MiB, which unpins the pages.
  ///
  /// - Complexity: O(*r*) in the number of registrations. Where this process owns the page tables also O(*a* + *m* log *m*): *a*
  ///   is the pages of all blocks of 512 pages of addresses in which a mapping of up to 2 MiB ever was, live or not, and does not
  ///   shrink while the domain is open; *m* is the number of longer mappings. It is that for each registration that has
  ///   ended and waits, too.
  /// - Throws: `.system` with the kernel's errno, `.mismatch`: the memory may still be pinned and within the device's reach.
  ///   Keep it until a later ``DMADomain/drain()`` has tried again without an error, or until the device is closed. `.forked`.
  public consuming func unregister() throws(DMAError) {
    let (core, range, byteCount) = unsafe (core, range, byteCount)
    discard self
    defer { unsafe core.release() }
    guard let failure = unsafe Self.end(core, range) else { return }
    throw unsafe core._withUnsafeGuaranteedRef { $0.failed(failure, "unregister", byteCount: byteCount).on($0.device) }
  }

  private static func end(_ core: Unmanaged<DomainCore>, _ range: StandingMaps.Range) -> MapFailure? {
    unsafe core._withUnsafeGuaranteedRef { core in
      if core.isOwner { unsafe core.debug?.unregistering(range.pointee.host) }
      return unsafe core.unregister(range)
    }
  }
}

extension DMADomain {
  /// Pins memory of the caller's, to be mapped later on without a system call; see ``Registration`` for what the device
  /// reaches meanwhile, and for how long the memory must stay.
  ///
  /// Whole pages only: start and length are multiples of ``granule``; memory that this process may write, as parts of it
  /// may be mapped in any direction. Singles are found, by `map(unsafe:)`; where this process owns the page tables, also
  /// memory of the caller's in a ``ScatterList``, a ``Reservation`` or a bulk map. O(n) in the number of registrations, and
  /// O(log n) to find one; those that have ended and wait are tried again first, each at the cost of ``Registration/unregister()``.
  ///
  /// The kernel call behind it is one `IOMMU_IOAS_MAP` or `VFIO_IOMMU_MAP_DMA` for each 32 MiB.
  ///
  /// - Throws: `.empty`, `.unaligned`, `.overflow`; `.overlap` with memory that is registered or the library's own, both
  ///   ranges in the detail; `.notSupported` where the kernel owns the page tables and the protection is not
  ///   ``Protection/persistent``; `.badMemory`, `.memoryLock`, `.noSpace`, `.tooManyMappings`, `.closed`, `.forked`, `.system`.
  public func register(unsafe memory: UnsafeRawBufferPointer) throws(DMAError) -> Registration {
    guard ProcessGuard.isOwner else { throw core.failed(.forked, "register", byteCount: memory.count).on(deviceName) }
    let pages = try unsafe pages(of: memory, widening: false, "register")
    do throws(DMAError) {
      let (range, isAbove) = try unsafe core.register(
        Arena.Memory(
          base: UnsafeMutableRawPointer(bitPattern: UInt(pages.host))!, byteCount: pages.byteCount, file: -1,
          isHuge: false), addressing.limits)
      if isAbove { tripped() }
      return unsafe Registration(core: .passRetained(core), range: range, byteCount: memory.count)
    } catch {
      // Areas that were mapped by then stay so until the domain is closed.
      if error.code == .closed { core.waitUntilEmptied() }
      throw error.on(deviceName)
    }
  }
}

extension DomainCore {
  /// Registers whole pages; whether they are mapped above the first limit.
  fileprivate func register(
    _ memory: Arena.Memory, _ limits: AddressLimits
  ) throws(DMAError) -> (range: StandingMaps.Range, isAbove: Bool) {
    finishEnded(waits: true)
    guard processOwned != nil || standing.isWanted else {
      throw DMAError(
        .notSupported, "register",
        detail: "The kernel owns the page tables: registered memory would be within the device's reach all the time",
        remedy: "Switch the protection to .persistent, which says so, or map the memory and keep it mapped")
    }
    let range: StandingMaps.Range
    switch standing.add(StandingRange(memory)) {
    case .added(let added): unsafe range = added
    case .overlap(let other):
      let new = StandingRange(memory).hostRange
      throw DMAError(
        .overlap, "register", address: new.start.rawValue, byteCount: new.byteCount,
        detail: "\(new) overlaps \(other), which is registered or memory of the library's own")
    }
    var isPinned = false
    do throws(DMAError) {
      _ = try pin(memory, "register")
      isPinned = true
      var isAbove = false
      if standing.isWanted { isAbove = try unsafe raise(range, limits, "register") }
      // Before a switch of the protection can unpin it.
      unsafe debug?.registered(UInt64(UInt(bitPattern: memory.base)), byteCount: memory.byteCount)
      unsafe standing.release(range)
      return unsafe (range, isAbove)
    } catch {
      // Else what begins at the same address is another's.
      if isPinned { unpin(memory) }
      unsafe standing.remove(range)
      throw error
    }
  }

  /// Ends a registration, or has it end with the last mapping inside of it.
  fileprivate func unregister(_ range: StandingMaps.Range) -> MapFailure? {
    guard isOwner else { return .forked }
    // Before it has ended: then whoever looks first takes it out, and frees the range.
    processOwned?.hide(address: unsafe range.pointee.host)
    unsafe endStanding(range)
    let failure = finishEnded(waits: true)
    if isClosed.load(ordering: .acquiring) { waitUntilEmptied() }
    return failure
  }

  /// Takes out what has ended and has no live mapping inside; the last failure.
  @discardableResult
  func finishEnded(waits: Bool) -> MapFailure? {
    if standing.endedCount.load(ordering: .relaxed) == 0 { return nil }
    var failure: MapFailure?
    unsafe forEachStanding(waits: waits) { range, _ in
      range.isEnded && range.live == 0
    } _: { range in
      switch unsafe finish(range) {
      case .done: unsafe standing.remove(range)
      case .inUse: unsafe standing.release(range)
      case .failed(let reason):
        failure = reason
        unsafe standing.release(range)
      }
    }
    return failure
  }

  private enum Finish { case done, inUse, failed(MapFailure) }

  private func finish(_ range: StandingMaps.Range) -> Finish {
    if let failure = unsafe lower(range) { return .failed(failure) }
    guard let processOwned, enter() else { return .done }
    defer { leave() }
    let host = unsafe range.pointee.host
    // In this order: what is mapped after it was hidden does not use it, what was mapped before is seen by the first step,
    // and what was unmapped before that is out of reach after the second. Who holds a slot may have found it, and not told yet.
    slots.passAll()
    if unsafe isMapped(range.pointee.hostRange) { return .inUse }
    if let failure = drain() { return .failed(failure) }
    // What was cleared, and is about to be queued, is not in what a drain sees.
    if queue.ringCount > 0, let failure = flushAll() { return .failed(failure) }
    do throws(Errno) { try processOwned.unregister(address: host) } catch { return .failed(.system(error)) }
    return .done
  }

  /// Whether any of some memory of this process is mapped now. O(addresses that ever were mapped, and n log n in the number of
  /// long mappings); the lock is held for one of these at a time.
  private func isMapped(_ memory: IOVARange) -> Bool {
    var isFound = false
    records.forEach { _, host, byteCount in
      if IOVARange(start: IOVA(host), byteCount: byteCount)?.overlaps(memory) ?? false { isFound = true }
    }
    if isFound { return true }
    var from = IOVA(0)
    while let node = locked({ $0.store.next(from: from) }) {
      if node.isMapping, IOVARange(start: IOVA(node.tag), byteCount: node.byteCount)?.overlaps(memory) ?? false {
        return true
      }
      guard node.range.last.rawValue < .max else { break }
      from = IOVA(node.range.last.rawValue + 1)
    }
    return false
  }
}
