package import IOMMU
import Synchronization

/// An invalidation as the process sends it: a call of `IOMMU_HWPT_INVALIDATE`.
package struct InvalidationCall: Sendable {
  /// The nested page table or vIOMMU that it is for, by iommufd's number.
  package var pageTable: UInt32
  /// What its commands are, of ``NestingTypes``.
  package let type: UInt32
  /// The commands as words. Without any left, the call is reported as done and not made.
  package var words: [UInt64]
}

/// What is done around each invalidation that the process sends: what another thread, or a device, might do at that moment, and
/// what a library that is wrong would have sent.
package struct InvalidationHook: Sendable {
  /// Has the call before it is made, and may change it.
  package var before: @Sendable (inout InvalidationCall) -> Void
  /// The invalidation is complete, and the library does not know it yet.
  package var after: @Sendable () -> Void

  package init(before: @escaping @Sendable (inout InvalidationCall) -> Void, after: @escaping @Sendable () -> Void = {})
  {
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
    let words = (0..<entries.count / 8).map { unsafe entries.loadUnaligned(fromByteOffset: $0 * 8, as: UInt64.self) }
    var call = InvalidationCall(pageTable: pageTable, type: type, words: words)
    hook.before(&call)
    if !call.words.isEmpty {
      let sent: Result<Int, Errno> = unsafe call.words.withUnsafeBytes { bytes in
        do throws(Errno) {
          return .success(
            try unsafe base.hwptInvalidate(
              iommufd, pageTable: call.pageTable, type: type, entries: bytes, byteCount: byteCount))
        } catch { return .failure(error) }
      }
      guard try sent.get() == call.words.count * 8 / max(byteCount, 1) else { return 0 }
    }
    hook.after()
    return count
  }
}
