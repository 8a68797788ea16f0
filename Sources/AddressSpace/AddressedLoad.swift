public import Synchronization

extension Atomic where Value.AtomicRepresentation == UInt64.AtomicRepresentation {
  /// Loads what says where something is, and nothing else: a pointer, or the number of an element.
  ///
  /// What is read there was written before: no processor that Linux runs on reads through an address that it has not loaded yet, so
  /// that a load which acquires, and on Arm holds up every load behind it, would be for nothing. The caller must go on to what it found
  /// by that address, and not by another that happens to be the same. (The kernel's `READ_ONCE` with an address dependency,
  /// Documentation/memory-barriers.txt.) In debug builds it acquires, as ThreadSanitizer knows of no dependencies.
  @inlinable @inline(__always)
  package borrowing func loadAddress() -> Value {
    #if DEBUG
      load(ordering: .acquiring)
    #else
      load(ordering: .relaxed)
    #endif
  }
}
