import CIOMMU

/// A width in which a register is read or written: `UInt8`, `UInt16`, `UInt32`, `UInt64`.
///
/// The four conform; conforming others is of no use. It makes ``Registers/load(at:as:)`` and its siblings one function
/// for all widths, with one access of exactly that width behind each.
public protocol RegisterWord: FixedWidthInteger, UnsignedInteger, Sendable {
  /// Reads a register; behind ``Registers/load(at:as:)``.
  static func _load(_ registers: Registers, at offset: Int, relaxed: Bool) -> Self
  /// Writes a register; behind ``Registers/store(_:at:)``.
  static func _store(_ value: Self, _ registers: Registers, at offset: Int, relaxed: Bool)
}

extension UInt8: RegisterWord {
  /// Reads an 8-bit register. The corresponding kernel calls are `readb` and `readb_relaxed`.
  public static func _load(_ registers: Registers, at offset: Int, relaxed: Bool) -> UInt8 {
    registers.read(at: offset, relaxed: relaxed)
  }
  /// Writes an 8-bit register. The corresponding kernel calls are `writeb` and `writeb_relaxed`.
  public static func _store(_ value: UInt8, _ registers: Registers, at offset: Int, relaxed: Bool) {
    registers.write(value, at: offset, relaxed: relaxed)
  }
}

extension UInt16: RegisterWord {
  /// Reads a 16-bit register. The corresponding kernel calls are `readw` and `readw_relaxed`.
  public static func _load(_ registers: Registers, at offset: Int, relaxed: Bool) -> UInt16 {
    registers.read(at: offset, relaxed: relaxed)
  }
  /// Writes a 16-bit register. The corresponding kernel calls are `writew` and `writew_relaxed`.
  public static func _store(_ value: UInt16, _ registers: Registers, at offset: Int, relaxed: Bool) {
    registers.write(value, at: offset, relaxed: relaxed)
  }
}

extension UInt32: RegisterWord {
  /// Reads a 32-bit register. The corresponding kernel calls are `readl` and `readl_relaxed`.
  public static func _load(_ registers: Registers, at offset: Int, relaxed: Bool) -> UInt32 {
    registers.read(at: offset, relaxed: relaxed)
  }
  /// Writes a 32-bit register. The corresponding kernel calls are `writel` and `writel_relaxed`.
  public static func _store(_ value: UInt32, _ registers: Registers, at offset: Int, relaxed: Bool) {
    registers.write(value, at: offset, relaxed: relaxed)
  }
}

extension UInt64: RegisterWord {
  /// Reads a 64-bit register. The corresponding kernel calls are `readq` and `readq_relaxed`.
  public static func _load(_ registers: Registers, at offset: Int, relaxed: Bool) -> UInt64 {
    registers.read(at: offset, relaxed: relaxed)
  }
  /// Writes a 64-bit register. The corresponding kernel calls are `writeq` and `writeq_relaxed`.
  public static func _store(_ value: UInt64, _ registers: Registers, at offset: Int, relaxed: Bool) {
    registers.write(value, at: offset, relaxed: relaxed)
  }
}

// MARK: - Mapped registers

/// One volatile access of exactly the word's width. Ordered: a load before later ones, a store after earlier ones.
protocol VolatileWord: RegisterWord {
  static func volatileLoad(_ address: UnsafeRawPointer, relaxed: Bool) -> Self
  static func volatileStore(_ value: Self, _ address: UnsafeMutableRawPointer, relaxed: Bool)
}

extension UInt8: VolatileWord {
  @inline(__always) static func volatileLoad(_ address: UnsafeRawPointer, relaxed: Bool) -> UInt8 {
    unsafe relaxed ? ci_mmio_load8_relaxed(address) : ci_mmio_load8(address)
  }
  @inline(__always) static func volatileStore(
    _ value: UInt8, _ address: UnsafeMutableRawPointer, relaxed: Bool
  ) {
    unsafe relaxed ? ci_mmio_store8_relaxed(address, value) : ci_mmio_store8(address, value)
  }
}

extension UInt16: VolatileWord {
  @inline(__always) static func volatileLoad(_ address: UnsafeRawPointer, relaxed: Bool) -> UInt16 {
    unsafe relaxed ? ci_mmio_load16_relaxed(address) : ci_mmio_load16(address)
  }
  @inline(__always) static func volatileStore(
    _ value: UInt16, _ address: UnsafeMutableRawPointer, relaxed: Bool
  ) {
    unsafe relaxed ? ci_mmio_store16_relaxed(address, value) : ci_mmio_store16(address, value)
  }
}

extension UInt32: VolatileWord {
  @inline(__always) static func volatileLoad(_ address: UnsafeRawPointer, relaxed: Bool) -> UInt32 {
    unsafe relaxed ? ci_mmio_load32_relaxed(address) : ci_mmio_load32(address)
  }
  @inline(__always) static func volatileStore(
    _ value: UInt32, _ address: UnsafeMutableRawPointer, relaxed: Bool
  ) {
    unsafe relaxed ? ci_mmio_store32_relaxed(address, value) : ci_mmio_store32(address, value)
  }
}

extension UInt64: VolatileWord {
  @inline(__always) static func volatileLoad(_ address: UnsafeRawPointer, relaxed: Bool) -> UInt64 {
    unsafe relaxed ? ci_mmio_load64_relaxed(address) : ci_mmio_load64(address)
  }
  @inline(__always) static func volatileStore(
    _ value: UInt64, _ address: UnsafeMutableRawPointer, relaxed: Bool
  ) {
    unsafe relaxed ? ci_mmio_store64_relaxed(address, value) : ci_mmio_store64(address, value)
  }
}
