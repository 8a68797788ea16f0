package import AddressSpace

/// The range between two addresses, both inside.
package func range(_ start: UInt64, _ last: UInt64) -> IOVARange { IOVARange(start: IOVA(start), last: IOVA(last))! }

/// What ``RangeStore`` must do, done the plain way: a sorted array, gaps computed anew each time,
/// addresses tried one by one. It shares no arithmetic with the store.
package struct NaiveStore {
  package let granule: PageSize
  package let usable: IOVARanges
  private(set) package var nodes: [RangeStore.Node] = []

  package init(usable: IOVARanges, granule: PageSize) {
    self.usable = usable.trimmed(to: granule)
    self.granule = granule
  }

  /// The free ranges from the lowest. Usable ranges that touch are one; nodes that touch leave none between.
  package var gaps: [IOVARange] {
    var gaps: [IOVARange] = []
    var index = 0
    for area in usable {
      var free: UInt64? = area.start.rawValue
      while index < nodes.count, nodes[index].range.last <= area.last {
        let node = nodes[index].range
        if let first = free, first < node.start.rawValue {
          gaps.append(range(first, node.start.rawValue - 1))
        }
        free = node.last.rawValue == .max ? nil : node.last.rawValue + 1
        index += 1
      }
      if let first = free, first <= area.last.rawValue { gaps.append(range(first, area.last.rawValue)) }
    }
    return gaps
  }
}

// MARK: - Allocation

extension NaiveStore {
  package mutating func allocate(_ request: RangeStore.Request, tag: UInt64) -> Result<IOVA, RangeStoreFailure> {
    guard request.byteCount != 0 else { return .failure(.empty) }
    guard request.byteCount % granule.byteCount == 0 else { return .failure(.unaligned) }
    guard let natural = PageSize(fitting: request.byteCount) else { return .failure(.noSpace) }
    if let boundary = request.boundary, boundary.byteCount < request.byteCount {
      return .failure(.boundaryTooSmall)
    }
    let alignment = max(request.alignment ?? natural, granule)
    let isNatural = alignment == max(natural, granule)
    let isExact = isNatural || (alignment == granule && request.boundary == nil)
    guard let window = IOVARange(start: IOVA(request.lowest), last: IOVA(request.limit))?.trimmed(to: granule)
    else {
      return .failure(.noSpace)
    }
    // What a gap must surely hold once too many that might have done did not.
    let sure = alignment > natural ? alignment.byteCount / 2 + granule.byteCount : request.byteCount
    var (failed, isTruncated) = (0, false)
    for gap in request.direction == .topDown ? gaps.reversed() : gaps {
      guard let free = gap.intersection(window), free.byteCount >= request.byteCount else { continue }
      isTruncated = failed == 32
      if isTruncated && capacity(gap) < sure { continue }
      if let start = place(request, alignment, in: free) {
        let found = IOVARange(start: IOVA(start), byteCount: request.byteCount)!
        insert(RangeStore.Node(range: found, kind: .allocation, tag: tag))
        return .success(found.start)
      }
      if isTruncated { break }
      if !isExact { failed += 1 }
    }
    return .failure(isTruncated ? .fragmented : .noSpace)
  }

  /// The first address in the direction, tried from one multiple of the alignment to the next; past a
  /// boundary at once.
  private func place(_ request: RangeStore.Request, _ alignment: PageSize, in free: IOVARange) -> UInt64? {
    guard free.byteCount >= request.byteCount else { return nil }
    let highest = free.last.rawValue - (request.byteCount - 1)
    let isTopDown = request.direction == .topDown
    var next = isTopDown ? alignment.alignedDown(highest) : alignment.alignedUp(free.start.rawValue)
    while let start = next, start >= free.start.rawValue, start <= highest {
      guard let boundary = request.boundary else { return start }
      let crossed = boundary.alignedDown(start + (request.byteCount - 1))
      if crossed <= start { return start }
      if isTopDown {
        next = crossed >= request.byteCount ? alignment.alignedDown(crossed - request.byteCount) : nil
      } else {
        next = alignment.alignedUp(crossed)
      }
    }
    return nil
  }

