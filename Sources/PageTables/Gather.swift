/// What unmaps collect for the invalidation that follows them.
///
/// Runs of leaves of one size, for commands by range; the tables that went, which may be used again only when that invalidation
/// has completed; and whether only leaves changed. Several unmaps may share one, so that a list costs one invalidation. The
/// corresponding kernel structure is `struct iommu_iotlb_gather`; that one keeps a single interval.
///
/// Where a flush of everything will follow anyway, as in lazy mode, runs are not tracked at all: ``rangeCount`` stays 0.
package struct Gather: ~Copyable {
  /// Neighbouring addresses that were mapped by leaves of one size.
  package struct Run: Hashable, Sendable {
    /// The first address.
    package var start: UInt64
    /// The length in bytes, a multiple of the leaves'.
    package var byteCount: UInt64
    /// The size of the leaves, as an exponent.
    package var leafShift: UInt8

    package init(start: UInt64, byteCount: UInt64, leafShift: UInt8) {
      (self.start, self.byteCount, self.leafShift) = (start, byteCount, leafShift)
    }
  }

  /// How many runs are kept.
  package static var capacity: Int { 16 }

  /// The last run, which the next may continue, and those before it.
  private var last = Run(start: 0, byteCount: 0, leafShift: 0)
  private var earlier = PackedRuns()
  /// How many runs there are, 0 when ``isEverything``.
  package private(set) var count = 0
  /// Whether runs are tracked.
  package let tracksRanges: Bool
  /// Whether there were more runs than are kept: everything has to go.
  package private(set) var isEverything = false
  /// Whether only leaves changed. Otherwise tables went, and what the hardware has cached of the way to leaves must go too.
  package private(set) var isLeafOnly = true
  /// Whether a leaf with ``LeafAttributes/owned`` was among what was unmapped.
  package internal(set) var sawOwned = false
  /// How often a run was tracked, merged or not.
  package private(set) var rangeCount = 0
  /// The tables that went.
  private var tables = TableList()

  /// A gather with nothing in it.
  ///
  /// - Parameter tracksRanges: whether the invalidation that follows may be one of ranges.
  package init(tracksRanges: Bool) { self.tracksRanges = tracksRanges }

  deinit { assert(tables.isEmpty, "tables were never given back") }

  /// Whether there is nothing to invalidate that was tracked.
  package var isEmpty: Bool { count == 0 && !isEverything && isLeafOnly }

  /// One of the runs, in the order in which they were unmapped. Traps unless it is below ``count``.
  package subscript(index: Int) -> Run {
    precondition(index >= 0 && index < count)
    return index == count - 1 ? last : earlier[index]
  }

  /// Takes the tables that went, to be given back to the pool when the invalidation has completed.
  package mutating func takeTables() -> TableList {
    let taken = tables
    tables = TableList()
    return taken
  }
}

// MARK: - Collecting

extension Gather {
  /// Adds leaves. They are merged with the last run when they continue it, on either side, in leaves of the same size.
  @inline(__always)
  package mutating func add(_ start: UInt64, _ byteCount: UInt64, leafShift: UInt8) {
    if tracksRanges { track(start, byteCount, leafShift) }
  }

  @inline(__always)
  private mutating func track(_ start: UInt64, _ byteCount: UInt64, _ shift: UInt8) {
    assert(start & 0xfff == 0 && byteCount != 0)
    rangeCount &+= 1
    if count > 0 && last.leafShift == shift {
      if last.start &+ last.byteCount == start {
        last.byteCount &+= byteCount
        return
      }
      if start &+ byteCount == last.start {
        last.start = start
        last.byteCount &+= byteCount
        return
      }
    }
    if (count > 0 || isEverything) && !makeRoom() { return }
    last = Run(start: start, byteCount: byteCount, leafShift: shift)
    count &+= 1
  }

  /// Puts the last run to the earlier ones; `false` when there is no room, or no need any more.
  @inline(never)
  private mutating func makeRoom() -> Bool {
    if isEverything { return false }
    guard count < Self.capacity else {
      isEverything = true
      count = 0
      return false
    }
    earlier[count - 1] = last
    return true
  }

  /// Adds a table that was unlinked.
  mutating func add(_ table: Table, of memory: TableMemory) {
    memory.append(table, to: &tables)
    isLeafOnly = false
  }
}

/// Up to 16 runs, two words each: the first address with the leaves' shift below its lowest bit, and the length.
///
/// A gather is set up for every unmap. Four vectors are cleared where they stand by a few stores; an `InlineArray` of that size is
/// made somewhere else and copied.
private struct PackedRuns {
  private var a = SIMD8<UInt64>(), b = SIMD8<UInt64>(), c = SIMD8<UInt64>(), d = SIMD8<UInt64>()

  subscript(index: Int) -> Gather.Run {
    @inline(__always) get {
      let words = index < 4 ? a : index < 8 ? b : index < 12 ? c : d
      let place = index % 4 * 2
      return Gather.Run(
        start: words[place] & ~0xfff, byteCount: words[place + 1],
        leafShift: UInt8(truncatingIfNeeded: words[place] & 0xfff))
    }
    set {
      let place = index % 4 * 2
      let first = newValue.start | UInt64(newValue.leafShift), second = newValue.byteCount
      switch index {
      case 0..<4: (a[place], a[place + 1]) = (first, second)
      case 4..<8: (b[place], b[place + 1]) = (first, second)
      case 8..<12: (c[place], c[place + 1]) = (first, second)
      default: (d[place], d[place + 1]) = (first, second)
      }
    }
  }
}
