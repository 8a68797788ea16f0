import AddressSpace
import Synchronization

/// Addresses that were taken, and what is linked there: what a ``Reservation`` and a ``LinkedRange`` hand on.
///
/// One owner at a time, a `~Copyable` value; the last one's end ends the range.
@safe
final class ReservedRange: @unchecked Sendable {
  let core: DomainCore
  let deviceName: String
  private let addressing: DeviceAddressing
  let range: IOVARange
  /// Sorted by placement.
  private(set) var links: [MemoryPart] = []

  /// Takes over addresses that were taken for the device of a domain value.
  init(_ domain: DMADomain, _ range: IOVARange) {
    (core, deviceName, addressing) = (domain.core, domain.deviceName, domain.addressing)
    self.range = range
  }

  deinit {
    // In a fork the range and the memory are the parent's.
    guard ProcessGuard.isOwner else { return }
    _ = unlink(0..<links.count)
    core.locked { state in
      var next = range.start
      while let node = state.store.find(containing: next) {
        // What could not be unmapped keeps its addresses.
        if node.isTaken { _ = state.release(node.start) }
        if node.range.last >= range.last { break }
        next = IOVA(node.range.last.rawValue + 1)
      }
    }
  }

  /// Maps a part at an offset; a part that cannot be linked is freed.
  func link(_ part: consuming MemoryPart, at offset: Int, _ direction: DMADirection) throws(DMAError) {
    let pages = part.pages(core.granuleMask)
    let index: Int
    do throws(DMAError) {
      if part.isUnsafe, core.isOwner {
        try unsafe core.debug?.check(UnsafeRawBufferPointer(start: part.base, count: part.byteCount), "link")
      }
      try refuseBounce(part)
      try checkMask("link")
      index = try self.index(for: part, at: offset)
    } catch {
      part.free()
      throw error
    }
    part.placement = UInt64(offset)
    let failure = map(part, pages, access: direction.access)
    guard let failure else {
      if let debug = core.debug {
        part.record = debug.begin(part, .link, in: range.start, direction.access)
      }
      return links.insert(part, at: index)
    }
    if failure.isClosed { core.waitUntilEmptied() }
    let byteCount = part.byteCount, address = IOVA(range.start.rawValue + UInt64(offset))
    if case .stuck = failure { keepCore() } else { part.free() }
    throw core.failed(failure, "link", address, byteCount: byteCount).on(deviceName)
  }

  /// What is linked is mapped in its place, at once, where the caller says.
  private func refuseBounce(_ part: MemoryPart) throws(DMAError) {
    guard core.way == .bounce else { return }
    throw DMAError(
      .notSupported, "link", byteCount: UInt64(part.byteCount), device: deviceName,
      detail: "A link cannot be bounced, and with this protection the device sees no memory but the library's own",
      remedy: "Map a ScatterList, or switch the protection")
  }

  /// An address that the device cannot drive is not to be had, nor anything linked there.
  func checkMask(_ operation: String) throws(DMAError) {
    let limit = addressing.limit
    guard range.last.rawValue > limit else { return }
    throw DMAError(
      .outsideMask, operation, address: range.start.rawValue, byteCount: range.byteCount, device: deviceName,
      detail: "\(range) was reserved before the mask was lowered to \(IOVA(limit))",
      remedy: "Set the mask before reserving")
  }

  private func map(_ part: MemoryPart, _ pages: (host: UInt64, byteCount: UInt64), access: DMAAccess) -> MapFailure? {
    guard ProcessGuard.isOwner else { return .forked }
    guard core.enter() else { return .closed }
    defer { core.leave() }
    let start = IOVA(range.start.rawValue + part.placement)
    do throws(RangeStoreFailure) {
      try core.locked(insertions: 2) { state throws(RangeStoreFailure) in
        try state.link(start, byteCount: pages.byteCount, host: pages.host)
      }
    } catch { return .space(error) }
    return unsafe withUnsafePointer(to: part) {
      unsafe core.mapParts($0, count: 1, at: range.start, access: access, reserved: range)
    }
  }

