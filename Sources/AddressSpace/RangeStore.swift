/// The occupied ranges of an I/O address space: allocations, reservations, guards and caller-fixed
/// addresses are all nodes of this one store.
package struct RangeStore: ~Copyable, @unchecked Sendable {
  /// What a node stands for.
  package enum Kind: UInt8, Sendable, CaseIterable {
    /// An address that the store chose.
    case allocation
    /// An address that the caller chose.
    case fixed
    /// Not to be used: a reserved region.
    case reservation
    /// Not to be used: a gap that catches a device running past its buffer.
    case `guard`
  }

  /// An occupied range.
  package struct Node: Equatable, Sendable {
    /// The addresses.
    package var range: IOVARange
    /// What it stands for.
    package var kind: Kind
    /// The user's 64 bits: the virtual address of the mapped memory.
    package var tag: UInt64
    /// The user's further 32 bits.
    package var auxiliary: UInt32

    package init(range: IOVARange, kind: Kind, tag: UInt64 = 0, auxiliary: UInt32 = 0) {
      (self.range, self.kind, self.tag, self.auxiliary) = (range, kind, tag, auxiliary)
    }
    package var start: IOVA { range.start }
    package var byteCount: UInt64 { range.byteCount }
  }

  /// Which of the fitting addresses is chosen.
  package enum Direction: Sendable {
    /// The highest, as Linux does.
    case topDown
    /// The lowest.
    case bottomUp
  }

  /// What a range must satisfy.
  package struct Request: Sendable {
    /// The length in bytes: a multiple of the granule, not 0.
    package var byteCount: UInt64
    /// The start is a multiple of it; `nil` stands for the length rounded up to a power of two, as in Linux.
    package var alignment: PageSize?
    /// The highest address that may be used, inside.
    package var limit: UInt64
    /// The lowest address that may be used.
    package var lowest: UInt64
    /// The range must not cross a multiple of it.
    package var boundary: PageSize?
    /// Which of the fitting addresses is chosen.
    package var direction: Direction

    package init(
      byteCount: UInt64, alignment: PageSize? = nil, limit: UInt64 = .max, lowest: UInt64 = 0,
      boundary: PageSize? = nil, direction: Direction = .topDown
    ) {
      self.byteCount = byteCount
      self.alignment = alignment
      self.limit = limit
      self.lowest = lowest
      self.boundary = boundary
      self.direction = direction
    }
  }

  /// The smallest unit of the space.
  package let granule: PageSize
  private let nodes = Naive()

  package init(usable: IOVARanges, granule: PageSize) throws(RangeStoreFailure) {
    self.granule = granule
    nodes.usable = usable.trimmed(to: granule)
  }
}

private final class Naive {
  var usable: IOVARanges = []
  var live: [RangeStore.Node] = []
}

/// Why the store refused.
package enum RangeStoreFailure: Error, Hashable, Sendable {
  /// A length of 0.
  case empty
  /// An address or a length that is no multiple of the granule.
  case unaligned
  /// The range passes the top of the 64-bit space.
  case overflow
  /// A boundary that is smaller than the range.
  case boundaryTooSmall
  /// A granule that the store cannot count in.
  case granuleTooSmall
  /// The range, or a part of it, is not usable in this space.
  case outsideAperture(IOVARange)
  /// The range passes the highest address that may be used.
  case aboveLimit(limit: UInt64)
  /// The range overlaps a reservation or a guard.
  case reserved(IOVARange)
  /// The range overlaps an allocation or a fixed address.
  case occupied(IOVARange)
  /// Nothing fits: no free range satisfies the request.
  case noSpace
  /// Nothing was found: no free range surely satisfies the request and the candidates searched did not.
  case fragmented
  /// An interval that is already there.
  case duplicate
  /// No memory for the store's own nodes.
  case outOfMemory
}

