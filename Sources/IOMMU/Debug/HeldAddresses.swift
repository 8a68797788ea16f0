import AddressSpace

/// Debug mode's way with addresses: a gap behind each mapping, and a wait before addresses are given out again.
///
/// All of it is nodes of the store: a gap and what waits are guards with marks of their own. In debug mode every mapping is the store's, see ``DomainCore/init(kernel:translation:usable:granule:node:device:debug:)``.
@safe
struct HeldAddresses {
  /// Behind each mapping, in bytes.
  let gapByteCount: UInt64
  /// Where the ranges begin that wait, the oldest at `first`.
  private let ring: UnsafeMutablePointer<UInt64>
  let capacity: Int
  private var first = 0, count = 0

  init(_ options: DebugOptions, granule: PageSize) {
    gapByteCount = UInt64(options.guardPages) * granule.byteCount
    capacity = options.heldAddresses
    unsafe ring = .allocate(capacity: max(capacity, 1))
  }

  func deallocate() { unsafe ring.deallocate() }

  /// Takes one more, and gives back the oldest where there is no room.
  mutating func push(_ start: UInt64) -> UInt64? {
    let oldest = count == capacity ? pop() : nil
    unsafe ring[(first + count) % capacity] = start
    count += 1
    return oldest
  }

  mutating func pop() -> UInt64? {
    guard count > 0 else { return nil }
    defer { (first, count) = ((first + 1) % capacity, count - 1) }
    return unsafe ring[first]
  }
}

extension DomainState {
  /// Takes addresses within the limits as they are now, in debug mode with a gap behind them; with the lock taken for two
  /// insertions.
  mutating func take(
    _ request: RangeStore.Request, _ limits: AddressLimits, kind: RangeStore.Kind = .allocation, tag: UInt64 = 0,
    auxiliary: UInt32 = 0
  ) throws(RangeStoreFailure) -> IOVA {
    let limits = limits.now
    if let gap = held?.gapByteCount, gap > 0 {
      // As long as a boundary, it has no room for a gap in front of the next.
      var longer = request
      longer.byteCount += gap
      if let start = try? store.allocate(longer, limits, kind: .guard, auxiliary: RangeStore.Node.gapMark) {
        let range = IOVARange(start: start, byteCount: request.byteCount)!
        do throws(RangeStoreFailure) {
          try store.carve(.init(range: range, kind: kind, tag: tag, auxiliary: auxiliary))
        } catch {
          store.remove(start)
          throw error
        }
        return start
      }
    }
    // Without a gap where there is no room for one.
    return try store.allocate(request, limits, kind: kind, tag: tag, auxiliary: auxiliary)
  }

  /// Frees the gap behind a range that was there; where it ends.
  @discardableResult
  mutating func freeGap(behind last: IOVA) -> IOVA {
    guard held != nil, last.rawValue < .max, let gap = store.find(containing: IOVA(last.rawValue + 1)), gap.isGap else {
      return last
    }
    store.remove(gap.start)
    return gap.range.last
  }

  /// Frees the addresses of the node that starts at one, and returns it; in debug mode nobody gets them for a while.
  mutating func release(_ start: IOVA) -> RangeStore.Node? {
    guard let held else { return store.remove(start) }
    guard let node = store.find(containing: start), node.start == start else { return nil }
    let whole = IOVARange(start: start, last: freeGap(behind: node.range.last))!
    // The caller may have its own addresses again at once.
    guard node.kind != .fixed, held.capacity > 0 else { return store.remove(start) }
    store.replace(start, with: .init(range: whole, kind: .guard, auxiliary: RangeStore.Node.heldMark))
    if let oldest = self.held!.push(start.rawValue) { store.remove(IOVA(oldest)) }
    return node
  }

  /// Gives all addresses back that wait; whether there were any.
  mutating func releaseHeld() -> Bool {
    guard held != nil else { return false }
    var isAny = false
    while let start = held!.pop() {
      store.remove(IOVA(start))
      isAny = true
    }
    return isAny
  }
}

extension DomainState {
  /// Gives the gaps up that begin in a range, or all; whether there were any. O(n) in the number of mappings there.
  mutating func dropGaps(in range: IOVARange = IOVARange(start: IOVA(0), last: IOVA(.max))!) -> Bool {
    var from = range.start, isAny = false
    while held != nil, let node = store.next(from: from), node.start <= range.last {
      if node.isGap {
        store.remove(node.start)
        isAny = true
      }
      guard node.range.last.rawValue < .max else { break }
      from = IOVA(node.range.last.rawValue + 1)
    }
    return isAny
  }
}

extension DomainCore {
  /// Gives the store the addresses back that nobody uses: cached ones, and in debug mode those that wait, and the gaps; of these
  /// the one that is in the way of an address of the caller's choice. Whether there were any.
  ///
  /// - Parameter sparesGaps: Whether gaps stay when there were addresses that wait. Other threads' addresses come to wait all the
  ///   time, so that nobody may rely on there being none.
  @inline(never)
  func makeAddressRoom(_ reason: RangeStoreFailure, sparesGaps: Bool = false) -> Bool {
    let isAny = space.emptyCaches()
    return locked { state in
      let wasAny = state.releaseHeld()
      if wasAny, sparesGaps { return true }
      switch reason {
      case .occupied(let obstacle), .reserved(let obstacle): return state.dropGaps(in: obstacle) || wasAny
      default: return state.dropGaps() || wasAny
      }
    } || isAny
  }

  /// Whether another answer is possible when fewer addresses are taken. What debug mode keeps free looks reserved.
  func mayPass(_ reason: RangeStoreFailure) -> Bool {
    switch reason {
    case .noSpace, .fragmented, .occupied: true
    case .reserved: debug != nil
    default: false
    }
  }
}
