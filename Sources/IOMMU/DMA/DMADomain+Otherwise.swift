import AddressSpace
import Synchronization

/// Maps that are no kernel call: addresses inside of what is mapped once for all, and copies.
extension DMADomain {
  /// What came of a map under a protection that has other ways.
  enum Otherwise {
    /// None of them: it is to be mapped by a call of its own.
    case own
    case mapped(IOVA, MappingKind)
    case failed(MapFailure)
  }

  /// Maps a buffer.
  @inline(never)
  func mapOtherwise(
    _ base: UnsafeMutableRawPointer, _ byteCount: Int, _ limits: AddressLimits, _ access: DMAAccess
  ) -> Otherwise {
    let way = core.alternative.load(ordering: .relaxed)
    if way == .debug { return unsafe core.mapByDetour(base, byteCount, limits, access, in: self) }
    return unsafe mapOtherwise(by: way, base, byteCount, limits, access)
  }

  /// Maps a buffer, or memory of the caller's, in a certain way.
  func mapOtherwise(
    by way: Alternative, _ base: UnsafeMutableRawPointer, _ byteCount: Int, _ limits: AddressLimits, _ access: DMAAccess
  ) -> Otherwise {
    guard core.isOwner else { return .failed(.forked) }
    if core.isClosed.load(ordering: .acquiring) { return .failed(.closed) }
    switch way {
    case .bounce: return unsafe bounce(base, byteCount, limits, access)
    case .persistent: break
    // Buffers are whole pages, and their maps are kept where that saves something.
    case .none, .short, .debug: return .own
    }
    let host = UInt64(UInt(bitPattern: base)), length = UInt64(byteCount)
    // A chunk above the device's mask, which another device's allows, is of no use to it.
    let found =
      unsafe core.slots.takeHit(host, byteCount: length, limit: limits.last)
      ?? core.takeMiss(host, byteCount: length, limit: limits.last)
    guard let found = unsafe found else { return .own }
    return unsafe .mapped(found.iova, .standing(found.range))
  }

  /// Maps memory of the caller's; nil where that takes a call of its own.
  func mapOtherwise(
    unsafe memory: UnsafeRawBufferPointer, _ direction: DMADirection, at address: IOVA?, widening: Bool,
    _ operation: String
  ) throws(DMAError) -> UnsafeMapping? {
    let alternative = core.way
    if address != nil {
      guard alternative == .bounce else { return nil }
      throw notBounced(operation, "Memory at an address of the caller's choice", byteCount: memory.count)
    }
    if alternative == .short, unsafe !isCopied(memory, direction.access, widening: widening) { return nil }
    let pages = try unsafe pages(of: memory, widening: true, operation), limits = addressing.limits
    let base = unsafe UnsafeMutableRawPointer(bitPattern: UInt(pages.host) + UInt(pages.offset))!
    let result =
      if alternative == .short, core.isOwner, !isClosed {
        unsafe bounce(base, memory.count, limits, direction.access)
      } else {
        unsafe mapOtherwise(by: alternative, base, memory.count, limits, direction.access)
      }
    switch result {
    case .own: return nil
    case .mapped(let iova, let kind):
      return unsafe UnsafeMapping(
        core: .passRetained(core), pages: (iova, memory.count), address: iova, byteCount: memory.count, kind: kind)
    case .failed(let failure):
      noteFailure(failure, limits)
      throw core.failed(failure, operation, host: pages.host, byteCount: memory.count, limit: limits.last)
        .on(deviceName)
    }
  }

  /// Copies memory that a device is to read, where the kernel takes none that this process may not write: nil where that is not why
  /// it refused, or where the memory cannot be read either.
  @inline(never)
  func mapReadOnly(
    _ memory: UnsafeRawBufferPointer, _ access: DMAAccess, _ failure: MapFailure, _ limits: AddressLimits
  ) -> UnsafeMapping? {
    guard case .system(.badAddress) = failure, !access.canWrite, core.processOwned?.takesWritableMemoryOnly == true,
      unsafe isReadable(memory)
    else { return nil }
    let base = unsafe UnsafeMutableRawPointer(mutating: memory.baseAddress!)
    guard case .mapped(let iova, let kind) = unsafe bounce(base, memory.count, limits, access) else { return nil }
    return unsafe UnsafeMapping(
      core: .passRetained(core), pages: (iova, memory.count), address: iova, byteCount: memory.count, kind: kind)
  }