extension RangeStore {
  /// Chooses an address and occupies the range.
  package func allocate(
    _ request: Request, kind: Kind = .allocation, tag: UInt64 = 0, auxiliary: UInt32 = 0
  ) throws(RangeStoreFailure) -> IOVA {
    guard request.byteCount != 0 else { throw .empty }
    guard granule.isAligned(request.byteCount) else { throw .unaligned }
    if let boundary = request.boundary, boundary.byteCount < request.byteCount { throw .boundaryTooSmall }
    guard let alignment = request.alignment ?? PageSize(fitting: request.byteCount) else { throw .noSpace }
    let step = max(alignment, granule).byteCount
    let occupied = IOVARanges(nodes.live.map(\.range))
    guard let window = IOVARange(start: IOVA(request.lowest), last: IOVA(request.limit)) else {
      throw .noSpace
    }
    let free = nodes.usable.intersection([window]).subtracting(occupied)
    for range in request.direction == .topDown ? Array(free.reversed()) : Array(free) {
      guard range.byteCount >= request.byteCount else { continue }
      var start = (range.last.rawValue - (request.byteCount - 1)) & ~(step - 1)
      if request.direction == .bottomUp {
        guard let up = PageSize(byteCount: step)!.alignedUp(range.start.rawValue) else { continue }
        start = up
      }
      guard let found = IOVARange(start: IOVA(start), byteCount: request.byteCount), range.contains(found)
      else { continue }
      try insert(Node(range: found, kind: kind, tag: tag, auxiliary: auxiliary))
      return found.start
    }
    throw .noSpace
  }

  /// Occupies a range whose address the caller chose.
  package func insert(_ node: Node, limit: UInt64 = .max) throws(RangeStoreFailure) {
    let range = node.range
    guard granule.isAligned(range.start.rawValue), granule.isAligned(range.last.rawValue &+ 1) else {
      throw .unaligned
    }
    guard range.last.rawValue <= limit else { throw .aboveLimit(limit: limit) }
    guard nodes.usable.contains(range) else { throw .outsideAperture(range) }
    if let other = find(overlapping: range) {
      throw other.kind == .reservation || other.kind == .guard
        ? .reserved(other.range) : .occupied(other.range)
    }
    let index = nodes.live.firstIndex { $0.start > range.start } ?? nodes.live.count
    nodes.live.insert(node, at: index)
  }

  /// Reserves every granule that has an address of the range in it.
  package func reserve(_ range: IOVARange, tag: UInt64 = 0) throws(RangeStoreFailure) {
    try insert(Node(range: range.widened(to: granule), kind: .reservation, tag: tag))
  }

  /// Lifts a reservation; `false` when there is none of exactly these addresses.
  package func unreserve(_ range: IOVARange) -> Bool {
    let range = range.widened(to: granule)
    guard let node = find(containing: range.start), node.range == range, node.kind == .reservation else {
      return false
    }
    return remove(range.start) != nil
  }

  /// Frees the node that starts at an address and returns it; `nil` when none does.
  @discardableResult
  package func remove(_ start: IOVA) -> Node? {
    guard let index = nodes.live.firstIndex(where: { $0.start == start }) else { return nil }
    return nodes.live.remove(at: index)
  }

  /// The node that an address lies in.
  package func find(containing address: IOVA) -> Node? { nodes.live.first { $0.range.contains(address) } }

  /// The lowest node that a range overlaps.
  package func find(overlapping range: IOVARange) -> Node? { nodes.live.first { $0.range.overlaps(range) } }

  /// The lowest node that starts at an address or above.
  package func next(from address: IOVA) -> Node? { nodes.live.first { $0.start >= address } }

  /// Calls a function with every node, from the lowest.
  package func forEach(_ body: (Node) -> Void) { nodes.live.forEach(body) }

  /// The number of nodes.
  package var count: Int { nodes.live.count }

  /// The bytes that all nodes occupy.
  package var byteCount: UInt64 { nodes.live.reduce(0) { $0 + $1.byteCount } }
}
