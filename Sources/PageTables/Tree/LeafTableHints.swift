public import AddressSpace
public import Synchronization

/// Where the lowest tables of some regions are, so that a call there need not walk down to them.
///
/// A word for each of 64 sets of regions: the last one that was walked to, and its table's number in the pool, so that both are read
/// at once. Only who owns part of a region asks and notes, and only who owns all of it unlinks its table, and has it forgotten
/// before the region is anybody else's: so what is found is linked.
@safe
@usableFromInline
struct LeafTableHints: BitwiseCopyable, @unchecked Sendable {
  @usableFromInline let words: UnsafeMutablePointer<Atomic<UInt64>>
  @usableFromInline static var count: Int { @inlinable @inline(__always) get { 64 } }
  /// The bits of a table's number; above is the region plus one, which no word has that was never noted.
  @usableFromInline static var numberBits: UInt64 { @inlinable @inline(__always) get { 28 } }

  init() {
    unsafe words = .allocate(capacity: Self.count)
    for index in 0..<Self.count { unsafe (words + index).initialize(to: Atomic(0)) }
  }

  /// Once, when nobody asks any more. (Copies are the same hints.)
  func deallocate() {
    unsafe words.deinitialize(count: Self.count)
    unsafe words.deallocate()
  }

  @inlinable @inline(__always)
  func word(_ region: UInt64) -> UnsafeMutablePointer<Atomic<UInt64>> {
    unsafe words + Int(truncatingIfNeeded: region & UInt64(Self.count &- 1))
  }

  /// The number of a region's table; `nil` where it is not known.
  @inlinable @inline(__always)
  func find(_ region: UInt64) -> UInt64? {
    let found = unsafe word(region).pointee.loadAddress()
    return found &>> Self.numberBits == region &+ 1 ? found & (1 &<< Self.numberBits &- 1) : nil
  }

  func note(_ region: UInt64, number: UInt32) {
    unsafe word(region).pointee.store((region + 1) << Self.numberBits | UInt64(number), ordering: .releasing)
  }

  /// The region's table is unlinked.
  func forget(_ region: UInt64) {
    guard find(region) != nil else { return }
    unsafe word(region).pointee.store(0, ordering: .relaxed)
  }
}