  /// Where a part goes among the links, if it fits and nothing is there.
  private func index(for part: MemoryPart, at offset: Int) throws(DMAError) -> Int {
    let mask = core.granuleMask, length = part.pages(mask).byteCount
    func refusal(_ code: DMAError.Code, _ detail: String) -> DMAError {
      DMAError(
        code, "link", address: part.host, byteCount: UInt64(part.byteCount), device: deviceName, detail: detail)
    }
    guard offset >= 0, UInt64(offset) & mask == 0, offset == 0 || part.host & mask == 0 else {
      throw refusal(
        .unaligned, "Links begin on multiples of \(mask + 1) bytes, but for memory at offset 0, not at offset \(offset)"
      )
    }
    let start = UInt64(offset)
    guard start < range.byteCount, length <= range.byteCount - start else {
      throw refusal(.outsideAperture, "\(length) bytes at offset \(offset) leave the \(range.byteCount) reserved ones")
    }
    let index = links.firstIndex { $0.placement >= start } ?? links.count
    let below = index > 0 ? links[index - 1] : nil, above = index < links.count ? links[index] : nil
    let other =
      below.flatMap { end(of: $0) > start ? $0 : nil } ?? above.flatMap { $0.placement < start + length ? $0 : nil }
    if let other {
      throw refusal(
        .overlap, "Offsets \(start)..<\(start + length) overlap the link at \(other.placement)..<\(end(of: other))")
    }
    return index
  }

  private func end(of link: MemoryPart) -> UInt64 { link.placement + link.pages(core.granuleMask).byteCount }

  /// Unmaps the links that lie in a range of offsets.
  func unlink(offsets: Range<Int>) throws(DMAError) -> ScatterList {
    if offsets.isEmpty { return ScatterList() }
    let first = links.firstIndex { end(of: $0) > UInt64(clamping: offsets.lowerBound) } ?? links.count
    let last = links[first...].firstIndex { $0.placement >= UInt64(clamping: offsets.upperBound) } ?? links.count
    if first < last {
      let lowest = links[first].placement, highest = end(of: links[last - 1])
      guard lowest >= UInt64(clamping: offsets.lowerBound), highest <= UInt64(clamping: offsets.upperBound) else {
        let isFirst = lowest < UInt64(clamping: offsets.lowerBound)
        if core.isOwner { core.debug?.unlinked(offsets, of: range.start, cutting: links[isFirst ? first : last - 1]) }
        throw DMAError(
          .invalidArgument, "unlink", address: range.start.rawValue, device: deviceName,
          detail: "Offsets \(offsets) cut a link; those that they touch lie at \(lowest)..<\(highest)",
          remedy: "Unlink whole links")
      }
    } else if offsets.upperBound < .max {
      if core.isOwner { core.debug?.unlinked(offsets, of: range.start, cutting: nil) }
    }
    return try unlink(first..<last).get()
  }

  /// Unmaps some links, with a kernel call for each run without a gap; what cannot be unmapped is leaked and counted.
  private func unlink(_ indices: Range<Int>) -> UnlinkResult {
    core.endRecords(links[indices])
    let (failure, done) = unsafe links.withUnsafeBufferPointer { all -> (MapFailure?, Int) in
      guard !indices.isEmpty, let base = all.baseAddress else { return (nil, 0) }
      return unsafe core.unmapParts(base + indices.lowerBound, count: indices.count, from: range.start, reserved: range)
    }
    if let failure, case .forked = failure {
      return .failure(core.failed(failure, "unlink", range.start).on(deviceName))
    }
    let ended = links[indices]
    links.removeSubrange(indices)
    guard let failure else {
      var list = ScatterList(capacity: ended.count)
      for part in ended where !part.isUnsafe { list.append(part.buffer()) }
      return .success(list)
    }
    for part in ended.prefix(done) { part.free() }
    let left = ended.dropFirst(done).reduce(0) { $0 + Int($1.pages(core.granuleMask).byteCount) }
    keepCore()
    return .failure(core.leaked(failure, "unlink", range.start, left).on(deviceName))
  }

  /// A device may still reach memory: the core stays, so that the memory is not given to the operating system.
  private func keepCore() { _ = unsafe Unmanaged.passRetained(core) }

  /// As `Result`, for a list that cannot be copied.
  private enum UnlinkResult: ~Copyable {
    case success(ScatterList)
    case failure(DMAError)

    consuming func get() throws(DMAError) -> ScatterList {
      switch consume self {
      case .success(let list): return list
      case .failure(let error): throw error
      }
    }
  }

  /// Where the first byte lies for the device: further on than the range begins where memory at offset 0 begins in mid
  /// page.
  var address: IOVA {
    let first = links.first.flatMap { $0.placement == 0 ? $0.host & core.granuleMask : nil }
    return IOVA(range.start.rawValue + (first ?? 0))
  }
}
