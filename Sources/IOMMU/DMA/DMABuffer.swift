/// Streaming memory that the CPU owns and that a device may be given.
///
/// Comes from ``DMADomain/buffer(byteCount:)``, goes to the device by ``DMADomain/map(_:_:)-(DMABuffer,_)``, which consumes it, and
/// comes back from ``Mapping/unmap()``: touching memory that the device owns does not compile. Pages are the buffer's
/// alone, so that nothing else comes within the device's reach; the rest of the last page is zero when the buffer is made.
///
/// The buffer's own bytes are not cleared when its memory was used before: they are what an earlier buffer of the same
/// domain left. Store all of them before a device reads that must not see those.
@safe
public struct DMABuffer: ~Copyable, @unchecked Sendable {
  let core: Unmanaged<DomainCore>
  @usableFromInline let base: UnsafeMutableRawPointer
  /// The length asked for, in bytes.
  public let byteCount: Int
  /// The memory is within a device's reach until ``FlushQueue/finished`` has reached this number; for good with the highest,
  /// which is counted as leaked already.
  var reachableUntil: UInt64

  /// Takes over a reference to `core` and the memory.
  init(core: Unmanaged<DomainCore>, base: UnsafeMutableRawPointer, byteCount: Int, reachableUntil: UInt64 = 0) {
    self.reachableUntil = reachableUntil
    unsafe self.core = core
    unsafe self.base = base
    self.byteCount = byteCount
  }

  deinit { unsafe DomainCore.freeBuffer(core, base, byteCount, after: reachableUntil) }

  /// Stores a value's bytes at an offset in bytes.
  ///
  /// - Precondition: The value lies within the buffer.
  @inlinable
  public mutating func store<Value: BitwiseCopyable>(_ value: Value, at offset: Int = 0) {
    precondition(offset >= 0 && offset <= byteCount - MemoryLayout<Value>.size, "store outside of the buffer")
    unsafe base.storeBytes(of: value, toByteOffset: offset, as: Value.self)
  }

  /// Loads a value from its bytes at an offset in bytes, aligned or not.
  ///
  /// - Precondition: The value lies within the buffer.
  @inlinable
  public func load<Value: BitwiseCopyable>(at offset: Int = 0, as type: Value.Type) -> Value {
    precondition(offset >= 0 && offset <= byteCount - MemoryLayout<Value>.size, "load outside of the buffer")
    return unsafe base.loadUnaligned(fromByteOffset: offset, as: Value.self)
  }

  /// The bytes, to read.
  public var bytes: RawSpan {
    @_lifetime(borrow self) get {
      unsafe _overrideLifetime(RawSpan(_unsafeStart: base, byteCount: byteCount), borrowing: self)
    }
  }

  /// The bytes, to read and write.
  public var mutableBytes: MutableRawSpan {
    @_lifetime(&self) mutating get {
      unsafe _overrideLifetime(MutableRawSpan(_unsafeStart: base, byteCount: byteCount), mutating: &self)
    }
  }

  /// Hands the memory and the reference to the caller.
  @inline(__always)
  consuming func take() -> (core: Unmanaged<DomainCore>, base: UnsafeMutableRawPointer) {
    let parts = unsafe (core, base)
    discard self
    return unsafe parts
  }
}
