import Synchronization

/// A long piece of memory that is mapped or unmapped an area at a time, on one thread or several.
///
/// Areas are taken in order, so that what is done when somebody stops it is one piece from the start on. No call into the
/// translation is under way between two areas, so that closing the domain waits for none of the rest, and `isCancelled` may do
/// whatever it likes, close the device too.
final class BulkWork: Sendable {
  private let byteCount: UInt64
  private let next = Atomic<UInt64>(0)
  private let failures = Mutex<[(offset: UInt64, failure: MapFailure)]>([])

  /// Runs `step` with each area's offset and length on so many threads, until all are done, one has failed, or
  /// `isCancelled` says so, which is asked before each. A step that finds the domain closed answers ``MapFailure/closed``.
  init(
    byteCount: UInt64, threads: Int, isCancelled: @escaping @Sendable () -> Bool,
    step: @escaping @Sendable (_ offset: UInt64, _ byteCount: UInt64) -> MapFailure?
  ) {
    self.byteCount = byteCount
    let areas = (byteCount - 1) / Self.area + 1
    WorkerThreads.run(Int(min(UInt64(max(threads, 1)), areas))) { [self] in
      while failures.withLock({ $0.isEmpty }), !isCancelled(), let (offset, length) = take() {
        if let failure = step(offset, length) { failures.withLock { $0.append((offset, failure)) } }
      }
    }
  }

  private static let area = UInt64(Limits.areaByteCount)

  private func take() -> (offset: UInt64, byteCount: UInt64)? {
    let offset = next.wrappingAdd(Self.area, ordering: .relaxed).oldValue
    return offset < byteCount ? (offset, min(Self.area, byteCount - offset)) : nil
  }

  /// Bytes from the start on whose areas were tried.
  var tried: UInt64 { min(next.load(ordering: .acquiring), byteCount) }
  /// The areas that were tried without success.
  var failed: [(offset: UInt64, failure: MapFailure)] { failures.withLock { $0 } }
  /// What failed first, or that the domain was closed under it: then it does not matter what failed.
  var failure: MapFailure? { (failed.first(where: \.failure.isClosed) ?? failed.first)?.failure }
  /// How many calls were made: all areas that were tried, but for those that found the domain closed.
  var calls: UInt64 {
    let areas = tried == 0 ? 0 : (tried - 1) / Self.area + 1
    return areas - UInt64(failed.count(where: \.failure.isClosed))
  }
  /// The areas that were tried with success, and their bytes.
  var done: [(offset: UInt64, byteCount: UInt64)] {
    let failed = Set(failed.map(\.offset))
    return stride(from: 0, to: tried, by: UInt64.Stride(Self.area)).filter { !failed.contains($0) }
      .map { ($0, min(Self.area, byteCount - $0)) }
  }
  var doneByteCount: UInt64 { done.reduce(0) { $0 + $1.byteCount } }
}
