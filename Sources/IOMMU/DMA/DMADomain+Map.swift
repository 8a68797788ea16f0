public import AddressSpace
import Synchronization

extension DMADomain {
  /// Gives a buffer to the device: on return the device can reach it, and the CPU cannot touch it.
  ///
  /// The kernel call behind it is one `IOMMU_IOAS_MAP` or `VFIO_IOMMU_MAP_DMA` for each 32 MiB, which pins the pages; none under
  /// ``Protection/persistent`` and ``Protection/bounce``. If it throws, the buffer is freed; ``tryMap(_:_:)`` gives it back instead.
  /// What was mapped before a call failed is taken back; where the kernel refuses that too, the memory is never used again, and
  /// counted in ``DMAStatistics/leakedBytes``.
  /// Up to 2 MiB O(1) but for the kernel, and without a lock that processors share, when one of this length was unmapped
  /// here before; else O(log n) in the number of mappings.
  ///
  /// - Throws: `.memoryLock`, `.noSpace`, `.tooManyMappings`, `.closed`, `.forked`, `.invalidArgument` for a buffer of
  ///   another domain, `.system`.
  public func map(_ buffer: consuming DMABuffer, _ direction: DMADirection) throws(DMAError) -> Mapping {
    // What is a few instructions is done here; the rest would only slow it down.
    if core.here.load(ordering: .relaxed) != HereMode.none {
      guard isOurs(buffer) else { return try mapElse(buffer, direction) }
      let access = direction.access
      let address = unsafe core.mapHere(buffer.base, buffer.byteCount, addressing, access)
      if address != 0 {
        let mapping = Mapping(buffer, at: IOVA(address), access: access.rawValue)
        return address <= addressing.limit ? mapping : try mapAgain(mapping, direction)
      }
    } else if core.alternative.load(ordering: .relaxed) == .persistent, isOurs(buffer),
      let found = unsafe core.takeStanding(buffer.base, buffer.byteCount, limit: addressing.limits.last)
    {
      return unsafe Mapping(buffer, at: found.iova, .standing(found.range))
    }
    return try mapElse(buffer, direction)
  }

  @inline(never)
  private func mapElse(_ buffer: consuming DMABuffer, _ direction: DMADirection) throws(DMAError) -> Mapping {
    guard isOurs(buffer) else { throw refuse(buffer) }
    let limits = addressing.limits
    if core.alternative.load(ordering: .relaxed) != .none {
      switch unsafe mapOtherwise(buffer.base, buffer.byteCount, limits, direction.access) {
      case .own: break
      case .mapped(let address, let kind): return Mapping(buffer, at: address, kind)
      case .failed(let failure): throw refuse(buffer, failure, limits)
      }
    }
    switch unsafe core.mapOwned(buffer.base, byteCount: buffer.byteCount, limits: limits, access: direction.access) {
    case .success(let placed):
      if placed.iova.rawValue > addressing.limits.first, isAboveMask(placed.iova, limits) {
        return try mapAgain(Mapping(buffer, at: placed.iova, access: placed.access), direction)
      }
      return Mapping(buffer, at: placed.iova, access: placed.access)
    case .failure(let failure): throw refuse(buffer, failure, limits)
    }
  }

  /// As ``map(_:_:)-(DMABuffer,_)``, but a buffer that cannot be mapped comes back with the error. Memory that
  /// ``DMAStatistics/leakedBytes`` has counted by then comes back as well, and the device may reach it: drop it.
  public func tryMap(_ buffer: consuming DMABuffer, _ direction: DMADirection) -> MapResult {
    guard isOurs(buffer) else { return giveBack(buffer) }
    let limits = addressing.limits
    if core.alternative.load(ordering: .relaxed) != .none {
      switch unsafe mapOtherwise(buffer.base, buffer.byteCount, limits, direction.access) {
      case .own: break
      case .mapped(let address, let kind): return .mapped(Mapping(buffer, at: address, kind))
      case .failed(let failure): return giveBack(buffer, failure, limits)
      }
    }
    switch unsafe core.mapOwned(buffer.base, byteCount: buffer.byteCount, limits: limits, access: direction.access) {
    case .success(let placed):
      if placed.iova.rawValue > addressing.limits.first, isAboveMask(placed.iova, limits) {
        return tryAgain(Mapping(buffer, at: placed.iova, access: placed.access), direction)
      }
      return .mapped(Mapping(buffer, at: placed.iova, access: placed.access))
    case .failure(let failure): return giveBack(buffer, failure, limits)
    }
  }

