import AddressSpace
import Synchronization

extension DMADomain {
  /// Gives a list of buffers to the device as one contiguous IOVA range, in order, each part on pages of its own.
  ///
  /// The kernel calls behind it are one `IOMMU_IOAS_MAP` or `VFIO_IOMMU_MAP_DMA` a buffer, and one unmap for the whole
  /// list. If a part fails, those before it are unmapped and the list is freed; if they cannot be unmapped, the memory
  /// of the list is leaked, counted in ``DMAStatistics/leakedBytes``, and never reused.
  ///
  /// - Throws: As ``map(_:_:)-(DMABuffer,_)``; `.empty` for an empty list.
  public func map(_ list: consuming ScatterList, _ direction: DMADirection) throws(DMAError) -> MappedList {
    guard list.count > 0 else { throw core.failed(.space(.empty), "map(list)", byteCount: 0).on(deviceName) }
    guard list.isAll(of: core) else { throw foreignBuffer("map(list)") }
    var total: UInt64 = 0
    for index in 0..<list.count { total += core.padded(list.byteCount(at: index)) }
    let limits = addressing.limits
    switch core.map(list, byteCount: total, limits: limits, access: direction.access) {
    case .failure(let failure):
      noteFailure(failure, limits)
      // What the device may still reach must not be used again.
      if case .stuck = failure { _ = list.take() }
      throw core.failed(failure, "map(list)", byteCount: Int(total), limit: limits.last).on(deviceName)
    case .success(let address):
      if address.rawValue > limits.first { tripped() }
      return unsafe MappedList(
        core: .passRetained(core), address: address, byteCount: Int(total), list: list)
    }
  }
}

extension DomainCore {
  /// Takes one range for all parts, then maps part by part.
  func map(
    _ list: borrowing ScatterList, byteCount: UInt64, limits: AddressLimits, access: DMAAccess
  ) -> Result<IOVA, MapFailure> {
    guard ProcessGuard.isOwner else { return .failure(.forked) }
    guard enter() else { return .failure(.closed) }
    defer { leave() }
    let iova: IOVA
    do throws(RangeStoreFailure) { iova = try place(list, byteCount, limits) } catch { return noSpace(error) }
    var next = iova.rawValue
    for index in 0..<list.count {
      let length = padded(list.byteCount(at: index))
      let host = unsafe UInt64(UInt(bitPattern: list.base(at: index)))
      do throws(Errno) {
        try translation.map(iova: next, address: host, byteCount: length, access: access)
      } catch { return undo(list, iova, parts: index, mapped: next - iova.rawValue, error) }
      locked { $0.mapped(IOVA(next), host: host, byteCount: length) }
      next += length
    }
    return .success(iova)
  }

  /// One contiguous range, with a node a part, so that each address finds its memory.
  private func place(_ list: borrowing ScatterList, _ byteCount: UInt64, _ limits: AddressLimits)
    throws(RangeStoreFailure) -> IOVA
  {
    unsafe state.pointee.lock.lock()
    defer { unsafe state.pointee.lock.unlock() }
    let iova = try unsafe state.pointee.store.allocate(
      byteCount, alignment: Self.alignment(byteCount), limits, tag: 1)
    _ = unsafe state.pointee.store.remove(iova)
    var next = iova
    for index in 0..<list.count {
      let range = IOVARange(start: next, byteCount: padded(list.byteCount(at: index)))!
      let host = unsafe UInt64(UInt(bitPattern: list.base(at: index)))
      do throws(RangeStoreFailure) {
        try unsafe state.pointee.store.insert(RangeStore.Node(range: range, kind: .allocation, tag: host))
      } catch {
        removeParts(iova, upTo: next)
        throw error
      }
      next = IOVA(next.rawValue &+ range.byteCount)
    }
    return iova
  }

  /// With the lock held: frees the nodes of `[start, end)`.
  private func removeParts(_ start: IOVA, upTo end: IOVA) {
    var next = start
    while next < end, let node = unsafe state.pointee.store.remove(next) {
      next = IOVA(next.rawValue &+ node.byteCount)
    }
  }

  /// Part of a list is mapped: one unmap takes it back. If that fails, those parts keep their addresses, and the list its
  /// memory.
  private func undo(
    _ list: borrowing ScatterList, _ iova: IOVA, parts: Int, mapped: UInt64, _ error: Errno
  ) -> Result<IOVA, MapFailure> {
    let done = mapped == 0 ? 0 : try? translation.unmap(iova: iova.rawValue, byteCount: mapped)
    let isStuck = done != mapped
    var next = iova.rawValue
    unsafe state.pointee.lock.lock()
    defer { unsafe state.pointee.lock.unlock() }
    for index in 0..<list.count {
      let length = padded(list.byteCount(at: index))
      if index >= parts {
        unsafe state.pointee.forget(IOVA(next))
      } else if !isStuck {
        unsafe state.pointee.unmapped(IOVA(next), byteCount: length, systemCalls: 0)
      }
      if isStuck { unsafe state.pointee.statistics.leakedBytes += length }
      next += length
    }
    unsafe state.pointee.statistics.failedMaps += 1
    unsafe state.pointee.statistics.systemCalls += mapped == 0 ? 1 : 2
    return .failure(isStuck ? .stuck(error) : .system(error))
  }

  /// Unmaps a list with one call; nil on success.
  func unmapParts(_ iova: IOVA, byteCount: Int, _ parts: ScatterList.Parts) -> MapFailure? {
    guard ProcessGuard.isOwner else { return .forked }
    var systemCalls: UInt64 = 0
    if enter() {
      defer { leave() }
      do throws(Errno) {
        let done = try translation.unmap(iova: iova.rawValue, byteCount: UInt64(byteCount))
        if done != UInt64(byteCount) { return .mismatch(done) }
      } catch { return .system(error) }
      systemCalls = 1
    } else {
      waitUntilEmptied()
    }
    var next = iova.rawValue
    for index in 0..<parts.count {
      let length = padded(parts.byteCount(at: index))
      locked { $0.unmapped(IOVA(next), byteCount: length, systemCalls: index == 0 ? systemCalls : 0) }
      next += length
    }
    return nil
  }
}
