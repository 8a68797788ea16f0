extension Registers {
  /// The 32-bit register at an offset in bytes, a multiple of 4.
  ///
  /// Ordered as ``load(at:as:)`` and ``store(_:at:)``. The corresponding kernel calls are `readl` and `writel`.
  public subscript(offset: Int) -> UInt32 {
    get { read(at: offset, relaxed: false) }
    set { write(newValue, at: offset, relaxed: false) }
  }

  /// Reads a register of 8, 16, 32 or 64 bits at an offset in bytes, a multiple of the width.
  ///
  /// Loads from memory that come later in the program are made later: what the device wrote before it changed this
  /// register is seen. The corresponding kernel calls are `readb` to `readq`.
  @inlinable
  public func load<Word: RegisterWord>(at offset: Int, as type: Word.Type = Word.self) -> Word {
    Word._load(self, at: offset, relaxed: false)
  }

  /// Writes a register of 8, 16, 32 or 64 bits at an offset in bytes, a multiple of the width.
  ///
  /// The device sees all stores to memory that come earlier in the program before this one. The corresponding kernel
  /// calls are `writeb` to `writeq`.
  @inlinable
  public func store<Word: RegisterWord>(_ value: Word, at offset: Int) {
    Word._store(value, self, at: offset, relaxed: false)
  }

  /// Reads a register without an order to memory, only to other accesses to this device.
  ///
  /// For runs of registers that say nothing about memory. The corresponding kernel calls are `readb_relaxed` to
  /// `readq_relaxed`.
  @inlinable
  public func relaxedLoad<Word: RegisterWord>(at offset: Int, as type: Word.Type = Word.self) -> Word {
    Word._load(self, at: offset, relaxed: true)
  }

  /// Writes a register without an order to memory, only to other accesses to this device.
  ///
  /// For runs of registers that refer to no memory; never for a doorbell. The corresponding kernel calls are
  /// `writeb_relaxed` to `writeq_relaxed`.
  @inlinable
  public func relaxedStore<Word: RegisterWord>(_ value: Word, at offset: Int) {
    Word._store(value, self, at: offset, relaxed: true)
  }
}
