package import IOMMU
import Synchronization

/// What is done around each invalidation that the process sends: what another thread, or a device, might do at that moment, and
/// what a library that is wrong would have sent.
package struct InvalidationHook: Sendable {
  /// Has the commands as words and may change them. Without any left, the call is reported as done and not made.
  package var before: @Sendable (inout [UInt64]) -> Void
  /// The invalidation is complete, and the library does not know it yet.
  package var after: @Sendable () -> Void

  package init(before: @escaping @Sendable (inout [UInt64]) -> Void, after: @escaping @Sendable () -> Void = {}) {
    (self.before, self.after) = (before, after)
  }
}

extension FaultingKernel {
  /// Calls the hook around each invalidation from now on; nil ends it. What the hook itself has sent goes through the hook as well.
  package func hookInvalidations(_ hook: InvalidationHook?) { plan.withLock { $0.invalidationHook = hook } }

  /// Changes what hardware says of itself, as if it could do less.
  package func changeHardware(_ change: @escaping @Sendable (inout HardwareInfo) -> Void) {
    plan.withLock { $0.hardwareChange = change }
  }

  /// Has an SMMUv3 say that it knows no commands for ranges: `IDR3.RIL` reads as zero.
  package func hideRangeInvalidation() {
    // Flags and a reserved word stand before IDR0.
    changeHardware { info in if info.type == 2, info.data.count > 21 { info.data[21] &= ~4 } }
  }

  func invalidate(
    _ iommufd: Int32, _ pageTable: UInt32, type: UInt32, _ entries: UnsafeRawBufferPointer, byteCount: Int,
    around hook: InvalidationHook
  ) throws(Errno) -> Int {
    let count = byteCount > 0 ? entries.count / byteCount : 0
    var words = (0..<entries.count / 8).map { unsafe entries.loadUnaligned(fromByteOffset: $0 * 8, as: UInt64.self) }
    hook.before(&words)
    if !words.isEmpty {
      let sent: Result<Int, Errno> = unsafe words.withUnsafeBytes { bytes in
        do throws(Errno) {
          return .success(
            try unsafe base.hwptInvalidate(
              iommufd, pageTable: pageTable, type: type, entries: bytes, byteCount: byteCount))
        } catch { return .failure(error) }
      }
      guard try sent.get() == words.count * 8 / max(byteCount, 1) else { return 0 }
    }
    hook.after()
    return count
  }
}
