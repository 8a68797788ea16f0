package import IOMMU
import Synchronization

/// A kernel that fails on purpose: it passes every call to another kernel, counts it, and fails or swallows chosen ones.
///
/// Two uses. *Anomaly tests* fail the first call of an operation, then the second, and so on until the operation
/// completes, and look each time that nothing is left behind. *Negative controls* swallow an unmap, which a test
/// that looks for DMA after unmap must notice.
///
/// Calls that cannot fail (`close`, `unmapMemory`, clocks, limits) are counted by name and never chosen.
package final class FaultingKernel: Kernel {
  package let base: any Kernel
  let plan = Mutex(FaultPlan())

  /// Passes everything to `base` until told otherwise.
  package init(_ base: any Kernel) { self.base = base }

  package var name: String { base.name }
  package var isSimulated: Bool { base.isSimulated }
}

// MARK: - The plan

extension FaultingKernel {
  /// Fails the n-th call from now (1 is the next) with an errno: of all calls that can fail, or of one by name, such as
  /// `ioasMap`. One plan at a time; the failure happens once.
  ///
  /// - Parameter exempt: Names of calls that are neither counted towards n nor failed.
  package func fail(_ n: Int, of name: String? = nil, except exempt: Set<String> = [], with errno: Errno) {
    plan.withLock {
      $0.failure = FaultPlan.Failure(name: name, exempt: exempt, left: n, errno: errno, isForever: false)
    }
  }

  /// Fails the n-th call from now and every one after it.
  package func failFrom(_ n: Int, of name: String? = nil, with errno: Errno) {
    plan.withLock { $0.failure = FaultPlan.Failure(name: name, exempt: [], left: n, errno: errno, isForever: true) }
  }

  /// Reports the n-th unmap from now, or every one when `n` is nil, as done in full, and does not do it.
  package func swallowUnmap(_ n: Int? = nil) { plan.withLock { $0.unmaps.left = .some(n ?? 0) } }

  /// Has the next unmap of something fail after its first area, which is gone then.
  package func failUnmapHalfway(with errno: Errno) { plan.withLock { $0.halfway = errno } }

  /// Reports the n-th invalidation that the process sends from now, or every one when `n` is nil, as done, and does not send
  /// it: all the commands of that call.
  package func swallowInvalidation(_ n: Int? = nil) { plan.withLock { $0.invalidations.left = .some(n ?? 0) } }

  /// Has the next read of an event queue find a record that no device is the cause of: the four words of an SMMU's.
  package func reportEvent(_ words: [UInt64]) { plan.withLock { $0.event = words } }

  /// Changes words of the memory that an IOAS mapped last by its address: what a stray pointer might do to tables.
  package func changeLastMapped(_ change: (_ word: UInt64) -> UInt64) {
    guard let (address, byteCount) = plan.withLock({ $0.lastMapped }) else { return }
    let words = unsafe UnsafeMutablePointer<UInt64>(bitPattern: UInt(address))!
    for index in 0..<Int(byteCount / 8) { unsafe words[index] = change(words[index]) }
  }

  /// Calls a function when the next call of a name comes in, before it is passed on or failed: what another thread
  /// might do at that moment. Once.
  package func interject(before name: String, _ body: @escaping @Sendable () -> Void) {
    plan.withLock { $0.interjection = (name, body) }
  }

  /// Has calls of a name wait before they are passed on or failed, until ``letGo()``: as good as a thread that does not run, or
  /// a kernel that takes long. One name at a time.
  package func hold(_ name: String) { plan.withLock { $0.hold = (name, HeldCalls()) } }

  /// Lets the calls go on that are held, and holds no more.
  package func letGo() {
    let calls = plan.withLock { plan in
      defer { plan.hold = nil }
      return plan.hold?.calls
    }
    calls?.letGo()
  }

  /// How many calls are held.
  package var heldCount: Int { plan.withLock { $0.hold?.calls.count ?? 0 } }

  /// From now on notes by `clock`, in nanoseconds, how long each call takes that can fail.
  package func keepTimes(by clock: @escaping @Sendable () -> UInt64) { plan.withLock { $0.clock = clock } }

  /// What the calls of a name took, in order, since the counts began.
  package func times(of name: String) -> [UInt64] { plan.withLock { $0.times[name] ?? [] } }

  /// Passes everything on again. Counts stay.
  package func passAll() {
    plan.withLock {
      $0.failure = nil
      ($0.unmaps.left, $0.invalidations.left) = (nil, nil)
      ($0.interjection, $0.invalidationHook) = (nil, nil)
    }
  }

  /// Forgets counts and names.
  package func resetCounts() {
    plan.withLock {
      ($0.counts, $0.names, $0.fallible, $0.failed) = ([:], [], 0, 0)
      $0.times = [:]
      ($0.unmaps.done, $0.invalidations.done) = (0, 0)
      $0.failedName = nil
    }
  }

  /// Whether the failure that was asked for has happened.
  package var hasFailed: Bool { plan.withLock { $0.failed > 0 } }
  /// The call that failed last, since the counts began.
  package var failedName: String? { plan.withLock { $0.failedName } }
  /// Calls that could fail, since the counts began.
  package var callCount: Int { plan.withLock { $0.fallible } }
  /// Unmaps that were reported and not done.
  package var swallowedCount: Int { plan.withLock { $0.unmaps.done } }
  /// Invalidations that were reported and not done.
  package var swallowedInvalidationCount: Int { plan.withLock { $0.invalidations.done } }
  /// Calls by name, those that cannot fail included.
  package func count(of name: String) -> Int { plan.withLock { $0.counts[name] ?? 0 } }
  /// The names of all calls in order; the latest hundred thousand.
  package var names: [String] { plan.withLock { $0.names } }
}

