/// A set of addresses, kept as sorted ranges that neither overlap nor touch.
///
/// The usable part of an address space is computed with it: what the kernel reports, within the device's
/// mask, less the reserved regions and page 0.
public struct IOVARanges: Hashable, Sendable {
  private var ranges: [IOVARange]

  /// The union of some ranges, in any order.
  ///
  /// - Complexity: O(n log n).
  public init(_ ranges: some Sequence<IOVARange>) {
    self.ranges = []
    for range in ranges.sorted(by: { $0.start < $1.start }) { append(range) }
  }

  /// Adds a range that starts no lower than any before it.
  private mutating func append(_ range: IOVARange) {
    guard let previous = ranges.last, touches(previous, range) else { return ranges.append(range) }
    ranges[ranges.count - 1] = IOVARange(
      unchecked: previous.start.rawValue, Swift.max(previous.last, range.last).rawValue)
  }

  /// Whether a range starts within a lower one or right behind it.
  private func touches(_ lower: IOVARange, _ range: IOVARange) -> Bool {
    lower.last.rawValue == .max || range.start.rawValue <= lower.last.rawValue + 1
  }
}

extension IOVARanges: RandomAccessCollection {
  /// The position of the lowest range.
  public var startIndex: Int { ranges.startIndex }
  /// The position behind the highest range.
  public var endIndex: Int { ranges.endIndex }
  /// A range, counted from the lowest.
  public subscript(position: Int) -> IOVARange { ranges[position] }
}

extension IOVARanges: ExpressibleByArrayLiteral {
  /// The union of some ranges, in any order.
  public init(arrayLiteral ranges: IOVARange...) { self.init(ranges) }
}

// MARK: - Set algebra

extension IOVARanges {
  /// The addresses in either set.
  ///
  /// - Complexity: O(n log n).
  public func union(_ other: IOVARanges) -> IOVARanges { IOVARanges(ranges + other.ranges) }

  /// The addresses in both sets.
  ///
  /// - Complexity: O(n + m).
  public func intersection(_ other: IOVARanges) -> IOVARanges {
    var result = IOVARanges([])
    var (left, right) = (0, 0)
    while left < count && right < other.count {
      if let common = self[left].intersection(other[right]) { result.append(common) }
      if self[left].last < other[right].last { left += 1 } else { right += 1 }
    }
    return result
  }

  /// The addresses that are not in the set.
  ///
  /// - Complexity: O(n).
  public var complement: IOVARanges {
    var result = IOVARanges([])
    var free: UInt64? = 0
    for range in ranges {
      if let first = free, first < range.start.rawValue {
        result.append(IOVARange(unchecked: first, range.start.rawValue - 1))
      }
      free = range.last.rawValue == .max ? nil : range.last.rawValue + 1
    }
    if let first = free { result.append(IOVARange(unchecked: first, .max)) }
    return result
  }

  /// The addresses of this set that are not in another.
  ///
  /// - Complexity: O(n + m).
  public func subtracting(_ other: IOVARanges) -> IOVARanges { intersection(other.complement) }

  /// The part that lies in whole pages: each range is trimmed inwards.
  ///
  /// - Complexity: O(n).
  public func trimmed(to granule: PageSize) -> IOVARanges {
    IOVARanges(ranges.compactMap { $0.trimmed(to: granule) })
  }

  /// All pages that have an address of the set in them: each range is widened outwards.
  ///
  /// - Complexity: O(n).
  public func widened(to granule: PageSize) -> IOVARanges {
    IOVARanges(ranges.map { $0.widened(to: granule) })
  }

  /// Whether a range lies wholly inside the set.
  ///
  /// - Complexity: O(n).
  public func contains(_ range: IOVARange) -> Bool { ranges.contains { $0.contains(range) } }
}

extension IOVARanges: CustomStringConvertible {
  /// The ranges from the lowest, as in `[0x1000–0x1fff, 0x4000–0xffff]`.
  public var description: String { "[" + ranges.map(\.description).joined(separator: ", ") + "]" }
}
