import Synchronization

/// Reads of what a driver wrote for hardware, in memory of this process.
enum TableMemory {
  /// A word of a table or descriptor. The driver's threads write while the hardware reads: a load of the whole word, ordered
  /// before the loads that follow from it.
  @inline(__always)
  static func word(_ address: UInt) -> UInt64 {
    unsafe UnsafePointer<Atomic<UInt64>>(bitPattern: address).unsafelyUnwrapped.pointee.load(ordering: .acquiring)
  }

  /// Puts a word in the place of another; false where there is none such any more.
  static func exchange(_ address: UInt, _ old: UInt64, _ new: UInt64) -> Bool {
    let place = unsafe UnsafePointer<Atomic<UInt64>>(bitPattern: address).unsafelyUnwrapped
    return unsafe place.pointee.compareExchange(expected: old, desired: new, ordering: .acquiringAndReleasing).exchanged
  }
}
