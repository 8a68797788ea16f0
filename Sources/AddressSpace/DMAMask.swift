/// How many address bits a device drives: the addresses that it can reach are 0…``limit``.
///
/// The corresponding kernel macro is `DMA_BIT_MASK(n)`.
@frozen
public struct DMAMask: Hashable, Comparable, Sendable {
  /// The number of address bits, 1…64.
  public let bitCount: Int

  /// A mask of 1…64 bits; `nil` for any other number.
  @inlinable public init?(bitCount: Int) {
    guard (1...64).contains(bitCount) else { return nil }
    self.bitCount = bitCount
  }

  /// A mask of a number of bits that the program's author knows. Traps unless it is 1…64; a number that
  /// comes from elsewhere goes through ``init(bitCount:)``.
  @inlinable public static func bits(_ count: Int) -> DMAMask {
    guard let mask = DMAMask(bitCount: count) else { preconditionFailure("a DMA mask has 1…64 bits") }
    return mask
  }

  /// The highest address that the device can reach.
  @inlinable public var limit: UInt64 { .max >> UInt64(64 - bitCount) }

  /// The addresses that the device can reach.
  @inlinable public var range: IOVARange { IOVARange(unchecked: 0, limit) }

  /// Whether the first mask reaches less far.
  @inlinable public static func < (left: DMAMask, right: DMAMask) -> Bool { left.bitCount < right.bitCount }
}

extension DMAMask: CustomStringConvertible {
  /// The number of bits, as in `32 bits`.
  public var description: String { "\(bitCount) \(bitCount == 1 ? "bit" : "bits")" }
}