// MARK: - Passing on

extension FaultingKernel {
  /// A call that can fail.
  func pass<Result>(
    _ name: String = #function, _ body: () throws(Errno) -> Result
  ) throws(Errno) -> Result {
    plan.withLock { $0.takeInterjection(name) }?()
    plan.withLock { $0.hold?.name == FaultPlan.baseName(name) ? $0.hold?.calls : nil }?.wait()
    if let errno = plan.withLock({ $0.step(name) }) { throw errno }
    guard let clock = plan.withLock({ $0.clock }) else { return try body() }
    let began = clock()
    defer {
      let time = clock() - began
      plan.withLock { $0.times[FaultPlan.baseName(name), default: []].append(time) }
    }
    return try body()
  }

  /// A call that cannot.
  func note(_ name: String = #function) {
    plan.withLock { $0.takeInterjection(name) }?()
    plan.withLock { $0.note(name) }
  }
}

/// What a ``FaultingKernel`` is to do, and what it has seen.
struct FaultPlan {
  struct Failure {
    /// The call, nil for any.
    let name: String?
    let exempt: Set<String>
    var left: Int
    let errno: Errno
    let isForever: Bool
  }

  /// Which calls of a kind are to be swallowed, and how many were.
  struct Swallowing {
    /// nil: none; 0: all of them; n: the n-th from now.
    var left: Int?
    var done = 0

    /// Whether this call is to be swallowed.
    mutating func swallows() -> Bool {
      guard let left else { return false }
      if left > 1 {
        self.left = left - 1
        return false
      }
      if left == 1 { self.left = nil }
      done += 1
      return true
    }
  }

  var failure: Failure?
  var unmaps = Swallowing(), invalidations = Swallowing()
  var halfway: Errno?
  var interjection: (name: String, body: @Sendable () -> Void)?
  var invalidationHook: InvalidationHook?
  var hardwareChange: (@Sendable (inout HardwareInfo) -> Void)?
  var hold: (name: String, calls: HeldCalls)?
  var event: [UInt64]?
  /// The memory that an IOAS mapped last, at addresses of this process.
  var lastMapped: (address: UInt64, byteCount: UInt64)?
  var journal = Journal()
  var counts: [String: Int] = [:]
  var names: [String] = []
  var clock: (@Sendable () -> UInt64)?
  var times: [String: [UInt64]] = [:]
  var fallible = 0, failed = 0
  var failedName: String?
  /// What callers believe to be mapped, to answer a swallowed unmap.
  var areas: [MapKey: AreaMap<Void>] = [:]

  private static let nameLimit = 100_000

  /// A number space of IOVAs: an IOAS, or a container with id 0.
  struct MapKey: Hashable { let descriptor: Int32, ioas: UInt32 }

  mutating func note(_ function: String) {
    let name = Self.baseName(function)
    counts[name, default: 0] += 1
    if names.count >= Self.nameLimit { names.removeFirst(Self.nameLimit / 2) }
    names.append(name)
  }

  /// Counts a call; the error that it shall have.
  mutating func step(_ function: String) -> Errno? {
    note(function)
    fallible += 1
    let name = Self.baseName(function)
    guard var plan = failure, plan.name ?? name == name, !plan.exempt.contains(name) else { return nil }
    plan.left -= 1
    failure = plan.left == 0 && !plan.isForever ? nil : plan
    guard plan.left <= 0 else { return nil }
    failed += 1
    failedName = name
    return plan.errno
  }

  mutating func takeEvent() -> [UInt64]? {
    defer { event = nil }
    return event
  }

  mutating func takeInterjection(_ function: String) -> (@Sendable () -> Void)? {
    guard let body = interjection?.body, interjection?.name == Self.baseName(function) else { return nil }
    interjection = nil
    return body
  }

  /// `ioasMap(_:ioas:…)` without its labels.
  static func baseName(_ function: String) -> String {
    String(function.prefix { $0 != "(" })
  }
}

// MARK: - What callers believe to be mapped

extension FaultPlan {
  mutating func mapped(_ key: MapKey, iova: UInt64, byteCount: UInt64) {
    guard byteCount > 0, !iova.addingReportingOverflow(byteCount - 1).overflow else { return }
    let last = iova + (byteCount - 1)
    // After a swallowed unmap the base may hold more than callers believe, never less.
    if areas[key]?.first(in: iova, through: last) != nil { return }
    areas[key, default: AreaMap()].insert(iova, through: last, ())
  }

  /// Forgets the areas inside a range and says how many bytes they had.
  /// The first area of an unmap that is to fail after it, and the error.
  mutating func takeHalfway(
    _ key: MapKey, iova: UInt64, last: UInt64
  ) -> (iova: UInt64, last: UInt64, errno: Errno)? {
    guard let errno = halfway, let first = areas[key]?.first(in: iova, through: last) else { return nil }
    halfway = nil
    return (first.start, first.last, errno)
  }

  mutating func unmapped(_ key: MapKey, iova: UInt64, last: UInt64) -> UInt64 {
    var byteCount: UInt64 = 0
    while let area = areas[key]?.first(in: iova, through: last), area.start >= iova, area.last <= last {
      areas[key]!.remove(startingAt: area.start)
      byteCount += area.byteCount
    }
    return byteCount
  }
}
