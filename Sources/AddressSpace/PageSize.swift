/// A power of two: the size of a page, of a granule, or an alignment, in bytes.
///
/// All arithmetic reports overflow instead of wrapping, because an address that wraps names somebody
/// else's memory.
@frozen
public struct PageSize: Hashable, Comparable, Sendable {
  /// The exponent: the size is 2 to the power of it.
  public let shift: UInt8

  /// The size of 2 to the power of `shift` bytes. Traps unless `shift` is 0…63.
  @inlinable public init(shift: UInt8) {
    precondition(shift < 64, "a page size has a shift of 0…63")
    self.shift = shift
  }

  /// A size in bytes; `nil` unless it is a power of two.
  @inlinable public init?(byteCount: UInt64) {
    guard byteCount != 0, byteCount & (byteCount - 1) == 0 else { return nil }
    shift = UInt8(truncatingIfNeeded: byteCount.trailingZeroBitCount)
  }

  /// The smallest page size in which `byteCount` bytes fit; `nil` above 2⁶³.
  @inlinable public init?(fitting byteCount: UInt64) {
    guard byteCount <= 1 << 63 else { return nil }
    shift = byteCount <= 1 ? 0 : UInt8(truncatingIfNeeded: 64 - (byteCount - 1).leadingZeroBitCount)
  }

  /// 4 KiB, the smallest page of x86-64 and the common one of Arm.
  @inlinable public static var fourKiB: PageSize { PageSize(shift: 12) }

  /// The size in bytes.
  @inlinable public var byteCount: UInt64 { 1 &<< UInt64(shift) }

  /// The bits of an address that lie inside a page.
  @inlinable public var mask: UInt64 { byteCount - 1 }

  /// Whether the first size is the smaller.
  @inlinable public static func < (left: PageSize, right: PageSize) -> Bool { left.shift < right.shift }
}

// MARK: - Arithmetic

extension PageSize {
  /// Whether a number of bytes is a multiple of this size.
  @inlinable public func isAligned(_ value: UInt64) -> Bool { value & mask == 0 }

  /// The highest multiple of this size that is not above `value`.
  @inlinable public func alignedDown(_ value: UInt64) -> UInt64 { value & ~mask }

  /// The lowest multiple of this size that is not below `value`; `nil` when it does not fit 64 bits.
  @inlinable public func alignedUp(_ value: UInt64) -> UInt64? {
    let (sum, overflow) = value.addingReportingOverflow(mask)
    return overflow ? nil : sum & ~mask
  }

  /// How many whole pages cover `byteCount` bytes.
  @inlinable public func pageCount(covering byteCount: UInt64) -> UInt64 {
    (byteCount >> UInt64(shift)) + (isAligned(byteCount) ? 0 : 1)
  }
}

extension PageSize: CustomStringConvertible {
  /// The size with its binary unit, as in `4 KiB`.
  public var description: String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    return "\(1 << (Int(shift) % 10)) \(units[Int(shift) / 10])"
  }
}

/// The page sizes that an IOMMU maps with, as a bitmap: bit *n* stands for pages of 2ⁿ bytes.
///
/// The corresponding kernel field is `pgsize_bitmap` of `struct iommu_domain`.
@frozen
public struct PageSizes: RawRepresentable, Hashable, Sendable {
  /// The bitmap.
  public let rawValue: UInt64

  /// The sizes whose bits are set.
  @inlinable public init(rawValue: UInt64) { self.rawValue = rawValue }

  /// The smallest size, the granule of the address space; `nil` when there is none.
  @inlinable public var smallest: PageSize? {
    rawValue == 0 ? nil : PageSize(shift: UInt8(truncatingIfNeeded: rawValue.trailingZeroBitCount))
  }

  /// The largest size; `nil` when there is none.
  @inlinable public var largest: PageSize? {
    rawValue == 0 ? nil : PageSize(shift: UInt8(truncatingIfNeeded: 63 - rawValue.leadingZeroBitCount))
  }

  /// Whether pages of a size can be mapped.
  @inlinable public func contains(_ size: PageSize) -> Bool { rawValue & size.byteCount != 0 }

  /// The largest page that can map the start of a range: both addresses (already or-ed into `bits`) are
  /// multiples of it and it is no longer than `byteCount`; `nil` when none does.
  @inlinable public func largest(dividing bits: UInt64, atMost byteCount: UInt64) -> PageSize? {
    guard byteCount != 0 else { return nil }
    let divides = bits == 0 ? UInt64.max : bits ^ (bits - 1)
    let fits = UInt64.max >> UInt64(byteCount.leadingZeroBitCount)
    return PageSizes(rawValue: rawValue & divides & fits).largest
  }
}
