/// Finds a mapping by the virtual address of its memory. Intervals may overlap, and the same memory may
/// be mapped several times at different addresses.
package struct IntervalIndex: ~Copyable, @unchecked Sendable {
  /// A piece of the process's memory and where a device sees it.
  package struct Interval: Equatable, Sendable {
    /// The virtual address of the first byte.
    package var start: UInt64
    /// The length in bytes, not 0.
    package var byteCount: UInt64
    /// Where a device sees the first byte.
    package var address: IOVA

    package init(start: UInt64, byteCount: UInt64, address: IOVA) {
      (self.start, self.byteCount, self.address) = (start, byteCount, address)
    }
  }

  private final class Naive { var intervals: [Interval] = [] }
  private let naive = Naive()

  package init() {}

  /// Adds an interval. Fails with `empty`, `overflow`, `duplicate` or `outOfMemory`.
  package func insert(_ interval: Interval) throws(RangeStoreFailure) {
    guard interval.byteCount != 0 else { throw .empty }
    guard interval.start &+ (interval.byteCount - 1) >= interval.start else { throw .overflow }
    guard !naive.intervals.contains(where: { $0.start == interval.start && $0.address == interval.address })
    else { throw .duplicate }
    naive.intervals.append(interval)
  }

  /// Removes the interval of a virtual address and an address of the device; `nil` when there is none.
  @discardableResult
  package func remove(start: UInt64, address: IOVA) -> Interval? {
    guard let index = naive.intervals.firstIndex(where: { $0.start == start && $0.address == address }) else {
      return nil
    }
    return naive.intervals.remove(at: index)
  }

  /// An interval that `byteCount` bytes from a virtual address lie wholly inside: of several the one that starts
  /// highest, of those the one with the highest device address. `nil` when there is none.
  package func find(containing start: UInt64, byteCount: UInt64 = 1) -> Interval? {
    naive.intervals.filter {
      $0.start <= start && byteCount <= $0.byteCount && start - $0.start <= $0.byteCount - byteCount
    }.max { ($0.start, $0.address) < ($1.start, $1.address) }
  }

  /// The number of intervals.
  package var count: Int { naive.intervals.count }
}
