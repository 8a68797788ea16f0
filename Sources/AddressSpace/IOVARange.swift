/// A range of I/O virtual addresses that is never empty.
///
/// It keeps its last address rather than its end, so that a range up to the top of the 64-bit space
/// can be named. The corresponding kernel structure is `struct iommu_iova_range`.
@frozen
public struct IOVARange: Hashable, Sendable {
  /// The first address.
  public let start: IOVA
  /// The last address, inside the range.
  public let last: IOVA

  /// The range from one address to another, both inside; `nil` when they are in the wrong order.
  @inlinable public init?(start: IOVA, last: IOVA) {
    guard start <= last else { return nil }
    self.start = start
    self.last = last
  }

  /// The range of `byteCount` bytes from an address; `nil` when that is none or passes the top of the
  /// 64-bit space.
  @inlinable public init?(start: IOVA, byteCount: UInt64) {
    guard byteCount != 0 else { return nil }
    let (last, overflow) = start.rawValue.addingReportingOverflow(byteCount - 1)
    guard !overflow else { return nil }
    self.start = start
    self.last = IOVA(last)
  }

  /// For callers that have proved `start <= last`.
  @inlinable init(unchecked start: UInt64, _ last: UInt64) {
    assert(start <= last)
    self.start = IOVA(start)
    self.last = IOVA(last)
  }

  /// The whole 64-bit space.
  @inlinable public static var full: IOVARange { IOVARange(unchecked: 0, .max) }

  /// The length in bytes. The one range whose length does not fit 64 bits, ``full``, reports `UInt64.max`,
  /// one byte less than it has.
  @inlinable public var byteCount: UInt64 {
    let distance = last.rawValue - start.rawValue
    return distance == .max ? .max : distance + 1
  }
}

// MARK: - Relations

extension IOVARange {
  /// Whether an address lies inside.
  @inlinable public func contains(_ address: IOVA) -> Bool { start <= address && address <= last }

  /// Whether another range lies wholly inside.
  @inlinable public func contains(_ other: IOVARange) -> Bool { start <= other.start && other.last <= last }

  /// Whether the two have an address in common.
  @inlinable public func overlaps(_ other: IOVARange) -> Bool { start <= other.last && other.start <= last }

  /// What the two have in common; `nil` when that is nothing.
  @inlinable public func intersection(_ other: IOVARange) -> IOVARange? {
    IOVARange(start: Swift.max(start, other.start), last: Swift.min(last, other.last))
  }

  /// The pages that lie wholly inside; `nil` when there is none.
  @inlinable public func trimmed(to granule: PageSize) -> IOVARange? {
    guard let first = granule.alignedUp(start.rawValue) else { return nil }
    var end = last.rawValue
    if end & granule.mask != granule.mask {
      end = granule.alignedDown(end)
      guard end != 0 else { return nil }
      end -= 1
    }
    return IOVARange(start: IOVA(first), last: IOVA(end))
  }

  /// The pages that have an address of the range in them.
  @inlinable public func widened(to granule: PageSize) -> IOVARange {
    IOVARange(unchecked: granule.alignedDown(start.rawValue), last.rawValue | granule.mask)
  }
}

extension IOVARange: CustomStringConvertible {
  /// Both addresses, as in `0x1000–0x1fff`.
  public var description: String { "\(start)–\(last)" }
}
