import AddressSpace
import Synchronization

/// Below 4 GiB first, until that failed once: what a domain does for a device that drives more address bits.
final class SACFirst: Sendable {
  let limit: UInt64
  private let isTripped: Atomic<Bool>

  init(limit: UInt64) {
    self.limit = limit
    isTripped = Atomic(limit <= UInt64(UInt32.max))
  }

  @inline(__always)
  func allocate(
    _ allocator: borrowing AddressAllocator, _ byteCount: UInt64
  ) throws(RangeStoreFailure) -> IOVA {
    if !isTripped.load(ordering: .relaxed) {
      if let start = try? allocator.allocate(byteCount: byteCount, limit: UInt64(UInt32.max), mayEmptyCaches: false) {
        return start
      }
      isTripped.store(true, ordering: .relaxed)
    }
    return try allocator.allocate(byteCount: byteCount, limit: limit, mayEmptyCaches: true)
  }
}
