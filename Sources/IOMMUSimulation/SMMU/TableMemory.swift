import Synchronization

/// Reads of what a driver wrote for hardware, in memory of this process.
enum TableMemory {
  /// A word of a table or descriptor. The driver's threads write while the hardware reads: a load of the whole word, ordered
  /// before the loads that follow from it.
  @inline(__always)
  static func word(_ address: UInt) -> UInt64 {
    unsafe UnsafePointer<Atomic<UInt64>>(bitPattern: address).unsafelyUnwrapped.pointee.load(ordering: .acquiring)
  }
}
