/// An I/O virtual address: what a device puts on the bus, before the IOMMU translates it.
///
/// It is a number of its own type so that it is never mistaken for a pointer, a physical address
/// or a length. The corresponding kernel type is `dma_addr_t`.
@frozen
public struct IOVA: RawRepresentable, Hashable, Comparable, Sendable {
  /// The address, in bytes.
  public let rawValue: UInt64

  /// Creates an address from its number.
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// Creates an address from its number.
  @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }

  /// Whether the first address lies below the second.
  @inlinable public static func < (left: IOVA, right: IOVA) -> Bool { left.rawValue < right.rawValue }
}

// MARK: - Distances

extension IOVA {
  /// The address `byteCount` bytes higher, or lower when negative; `nil` where that is no 64-bit address.
  @inlinable public func advanced(by byteCount: Int) -> IOVA? {
    let magnitude = UInt64(byteCount.magnitude)
    let (address, overflow) =
      byteCount < 0
      ? rawValue.subtractingReportingOverflow(magnitude) : rawValue.addingReportingOverflow(magnitude)
    return overflow ? nil : IOVA(address)
  }

  /// The distance in bytes to another address; `nil` when it does not fit an `Int`.
  @inlinable public func distance(to other: IOVA) -> Int? {
    other >= self
      ? Int(exactly: other.rawValue - rawValue) : Int(exactly: rawValue - other.rawValue).map { -$0 }
  }

  /// The address `byteCount` bytes higher. Traps when it is no 64-bit address, as `Int` does.
  @inlinable public static func + (address: IOVA, byteCount: Int) -> IOVA {
    guard let sum = address.advanced(by: byteCount) else { preconditionFailure("IOVA overflow") }
    return sum
  }

  /// The address `byteCount` bytes lower. Traps when it is no 64-bit address, as `Int` does.
  @inlinable public static func - (address: IOVA, byteCount: Int) -> IOVA {
    guard byteCount != .min, let difference = address.advanced(by: -byteCount) else {
      preconditionFailure("IOVA overflow")
    }
    return difference
  }

  /// The distance in bytes from the second address to the first. Traps when it does not fit an `Int`.
  @inlinable public static func - (left: IOVA, right: IOVA) -> Int {
    guard let distance = right.distance(to: left) else { preconditionFailure("distance overflow") }
    return distance
  }
}

// MARK: - Alignment

extension IOVA {
  /// Whether the address is a multiple of a page size.
  @inlinable public func isAligned(to pageSize: PageSize) -> Bool { pageSize.isAligned(rawValue) }

  /// The highest multiple of a page size that is not above the address.
  @inlinable public func alignedDown(to pageSize: PageSize) -> IOVA { IOVA(pageSize.alignedDown(rawValue)) }

  /// The lowest multiple of a page size that is not below the address; `nil` when it is no 64-bit address.
  @inlinable public func alignedUp(to pageSize: PageSize) -> IOVA? {
    pageSize.alignedUp(rawValue).map { IOVA($0) }
  }
}

extension IOVA: CustomStringConvertible {
  /// The address in hexadecimal, as in `0x7f000`.
  public var description: String { "0x" + String(rawValue, radix: 16) }
}