  /// Whether each page of some memory can be read.
  private func isReadable(_ memory: UnsafeRawBufferPointer) -> Bool {
    let start = UInt64(UInt(bitPattern: memory.baseAddress)), end = start + UInt64(memory.count)
    return stride(from: start & ~core.granuleMask, to: end, by: Int(core.granuleMask + 1)).allSatisfy { page in
      (try? core.kernel.readMemory(max(page, start), byteCount: 1)) != nil
    }
  }

  /// Whether memory of the caller's is copied where short memory is.
  private func isCopied(_ memory: UnsafeRawBufferPointer, _ access: DMAAccess, widening: Bool) -> Bool {
    guard let base = memory.baseAddress, memory.count > 0 else { return false }
    let edges = UInt64(UInt(bitPattern: base)) | UInt64(memory.count)
    if edges & core.granuleMask != 0, !widening { return true }
    return memory.count <= core.copyLimits.withLock { $0[access] }
  }

  /// Up to which length memory of the caller's is copied, in bytes: 0 unless ``AutomaticOptions/copiesShortMemory`` is in
  /// force, and in a fork.
  public func copiedByteCount(_ direction: DMADirection) -> Int {
    guard ProcessGuard.isOwner, core.way == .short else { return 0 }
    return core.copyLimits.withLock { $0[direction.access] }
  }

  /// What can only be mapped in its place is refused where it may not be.
  func notBounced(_ operation: String, _ what: String, byteCount: Int) -> DMAError {
    DMAError(
      .notSupported, operation, byteCount: UInt64(exactly: byteCount), device: deviceName,
      detail: "\(what) cannot be bounced, and with this protection the device sees no memory but the library's own",
      remedy: "Map it without an address, or switch the protection")
  }
}

extension DomainCore {
  /// Begins a mapping in memory that is mapped once for all; nil where there is more to do for it, as in a closed domain.
  @inline(__always)
  func takeStanding(
    _ base: UnsafeMutableRawPointer, _ byteCount: Int, limit: UInt64
  ) -> (iova: IOVA, range: StandingMaps.Range)? {
    guard isOwner else { return nil }
    return unsafe slots.takeHit(
      UInt64(UInt(bitPattern: base)), byteCount: UInt64(truncatingIfNeeded: byteCount), limit: limit)
  }

  /// Ends a mapping that ``takeStanding(_:_:limit:)`` began; false when there is more to do for it.
  @inline(__always)
  func giveStanding(_ range: StandingMaps.Range, _ byteCount: Int) -> Bool {
    unsafe isOwner && slots.giveHit(range, byteCount: UInt64(truncatingIfNeeded: byteCount))
  }

  /// Ends a mapping that was no map of its own, in whatever mode the domain is now. Nothing waits for a flush.
  ///
  /// - Parameters:
  ///   - copies: Whether what the device has written to a copy goes to the memory.
  ///   - memory: A buffer's that is dropped: as for ``unmap(_:byteCount:freeing:)``, where debug mode has to do with a map of its own.
  @inline(never)
  func unmapOtherwise(
    _ kind: MappingKind, byteCount: Int, copies: Bool = true, freeing memory: UnsafeMutableRawPointer? = nil
  ) -> Result<UInt64, MapFailure> {
    guard isOwner else { return .failure(.forked) }
    if case .recorded(let id) = kind {
      return unsafe detour.unmap(id, byteCount: byteCount, copies: copies, freeing: memory, in: self)
    }
    // What the device has still under way ends with the close.
    if isClosed.load(ordering: .acquiring) { waitUntilEmptied() }
    switch kind {
    case .own: break
    case .standing(let range):
      let length = UInt64(byteCount)
      if unsafe !slots.giveHit(range, byteCount: length), unsafe giveMiss(range, byteCount: length) { afterLast() }
    case .bounced(let slot): endBounce(slot, byteCount: byteCount, copies: copies)
    case .recorded: break
    }
    return .success(0)
  }
}
