import AddressSpace
import Synchronization

/// What takes the kernel longer than one call may: mapped and unmapped an area at a time.
///
/// An area is mapped by one call and unmapped by one: a container refuses to unmap part of what was mapped at once. So whoever
/// unmaps cuts a range where it was cut when it was mapped, on multiples of an area's length from its start on.
///
/// Closing the domain takes everything out of reach at once, and waits for the calls that are under way: these functions
/// stop between two areas then, and who has called them leaves, and waits for the close to be done.
extension DomainCore {
  /// The most that one call maps or unmaps of a single range, in bytes. Where this process owns the page tables, mapping the
  /// library's own memory is no call, and unmapping it one invalidation however long it is.
  var callByteCount: UInt64 { callsEach == 0 ? .max : UInt64(Limits.areaByteCount) }

  /// Maps memory at addresses that are taken. After a failure nothing of it is mapped, or it is ``MapFailure/stuck(_:)``, or the
  /// domain ends: ``MapFailure/closed``.
  ///
  /// - Precondition: The caller has entered.
  func mapInAreas(
    _ iova: UInt64, host: UInt64, _ byteCount: UInt64, _ access: DMAAccess
  ) -> (failure: MapFailure?, calls: UInt64) {
    var done: UInt64 = 0, calls: UInt64 = 0
    while done < byteCount {
      if done > 0, isClosed.load(ordering: .relaxed) { return (.closed, calls) }
      let length = min(callByteCount, byteCount - done)
      calls += 1
      do throws(Errno) {
        try mapMakingRoom(iova: iova + done, address: host + done, byteCount: length, access: access)
      } catch {
        let back = unmapInAreas(iova, done)
        return (Self.failure(error, takenBack: back.failure), calls + back.calls)
      }
      done += length
    }
    return (nil, calls)
  }

  /// What became of a map of several calls one of which failed.
  static func failure(_ errno: Errno, takenBack failure: MapFailure?) -> MapFailure {
    switch failure {
    case nil: .system(errno)
    case .closed?: .closed
    default: .stuck(errno)
    }
  }

  /// Unmaps what ``mapInAreas(_:host:_:_:)`` mapped, or its first bytes, from `start` on, which is on a cut; how far it got.
  ///
  /// - Precondition: The caller has entered.
  func unmapInAreas(
    _ iova: UInt64, _ byteCount: UInt64, from start: UInt64 = 0
  ) -> (failure: MapFailure?, done: UInt64, calls: UInt64) {
    var done = start, calls: UInt64 = 0
    while done < byteCount {
      if done > start, isClosed.load(ordering: .relaxed) { return (.closed, done, calls) }
      let length = min(callByteCount, byteCount - done)
      calls += 1
      do throws(Errno) {
        let unmapped = try translation.unmap(iova: iova + done, byteCount: length)
        if unmapped != length { return (.mismatch(unmapped), done, calls) }
      } catch { return (.system(error), done, calls) }
      done += length
    }
    return (nil, done, calls)
  }

  /// Ends a mapping of several areas.
  @inline(never)
  func unmapLarge(_ iova: IOVA, _ length: UInt64) -> Result<UInt64, MapFailure> {
    guard enter() else { return unmapClosed(iova, length) }
    let (failure, _, calls) = unmapInAreas(iova.rawValue, length)
    locked { state in
      state.statistics.systemCalls &+= callsEach &* calls
      if failure == nil { state.unmapped(iova, byteCount: length, systemCalls: 0) }
    }
    leave()
    switch failure {
    case nil: return .success(0)
    case .closed?: return unmapClosed(iova, length)
    case let reason?:
      // ``leaked(_:_:_:_:)`` counts the one that failed.
      locked { $0.statistics.systemCalls &-= callsEach }
      return .failure(reason)
    }
  }
}
