import AddressSpace
import Synchronization

/// Many parts in one range: lists and reservations.
extension DomainCore {
  /// Maps parts at their places in a range whose nodes are there, in as few kernel calls as there can be.
  ///
  /// If one fails, those before it are taken back and the parts' addresses are free again, or `reserved` ones once more.
  /// If that fails too, what is mapped keeps its addresses. When the domain is closed meanwhile this stops, and what is mapped
  /// is out of reach when the domain is emptied.
  ///
  /// - Precondition: The caller has entered.
  func mapParts(
    _ parts: UnsafePointer<MemoryPart>, count: Int, at iova: IOVA, access: DMAAccess, reserved: IOVARange? = nil
  ) -> MapFailure? {
    if lazyMode.load(ordering: .relaxed) != .strict { flushOverdue() }
    var walk = unsafe AreaWalk(parts, count: count, granuleMask: granuleMask)
    var done = 0, mapped: UInt64 = 0, before = walk
    while let area = walk.next() {
      defer { before = walk }
      var failure: MapFailure?, calls: UInt64 = 0, stuck: Range<UInt64> = 0..<0
      do throws(Errno) {
        if mapped > 0, isClosed.load(ordering: .relaxed) {
          failure = .closed
        } else {
          try mapMakingRoom(
            iova: iova.rawValue + area.placement, address: area.host, byteCount: area.byteCount, access: access)
        }
      } catch {
        // Neighbours may be in a registration each.
        if error == .notRegistered, area.partsDone - done > 1 {
          walk = before
          walk.joinsParts = false
          continue
        }
        let back = unsafe unmapAreas(parts, count: count, from: iova, mapped: mapped, acrossGaps: reserved == nil)
        calls = 1 + back.calls
        failure = Self.failure(error, takenBack: back.failure)
        if case .stuck? = failure { stuck = back.unmapped..<mapped }
      }
      if let failure {
        locked { state in
          state.statistics.failedMaps += 1
          state.statistics.systemCalls += callsEach &* calls
          unsafe state.takeBack(
            parts, count: count, at: iova, granuleMask: granuleMask, counted: done, stuck: stuck, reserved: reserved)
        }
        return failure
      }
      mapped += area.byteCount
      locked { $0.statistics.systemCalls &+= callsEach }
      // One at a time: an area has thousands of parts at most.
      for index in done..<area.partsDone {
        let part = unsafe parts[index], pages = part.pages(granuleMask)
        locked(insertions: 1) { state in
          state.mapped(
            IOVA(iova.rawValue + part.placement), host: pages.host, byteCount: pages.byteCount, systemCalls: 0)
        }
      }
      done = area.partsDone
    }
    return nil
  }

  /// Unmaps a list. In a lazy mode it waits for a flush if one kernel call can unmap it, and its buffers with it.
  ///
  /// - Returns: As ``unmapParts(_:count:from:reserved:)``.
  func unmap(_ list: ScatterList.Parts, from iova: IOVA, byteCount: UInt64) -> (failure: MapFailure?, done: Int) {
    if lazyMode.load(ordering: .relaxed) != .strict, isOwner, isOneArea(list), enter() {
      let result = unsafe unmapLazily(list.base, count: list.count, from: iova, byteCount: byteCount)
      leave()
      tellOfTimer()
      switch result {
      case .failure(let failure): return (failure, 0)
      case .success(let number):
        list.keep(until: number)
        return (nil, list.count)
      }
    }
    return unsafe unmapParts(list.base, count: list.count, from: iova)
  }

  private func isOneArea(_ list: ScatterList.Parts) -> Bool {
    var byteCount: UInt64 = 0
    for index in 0..<list.count { byteCount += unsafe list.base[index].pages(granuleMask).byteCount }
    return byteCount <= UInt64(Limits.areaByteCount)
  }

  /// Unmaps parts that ``mapParts(_:count:at:access:reserved:)`` mapped; on success their addresses are free, or `reserved`
  /// ones again.
  ///
  /// - Returns: Why not, and how many parts were unmapped all the same, from the first on.
  func unmapParts(
    _ parts: UnsafePointer<MemoryPart>, count: Int, from iova: IOVA, reserved: IOVARange? = nil
  ) -> (failure: MapFailure?, done: Int) {
    guard ProcessGuard.isOwner else { return (.forked, 0) }
    var failure: MapFailure? = .closed, unmapped = UInt64.max, calls: UInt64 = 0
    if enter() {
      (failure, unmapped, calls) = unsafe unmapAreas(
        parts, count: count, from: iova, mapped: .max, acrossGaps: reserved == nil)
      leave()
    }
    if let reason = failure, reason.isClosed {
      // The kernel unmaps everything by itself.
      waitUntilEmptied()
      (failure, unmapped) = (nil, .max)
    }
    var next: UInt64 = 0, at: UInt64 = 0, done = 0
    while done < count {
      let part = unsafe parts[done], length = part.pages(granuleMask).byteCount
      at += length
      if at > unmapped { break }
      locked { state in
        let start = IOVA(iova.rawValue + part.placement)
        if reserved == nil, part.placement > next { state.store.remove(IOVA(iova.rawValue + next)) }
        state.unmapped(start, byteCount: length, systemCalls: 0, reserved: reserved)
      }
      next = part.placement + length
      done += 1
    }
    // The call that failed is counted by ``leaked(_:_:_:_:)``.
    locked { $0.statistics.systemCalls &+= callsEach &* (failure == nil ? calls : calls - 1) }
    return (failure, done)
  }