  /// The largest length that fits a gap at natural alignment: for each alignment what lies behind its
  /// first multiple, as far as it needs that alignment.
  package func capacity(_ gap: IOVARange) -> UInt64 {
    var best: UInt64 = 0
    for shift in granule.shift...63 {
      let size = PageSize(shift: shift)
      guard let start = size.alignedUp(gap.start.rawValue), start <= gap.last.rawValue else { break }
      let distance = gap.last.rawValue - start
      let room = distance >= size.byteCount - 1 ? size.byteCount : distance + 1
      if room > size.byteCount / 2 || shift == granule.shift { best = max(best, room) }
    }
    return best
  }

  /// The largest length for which an allocation with natural alignment succeeds in a window.
  package func largestFreeByteCount(_ window: IOVARange) -> UInt64 {
    guard let window = window.trimmed(to: granule) else { return 0 }
    return gaps.compactMap { $0.intersection(window) }.map { capacity($0) }.max() ?? 0
  }
}

// MARK: - Fixed ranges

extension NaiveStore {
  /// What an insertion fails with; `nil` when it succeeds.
  package mutating func insert(_ node: RangeStore.Node, limit: UInt64) -> RangeStoreFailure? {
    let range = node.range
    guard range.start.rawValue % granule.byteCount == 0, range.last.rawValue & granule.mask == granule.mask
    else {
      return .unaligned
    }
    guard range.last.rawValue <= limit else { return .aboveLimit(limit: limit) }
    // The lowest obstacle: a node, or a part that is not usable.
    let unusable = usable.complement.compactMap { $0.intersection(range) }.first
    let node0 = nodes.first { $0.range.overlaps(range) }
    if let unusable, node0.map({ unusable.start < $0.start }) ?? true { return .outsideAperture(unusable) }
    if let other = node0 {
      return [.allocation, .fixed].contains(other.kind) ? .occupied(other.range) : .reserved(other.range)
    }
    insert(node)
    return nil
  }

  private mutating func insert(_ node: RangeStore.Node) {
    nodes.insert(node, at: nodes.firstIndex { $0.start > node.start } ?? nodes.count)
  }

  package mutating func remove(_ start: IOVA) -> RangeStore.Node? {
    nodes.firstIndex { $0.start == start }.map { nodes.remove(at: $0) }
  }

  package mutating func replace(_ start: IOVA, with node: RangeStore.Node) -> RangeStore.Node? {
    let mask = granule.mask
    guard node.start.rawValue & mask == 0, node.range.last.rawValue & mask == mask else { return nil }
    guard let old = remove(start) else { return nil }
    // The new one has nothing but addresses of the old one and of the gaps at its ends.
    let around = gaps.first { $0.contains(old.range) }
    guard let around, around.contains(node.range) else {
      insert(old)
      return nil
    }
    insert(node)
    return old
  }

  package mutating func carve(_ node: RangeStore.Node) -> RangeStoreFailure? {
    let mask = granule.mask
    guard node.start.rawValue & mask == 0, node.range.last.rawValue & mask == mask else { return .unaligned }
    guard let old = nodes.first(where: { $0.range.contains(node.range) }) else { return .noSpace }
    _ = remove(old.start)
    insert(node)
    for rest in IOVARanges([old.range]).subtracting([node.range]) {
      var part = old
      part.range = rest
      insert(part)
    }
    return nil
  }

  package mutating func unreserve(_ range: IOVARange) -> Bool {
    let range = range.widened(to: granule)
    guard let index = nodes.firstIndex(where: { $0.range == range && $0.kind == .reservation }) else {
      return false
    }
    nodes.remove(at: index)
    return true
  }

  package func find(containing address: IOVA) -> RangeStore.Node? { nodes.first { $0.range.contains(address) } }
  package func find(overlapping range: IOVARange) -> RangeStore.Node? { nodes.first { $0.range.overlaps(range) } }
  package func next(from address: IOVA) -> RangeStore.Node? { nodes.first { $0.start >= address } }
}
