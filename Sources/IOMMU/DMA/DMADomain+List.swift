import AddressSpace
import Synchronization

extension DMADomain {
  /// Gives a list of buffers to the device as one contiguous IOVA range, in order, each part on pages of its own.
  ///
  /// The range has as few segments as the device's ``constraints`` allow; gaps that they make necessary are kept free.
  /// The kernel calls behind it are `IOMMU_IOAS_MAP` or `VFIO_IOMMU_MAP_DMA`, one for buffers that follow each other in
  /// this process's memory, 32 MiB at most, and one unmap for the whole list. Buffers that were made one after the other
  /// usually do follow each other. If a call fails, those before it are taken back and the list is freed; what cannot be
  /// unmapped then is leaked, counted in ``DMAStatistics/leakedBytes``, and never reused.
  ///
  /// The range is aligned as its length rounded up to a power of two, 2 MiB at most: the 64 pages of a descriptor are under one
  /// table of the lowest level, and take one invalidation, where each by itself could take 64 of both.
  ///
  /// The corresponding kernel call is `dma_map_sgtable`.
  /// - Throws: As ``map(_:_:)-(DMABuffer,_)`` and, for memory of the caller's, ``map(unsafe:_:at:widening:)``; `.empty` for
  ///   an empty list, `.tooManySegments`, `.unaligned` for memory that begins on no multiple of the constraints' alignment.
  public func map(_ list: consuming ScatterList, _ direction: DMADirection) throws(DMAError) -> MappedList {
    guard ProcessGuard.isOwner else { throw core.failed(.forked, "map(list)", byteCount: 0).on(deviceName) }
    guard list.count > 0 else { throw core.failed(.space(.empty), "map(list)", byteCount: 0).on(deviceName) }
    guard list.isAll(of: core) else { throw foreignBuffer("map(list)") }
    let constraints = constraints
    // Asked once: what may be copied must not be mapped.
    let isBounced = core.way == .bounce
    let layout = try place(&list, constraints, mayShare: isBounced)
    guard layout.count <= constraints.maxSegmentCount else {
      throw DMAError(
        .tooManySegments, "map(list)", byteCount: layout.end, device: deviceName,
        detail:
          "\(list.count) buffers take \(layout.count) segments, and the device takes \(constraints.maxSegmentCount)",
        remedy: "Map fewer buffers at once, or buffers whose lengths are multiples of \(granule), which join")
    }
    if isBounced { return try bounce(list, layout, constraints, direction.access) }
    let limits = addressing.limits
    let request = constraints.request(byteCount: layout.end, alignment: DomainCore.alignment(layout.end))
    switch core.map(list, request, limits, access: direction.access) {
    case .failure(let failure):
      noteFailure(failure, limits)
      waitIfClosed(failure)
      // What the device may still reach must not be used again.
      if case .stuck = failure { _ = list.take() }
      throw core.failed(failure, "map(list)", byteCount: Int(layout.end), limit: limits.last).on(deviceName)
    case .success(let address):
      if limits.isAboveFirst(IOVARange(start: address, byteCount: layout.end)!) { tripped() }
      core.beginRecords(list.parts, at: address, direction.access)
      return unsafe MappedList(
        core: .passRetained(core), address: address, byteCount: Int(layout.end), list: list, segmentCount: layout.count,
        constraints: constraints)
    }
  }

  /// Gives each part its place in the range.
  private func place(
    _ list: inout ScatterList, _ constraints: DMAConstraints, mayShare: Bool
  ) throws(DMAError) -> ListLayout {
    var layout = ListLayout(constraints, granuleMask: core.granuleMask)
    for index in 0..<list.count {
      let part = list[index]
      if part.isUnsafe { try check(part, constraints, mayShare: mayShare) }
      let placement = layout.add(
        offset: part.host & core.granuleMask, byteCount: UInt64(part.byteCount), emit: { _, _ in })
      guard let placement else { throw core.failed(.space(.overflow), "map(list)").on(deviceName) }
      list.place(index, at: placement)
    }
    return layout
  }

  /// Refuses memory of the caller's that is none, or that shares its pages unless it may, or begins where no segment may.
  private func check(_ part: MemoryPart, _ constraints: DMAConstraints, mayShare: Bool) throws(DMAError) {
    let memory = unsafe UnsafeRawBufferPointer(start: part.base, count: part.byteCount)
    let pages = try unsafe pages(of: memory, widening: part.isWidened || mayShare, "map(list)")
    try unsafe core.debug?.check(memory, "map(list)")
    guard constraints.alignment.isAligned(UInt64(pages.offset)) else {
      throw DMAError(
        .unaligned, "map(list)", address: part.host, byteCount: UInt64(part.byteCount), device: deviceName,
        detail: "The device takes segments on multiples of \(constraints.alignment)")
    }
  }
}

extension DomainCore {
  /// Takes one range for all parts, then maps them.
  fileprivate func map(
    _ list: borrowing ScatterList, _ request: RangeStore.Request, _ limits: AddressLimits, access: DMAAccess
  ) -> Result<IOVA, MapFailure> {
    guard enter() else { return .failure(.closed) }
    defer { leave() }
    let parts = list.parts
    let iova: IOVA
    do throws(RangeStoreFailure) {
      iova = try afterDrain { () throws(RangeStoreFailure) in
        try unsafe place(parts.base, count: parts.count, request, limits)
      }
    } catch { return noSpace(error) }
    if let failure = unsafe mapParts(parts.base, count: parts.count, at: iova, access: access) {
      return .failure(failure)
    }
    return .success(iova)
  }
}
