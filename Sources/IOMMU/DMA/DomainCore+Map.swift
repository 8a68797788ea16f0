import AddressSpace
import Synchronization

/// The data path: address space, translation, address space; a page of code without retain, release or allocation.
extension DomainCore {
  /// Maps whole pages at an address of the store's choice, within `limits`: above the first of them when that has no room.
  @inline(__always)
  func map(_ base: UnsafeRawPointer, byteCount: Int, limits: AddressLimits, access: DMAAccess) -> Result<
    IOVA, MapFailure
  > {
    guard isOwner else { return .failure(.forked) }
    guard enter() else { return .failure(.closed) }
    defer { leave() }
    let length = padded(byteCount)
    let host = UInt64(UInt(bitPattern: base))
    if lazyMode.load(ordering: .relaxed) != .strict { flushOverdue() }
    let again = locked { state in
      let alignment = Self.alignment(length)
      let iova = state.store.allocateAgain(byteCount: length, alignment: alignment, limit: limits.first, tag: host)
      if let iova { state.mapped(iova, host: host, byteCount: length) }
      return iova
    }
    let iova: IOVA
    if let again {
      iova = again
    } else {
      do throws(RangeStoreFailure) {
        iova = try afterDrain { () throws(RangeStoreFailure) in try place(host, length, limits) }
      } catch { return noSpace(error) }
    }
    do throws(Errno) {
      if let directCalls {
        try directCalls.map(iova: iova.rawValue, address: host, byteCount: length, access: access)
      } else {
        try translation.map(iova: iova.rawValue, address: host, byteCount: length, access: access)
      }
    } catch { return undo(iova, byteCount: length, error) }
    return .success(iova)
  }

  /// An address that takes a search.
  @inline(never)
  private func place(_ host: UInt64, _ length: UInt64, _ limits: AddressLimits) throws(RangeStoreFailure) -> IOVA {
    try locked { state throws(RangeStoreFailure) in
      let request = RangeStore.Request(byteCount: length, alignment: Self.alignment(length))
      let iova = try state.store.allocate(request, limits, tag: host)
      state.mapped(iova, host: host, byteCount: length)
      return iova
    }
  }

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
    if enter() {
      defer { leave() }
      do throws(Errno) {
        let done =
          if let directCalls {
            try directCalls.unmap(iova: iova.rawValue, byteCount: length)
          } else {
            try translation.unmap(iova: iova.rawValue, byteCount: length)
          }
        if done != length { return .failure(.mismatch(done)) }
      } catch { return .failure(.system(error)) }
      locked { $0.unmapped(iova, byteCount: length, systemCalls: callsEach) }
      return .success(0)
    }
    // Closed: the kernel unmaps everything by itself.
    waitUntilEmptied()
    locked { $0.unmapped(iova, byteCount: length, systemCalls: 0) }
    return .success(0)
  }

  /// Tries again when addresses that wait for a flush may be what is in the way, and not what was asked for.
  @inline(__always)
  func afterDrain(_ body: () throws(RangeStoreFailure) -> IOVA) throws(RangeStoreFailure) -> IOVA {
    do throws(RangeStoreFailure) { return try body() } catch {
      guard error.mayPass, lazyMode.load(ordering: .relaxed) != .strict || cache.count > 0, drain() == nil else {
        throw error
      }
    }
    return try body()
  }

  /// Natural alignment up to 2 MiB: as the kernel's allocator, without the waste of large sizes.
  @inline(__always)
  static func alignment(_ length: UInt64) -> PageSize {
    length >= 1 << 21
      ? PageSize(shift: 21) : PageSize(shift: UInt8(truncatingIfNeeded: 64 &- (length &- 1).leadingZeroBitCount))
  }

  @inline(never)
  func noSpace(_ reason: RangeStoreFailure) -> Result<IOVA, MapFailure> {
    locked { $0.statistics.failedMaps += 1 }
    return .failure(.space(reason))
  }

  @inline(never)
  func undo(_ iova: IOVA, byteCount: UInt64, _ error: Errno) -> Result<IOVA, MapFailure> {
    locked { state in
      state.forget(iova)
      state.statistics.failedMaps += 1
      state.statistics.maps -= 1
      state.statistics.liveMappings -= 1
      state.statistics.liveBytes -= byteCount
    }
    return .failure(.system(error))
  }
}

extension RangeStore {
  /// The first limit, and where there is no room below it the last. A first try that must fail is one comparison.
  func allocate(
    _ request: Request, _ limits: AddressLimits, kind: Kind = .allocation, tag: UInt64 = 0
  ) throws(RangeStoreFailure) -> IOVA {
    var request = request
    request.limit = limits.first
    if limits.first < limits.last {
      do throws(RangeStoreFailure) { return try allocate(request, kind: kind, tag: tag) } catch {
        guard error == .noSpace || error == .fragmented else { throw error }
      }
      request.limit = limits.last
    }
    return try allocate(request, kind: kind, tag: tag)
  }
}

extension DomainState {
  /// Counts a mapping that has its address, and the kernel call that makes it if there is one, which may be still to come.
  @inline(__always)
  mutating func mapped(_ iova: IOVA, host: UInt64, byteCount: UInt64) {
    statistics.maps &+= 1
    statistics.systemCalls &+= callsEach
    statistics.liveMappings &+= 1
    statistics.liveBytes &+= byteCount
    if byHostAddress != nil { index(iova, host: host, byteCount: byteCount) }
  }

  /// Keeps the index of host addresses complete, where there is one.
  @inline(never)
  mutating func index(_ iova: IOVA, host: UInt64, byteCount: UInt64) {
    guard byHostAddress != nil else { return }
    do throws(RangeStoreFailure) {
      try byHostAddress!.insert(.init(start: host, byteCount: byteCount, address: iova))
    } catch {
      // Without memory for one entry, the next question makes the index anew.
      if error == .outOfMemory { byHostAddress = nil }
    }
  }

  /// Takes back an address that was given out, wherever it is kept.
  @inline(__always)
  mutating func forget(_ iova: IOVA) {
    guard let host = store.removeLast(iova) else { return search(iova) }
    if byHostAddress != nil { unindex(iova, host: host) }
  }

  @inline(never)
  private mutating func search(_ iova: IOVA) {
    guard let node = store.remove(iova) else { return }
    unindex(iova, host: node.tag)
  }

  @inline(never)
  mutating func unindex(_ iova: IOVA, host: UInt64) {
    byHostAddress?.remove(start: host, address: iova)
  }

  @inline(__always)
  mutating func unmapped(_ iova: IOVA, byteCount: UInt64, systemCalls: UInt64) {
    forget(iova)
    ended.append(iova, byteCount: byteCount)
    statistics.unmaps &+= 1
    statistics.systemCalls &+= systemCalls
    statistics.liveMappings &-= 1
    statistics.liveBytes &-= byteCount
  }
}

extension RangeStoreFailure {
  /// Whether another answer is possible when fewer addresses are taken.
  fileprivate var mayPass: Bool {
    switch self {
    case .noSpace, .fragmented, .occupied: true
    default: false
    }
  }
}