  /// A map needed the second try, and has told so by its address.
  @inline(never)
  func tripped() {
    if addressing.trip(deviceName) { core.locked { $0.statistics.addressPolicyTrips += 1 } }
  }

  /// What an address above the first limit, as that is by now, comes to: the second try was needed, or the mask was lowered after
  /// `limits` were read, and the address must not be used.
  ///
  /// A map that has not returned when a mask is lowered is told so here at the latest: whoever lowers it sees the mapping, or
  /// is seen, since both go by the mapping's slot or the store's lock in between (``DomainCore/use(above:)``).
  @inline(never)
  func isAboveMask(_ address: IOVA, _ limits: AddressLimits) -> Bool {
    if address.rawValue > addressing.limit { return true }
    if address.rawValue > limits.first { tripped() }
    return false
  }

  @inline(never)
  private func mapAgain(_ mapping: consuming Mapping, _ direction: DMADirection) throws(DMAError) -> Mapping {
    try map(try mapping.unmap(), direction)
  }

  @inline(never)
  private func tryAgain(_ mapping: consuming Mapping, _ direction: DMADirection) -> MapResult {
    let base = unsafe mapping.base, byteCount = mapping.byteCount
    do throws(DMAError) { return tryMap(try mapping.unmap(), direction) } catch {
      // That memory is kept out of use, since the device may reach it. What was in it is all that can be given back.
      guard let other = try? buffer(byteCount: byteCount) else {
        preconditionFailure("\(error); and there is no memory to give back what the buffer held")
      }
      unsafe other.base.copyMemory(from: base, byteCount: byteCount)
      return .failed(other, error)
    }
  }

  /// No room at all: so the first try has failed too, where there were two.
  func noteFailure(_ failure: MapFailure, _ limits: AddressLimits) {
    guard limits.first < limits.last, case .space(let reason) = failure else { return }
    if reason == .noSpace || reason == .fragmented { tripped() }
  }

  @inline(__always)
  private func isOurs(_ buffer: borrowing DMABuffer) -> Bool {
    unsafe buffer.core.toOpaque() == Unmanaged.passUnretained(core).toOpaque()
  }

  /// Frees a buffer that was not mapped and says why. Never inlined, as making an error retains and allocates: the path
  /// of a map that succeeds stays free of both.
  @inline(never)
  private func refuse(_ buffer: consuming DMABuffer, _ failure: MapFailure, _ limits: AddressLimits) -> DMAError {
    let error = error("map", failure, limits, byteCount: buffer.byteCount)
    if case .stuck = failure { buffer.reachableUntil = .max }
    return error
  }

  @inline(never)
  private func refuse(_ buffer: consuming DMABuffer) -> DMAError { foreignBuffer("map") }

  @inline(never)
  private func giveBack(_ buffer: consuming DMABuffer, _ failure: MapFailure, _ limits: AddressLimits) -> MapResult {
    let error = error("tryMap", failure, limits, byteCount: buffer.byteCount)
    if case .stuck = failure { buffer.reachableUntil = .max }
    return .failed(buffer, error)
  }

  @inline(never)
  private func giveBack(_ buffer: consuming DMABuffer) -> MapResult { .failed(buffer, foreignBuffer("tryMap")) }

  private func error(
    _ operation: String, _ failure: MapFailure, _ limits: AddressLimits, byteCount: Int
  ) -> DMAError {
    noteFailure(failure, limits)
    waitIfClosed(failure)
    return core.failed(failure, operation, byteCount: byteCount, limit: limits.last).on(deviceName)
  }

  /// A map that the close of the domain has overtaken may have mapped a part: returns when that is out of reach. Whoever calls
  /// this has left.
  func waitIfClosed(_ failure: MapFailure) { if case .closed = failure { core.waitUntilEmptied() } }

  func foreignBuffer(_ operation: String) -> DMAError {
    DMAError(
      .invalidArgument, operation, device: deviceName, detail: "The buffer belongs to another domain",
      remedy: "Get it from this domain's buffer(byteCount:)")
  }