  /// Unmaps the first `mapped` bytes of some parts, an area's worth at a time.
  ///
  /// - Parameter acrossGaps: Whether nobody can have mapped anything between two parts.
  /// - Returns: Why not, how many bytes were unmapped, and how many calls it took. ``MapFailure/closed`` when the domain was
  ///   closed meanwhile.
  private func unmapAreas(
    _ parts: UnsafePointer<MemoryPart>, count: Int, from iova: IOVA, mapped: UInt64, acrossGaps: Bool
  ) -> (failure: MapFailure?, unmapped: UInt64, calls: UInt64) {
    var walk = unsafe AreaWalk(parts, count: count, granuleMask: granuleMask)
    var unmapped: UInt64 = 0, calls: UInt64 = 0
    var area = mapped > 0 ? walk.next() : nil
    while let first = area {
      if unmapped > 0, isClosed.load(ordering: .relaxed) { return (.closed, unmapped, calls) }
      var end = first.end, byteCount = first.byteCount
      area = unmapped + byteCount < mapped ? walk.next() : nil
      while let next = area, acrossGaps || next.placement == end,
        byteCount + next.byteCount <= UInt64(Limits.areaByteCount)
      {
        (end, byteCount) = (next.end, byteCount + next.byteCount)
        area = unmapped + byteCount < mapped ? walk.next() : nil
      }
      // What one call unmaps may have taken several to map, the last of which failed.
      let excess = byteCount - min(byteCount, mapped - unmapped)
      (end, byteCount) = (end - excess, byteCount - excess)
      calls += 1
      do throws(Errno) {
        let done = try translation.unmap(iova: iova.rawValue + first.placement, byteCount: end - first.placement)
        if done != byteCount { return (.mismatch(done), unmapped, calls) }
      } catch { return (.system(error), unmapped, calls) }
      unmapped += byteCount
    }
    return (nil, unmapped, calls)
  }
}

extension DomainCore {
  /// Takes a range with a node a part, so that each address finds its memory, and a guard wherever a gap is.
  ///
  /// First as one node, which is nobody else's, and then part by part: the lock is not held for all of a long list.
  func place(
    _ parts: UnsafePointer<MemoryPart>, count: Int, _ request: RangeStore.Request, _ limits: AddressLimits
  ) throws(RangeStoreFailure) -> IOVA {
    let iova = try locked(insertions: 2) { state throws(RangeStoreFailure) in
      try state.take(request, limits, kind: .guard, auxiliary: RangeStore.Node.takenMark)
    }
    for index in 0..<count {
      let part = unsafe parts[index], start = IOVA(iova.rawValue + part.placement)
      do throws(RangeStoreFailure) {
        try locked(insertions: 2) { state throws(RangeStoreFailure) in
          let pages = part.pages(granuleMask)
          try state.link(start, byteCount: pages.byteCount, host: pages.host)
        }
      } catch {
        locked { $0.removeNodes(IOVARange(start: iova, byteCount: request.byteCount)!) }
        throw error
      }
    }
    return iova
  }
}

extension DomainState {
  /// Parts could not all be mapped: frees their addresses, but for those of parts that are within reach in `stuck` bytes of
  /// what was mapped, and takes back what was counted.
  mutating func takeBack(
    _ parts: UnsafePointer<MemoryPart>, count: Int, at iova: IOVA, granuleMask: UInt64, counted: Int,
    stuck: Range<UInt64>, reserved: IOVARange?
  ) {
    var next: UInt64 = 0, at: UInt64 = 0
    for index in 0..<count {
      let part = unsafe parts[index], length = part.pages(granuleMask).byteCount
      let start = IOVA(iova.rawValue + part.placement)
      // The list as a whole is given up, or it could be used again in part only.
      if !stuck.isEmpty { statistics.leakedBytes += length }
      if !stuck.overlaps(at..<at + length) {
        if reserved == nil, part.placement > next { store.remove(IOVA(iova.rawValue + next)) }
        if index < counted {
          unmapped(start, byteCount: length, systemCalls: 0, reserved: reserved)
        } else {
          forget(start, reserved: reserved)
        }
      }
      (next, at) = (part.placement + length, at + length)
    }
  }

  /// Puts a node at a place within the guard of a reservation or a list, whose rest stays; with the lock taken for two
  /// insertions. Where there is no memory for it nothing has changed.
  mutating func link(_ start: IOVA, byteCount: UInt64, host: UInt64) throws(RangeStoreFailure) {
    guard let gap = store.find(containing: start), gap.isTaken else { throw .noSpace }
    let range = IOVARange(start: start, byteCount: byteCount)!
    try store.carve(RangeStore.Node(range: range, kind: .allocation, tag: host))
  }

  /// Gives the addresses of a link back to its reservation, as one node with the guards beside them, which takes no memory; the
  /// host address that was linked.
  mutating func fence(_ start: IOVA, in reserved: IOVARange) -> UInt64? {
    guard let link = store.find(containing: start), link.start == start else { return nil }
    var (first, last) = (link.start, link.range.last)
    if first > reserved.start, let node = store.find(containing: IOVA(first.rawValue - 1)), node.isTaken {
      first = node.start
      store.remove(first)
    }
    if last < reserved.last, let node = store.find(containing: IOVA(last.rawValue + 1)), node.isTaken {
      last = node.range.last
      store.remove(node.start)
    }
    store.replace(start, with: .taken(IOVARange(start: first, last: last)!))
    return link.tag
  }

  /// Frees the nodes of a range that begins and ends with one, and the gap behind it.
  fileprivate mutating func removeNodes(_ range: IOVARange) {
    var left = range.byteCount
    while left > 0, let node = store.remove(IOVA(range.last.rawValue - (left - 1))) { left -= node.byteCount }
    freeGap(behind: range.last)
  }
}
