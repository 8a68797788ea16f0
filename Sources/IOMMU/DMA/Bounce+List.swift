import AddressSpace
import Synchronization

/// Lists that are copied: each part to its place in one copy of the whole list.
extension DMADomain {
  /// Maps a list by a copy that is laid out as its range would be.
  func bounce(
    _ list: consuming ScatterList, _ layout: ListLayout, _ constraints: DMAConstraints, _ access: DMAAccess
  ) throws(DMAError) -> MappedList {
    guard !core.isClosed.load(ordering: .acquiring) else { throw core.failed(.closed, "map(list)").on(deviceName) }
    let slot: BounceSlot, address: IOVA
    do throws(DMAError) {
      let byteCount = Int(layout.end)
      let place = try unsafe bounceMemory(byteCount, constraints.copyAlignment(layout.end, granule), addressing.limits)
      (slot, address) = unsafe (BounceSlot(base: place.base, memory: place.base, access: access), place.iova)
    } catch {
      core.locked { $0.statistics.failedMaps += 1 }
      throw error.on(deviceName)
    }
    core.beginBounce(list.parts, in: slot)
    core.beginRecords(list.parts, at: address, access, .bounced(slot))
    return unsafe MappedList(
      core: .passRetained(core), address: address, byteCount: Int(layout.end), list: list, segmentCount: layout.count,
      constraints: constraints, kind: .bounced(slot))
  }
}

extension DMAConstraints {
  /// What the copy of a list begins on, so that its segments are what the layout says: on a multiple of the boundary, or
  /// where a list that is shorter crosses none.
  fileprivate func copyAlignment(_ byteCount: UInt64, _ granule: PageSize) -> PageSize {
    let least = max(granule, alignment)
    guard let boundary else { return least }
    if byteCount >= boundary.byteCount { return max(least, boundary) }
    return max(least, PageSize(shift: UInt8(UInt64.bitWidth - (byteCount - 1).leadingZeroBitCount)))
  }
}

extension DomainCore {
  /// Copies what the device is to read; what it only writes begins as zeros.
  fileprivate func beginBounce(_ parts: ScatterList.Parts, in slot: BounceSlot) {
    forEachCopy(parts, in: slot) { copy, length in
      if slot.access.canRead {
        copy.copyIn(0..<length)
      } else {
        unsafe copy.base.initializeMemory(as: UInt8.self, repeating: 0, count: length)
      }
      standing.count(maps: 1, byteCount: length, copied: slot.copied(length, in: true))
    }
  }

  /// Copies what the device has written, and ends the copy.
  func endBounce(_ parts: ScatterList.Parts, in slot: BounceSlot) -> MapFailure? {
    guard isOwner else { return .forked }
    if isClosed.load(ordering: .acquiring) { waitUntilEmptied() }
    dmaReadBarrier()
    forEachCopy(parts, in: slot) { copy, length in
      copy.copyOut(0..<length)
      standing.count(unmaps: 1, byteCount: length, copied: slot.copied(length, in: false))
    }
    unsafe coherent.free(slot.base)
    return nil
  }

  private func forEachCopy(_ parts: ScatterList.Parts, in slot: BounceSlot, _ body: (BounceSlot, Int) -> Void) {
    for index in 0..<parts.count {
      let part = unsafe parts.base[index]
      let offset = Int(part.placement + (part.host & granuleMask))
      body(unsafe BounceSlot(base: slot.base + offset, memory: part.base, access: slot.access), part.byteCount)
    }
  }
}