  /// Maps memory that the caller owns and keeps alive, at an address of the library's choice or at `address`.
  ///
  /// Whole pages only, so that the device reaches nothing else: start and length are multiples of ``granule``. With
  /// `widening` the pages that the memory begins and ends in are mapped as a whole, and the device reaches their other
  /// bytes too.
  ///
  /// The kernel call behind it is one `IOMMU_IOAS_MAP` or `VFIO_IOMMU_MAP_DMA` for each 32 MiB, which pins the pages:
  /// ``mapBulk(unsafe:_:at:widening:threads:isCancelled:)`` does that on several threads, and can be stopped. O(log n).
  ///
  /// Inside of a ``Registration`` under ``Protection/persistent``, and under ``Protection/bounce``, it makes no call, and the memory
  /// need not be whole pages; under the latter an `address` is refused as `.notSupported`. On a VT-d whose page tables this process
  /// owns, memory that it may not write is copied likewise, up to 32 MiB of pages and without an `address`; beyond that it is
  /// `.badMemory`.
  ///
  /// - Throws: `.empty`, `.unaligned`, `.overflow`; for a fixed address `.outsideAperture`, `.reserved`, `.outsideMask`,
  ///   `.overlap` (both ranges in the detail); `.badMemory` for memory that is not mapped or not writable as asked;
  ///   `.notRegistered` under ``RegistrationPolicy/requireRegistered``; `.memoryLock`, `.noSpace`, `.tooManyMappings`, `.closed`,
  ///   `.forked`, `.system`.
  public func map(
    unsafe memory: UnsafeRawBufferPointer, _ direction: DMADirection, at address: IOVA? = nil, widening: Bool = false
  ) throws(DMAError) -> UnsafeMapping {
    guard let debug = core.debug, core.isOwner else {
      return try unsafe mapUnrecorded(memory, direction, at: address, widening: widening)
    }
    try unsafe debug.check(memory, "map(unsafe:)")
    let mapping = try unsafe mapUnrecorded(memory, direction, at: address, widening: widening)
    return unsafe debug.recorded(mapping, memory, direction.access)
  }

  private func mapUnrecorded(
    _ memory: UnsafeRawBufferPointer, _ direction: DMADirection, at address: IOVA?, widening: Bool
  ) throws(DMAError) -> UnsafeMapping {
    if core.alternative.load(ordering: .relaxed) != .none,
      let mapping = try unsafe mapOtherwise(
        unsafe: memory, direction, at: address, widening: widening, "map(unsafe:)")
    {
      return mapping
    }
    let pages = try unsafe pages(of: memory, widening: widening)
    // As the unmap decides: by the pages, which may be more than the memory.
    if pages.byteCount > Limits.areaByteCount {
      let mapping = try unsafe mapBulkUnrecorded(
        memory, direction, at: address, widening: widening, threads: 1, isCancelled: { false })
      guard let mapping else { preconditionFailure("nothing stops this") }
      return mapping
    }
    let limits = addressing.limits
    let result =
      if let address {
        core.map(
          host: pages.host, byteCount: pages.byteCount, at: address, limits, access: direction.access)
      } else {
        core.makingRoom {
          unsafe core.map(
            UnsafeRawPointer(bitPattern: UInt(pages.host))!, byteCount: pages.byteCount, limits: limits,
            access: direction.access)
        }
      }
    switch result {
    case .success(let iova):
      let mapping = unsafe UnsafeMapping(
        core: .passRetained(core), pages: (iova, pages.byteCount),
        address: IOVA(iova.rawValue + UInt64(pages.offset)), byteCount: memory.count)
      if address == nil, iova.rawValue > addressing.limits.first, isAboveMask(iova, limits) {
        try mapping.unmap()
        return try unsafe mapUnrecorded(memory, direction, at: nil, widening: widening)
      }
      return mapping
    case .failure(let failure):
      if address == nil {
        if let copied = unsafe mapReadOnly(memory, direction.access, failure, limits) { return copied }
        noteFailure(failure, limits)
      }
      throw core.failed(
        failure, "map(unsafe:)", address, host: pages.host, byteCount: pages.byteCount, limit: limits.last
      )
      .on(deviceName)
    }
  }

  /// The pages that memory lies in.
  func pages(
    of memory: UnsafeRawBufferPointer, widening: Bool, _ operation: String = "map(unsafe:)"
  ) throws(DMAError) -> (host: UInt64, byteCount: Int, offset: Int) {
    do throws(DMAError) {
      return try unsafe core.pages(of: memory, widening: widening, operation)
    } catch { throw error.on(deviceName) }
  }
}
