import CIOMMU
import Glibc
import IOMMU
import Synchronization

/// Threads that run the same function, begin together, share one end, and stop when one of them fails.
final class BenchThreads: Sendable {
  let count: Int
  /// The processors that they are bound to by turns; empty leaves it to the kernel.
  let processors: [UInt32]
  private let ready = Atomic<Int>(0)
  /// When all began, by the clock; 0 before.
  private let beginning = Atomic<UInt64>(0)
  /// An event counter that says so to those who sleep; negative where each has a processor, and waits without sleeping, so that all
  /// begin at once.
  private let event: Int32
  private let isStopped = Atomic<Bool>(false)
  private let results = Mutex<[BenchPart]>([])
  private let turn = Mutex<Void>(())
  private let failure = Mutex<DMAError?>(nil)

  private init(_ count: Int, _ processors: [UInt32]) {
    (self.count, self.processors) = (count, processors)
    event = count > Int(ci_nproc_configured()) ? ci_eventfd(0) : -1
  }

  deinit { if event >= 0 { _ = ci_close(event) } }

  /// Whether another thread failed.
  var mustStop: Bool { isStopped.load(ordering: .relaxed) }

  /// Runs a function on so many threads, and adds up what they counted.
  static func run(
    _ count: Int, on processors: [UInt32] = [],
    _ body: @escaping @Sendable (Int, BenchThreads) throws(DMAError) -> BenchPart
  ) throws(DMAError) -> BenchPart {
    let threads = BenchThreads(count, processors)
    var started: [pthread_t] = []
    for index in 0..<count {
      guard let thread = threads.start({ threads.play(index, body) }) else {
        threads.fail(
          DMAError(
            .system, "pthread_create", errno: .wouldBlock, detail: "\(index) of \(count) threads could be started"))
        break
      }
      started.append(thread)
    }
    for thread in started { pthread_join(thread, nil) }
    if let error = threads.failure.withLock({ $0 }) { throw error }
    var sum = BenchPart()
    for part in threads.results.withLock({ $0 }) { sum.add(part) }
    return sum
  }

  private func fail(_ error: DMAError) {
    failure.withLock { $0 = $0 ?? error }
    isStopped.store(true, ordering: .relaxed)
    open()
  }

  /// Makes what a thread needs, one thread after the other: where many find no room in an arena, each would make a chunk of it.
  func inTurn<Value: ~Copyable & Sendable>(_ make: () throws(DMAError) -> Value) throws(DMAError) -> Value {
    try turn.withLock { _ throws(DMAError) in try make() }
  }

  /// Waits until all threads are as far, which have made what they need by then; returns when a budget is used up, by the clock.
  ///
  /// The end is the same for all: a thread that has to wait for a processor does not go on for longer. nil where it got none before
  /// the end, and has nothing more to do; never for the last that came, which waits for nobody.
  func begin(_ budget: BenchBudget = BenchBudget()) -> UInt64? {
    let isLast = ready.add(1, ordering: .acquiringAndReleasing).newValue == count
    if isLast { open() }
    while beginning.load(ordering: .acquiring) == 0 {
      if event < 0 {
        sched_yield()
      } else {
        var descriptor = ci_pollfd(fd: event, events: Int16(CI_POLLIN), revents: 0)
        _ = unsafe ci_poll(&descriptor, 1, -1)
      }
    }
    let (end, isNever) = beginning.load(ordering: .relaxed).addingReportingOverflow(budget.nanoseconds)
    if isNever { return .max }
    return isLast || BenchClock.now() < end ? end : nil
  }

  /// Lets all begin.
  private func open() {
    _ = beginning.compareExchange(expected: 0, desired: BenchClock.now(), ordering: .acquiringAndReleasing)
    // Nobody takes it: it stays readable for all.
    if event >= 0 { _ = ci_eventfd_write(event, 1) }
  }

  private func play(_ index: Int, _ body: (Int, BenchThreads) throws(DMAError) -> BenchPart) {
    do throws(DMAError) {
      if !processors.isEmpty {
        let processor = processors[index % processors.count], result = ci_pin_to_cpu(processor)
        if result < 0 {
          throw DMAError(
            .system, "sched_setaffinity", errno: Errno(rawValue: -result), detail: "Processor \(processor) of the node")
        }
      }
      var part = try body(index, self)
      let began = beginning.load(ordering: .relaxed)
      if began > 0 { part.firstBegin = began }
      part.lastEnd = BenchClock.now()
      results.withLock { $0.append(part) }
    } catch { fail(error) }
  }

  private final class Start: Sendable {
    let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }
  }

  /// nil when the system has no thread left.
  private func start(_ body: @escaping @Sendable () -> Void) -> pthread_t? {
    var thread = pthread_t()
    let start = unsafe Unmanaged.passRetained(Start(body))
    let result = unsafe pthread_create(
      &thread, nil,
      { argument in
        unsafe Unmanaged<Start>.fromOpaque(argument!).takeRetainedValue().body()
        return nil
      }, start.toOpaque())
    if result == 0 { return thread }
    unsafe start.release()
    return nil
  }
}

/// What one thread, or all of them, counted.
struct BenchPart: Sendable {
  var map = LatencyHistogram(), unmap = LatencyHistogram()
  /// Pairs, or translations.
  var pair = LatencyHistogram()
  /// Attempts to map for which there was no room.
  var failed = LatencyHistogram()
  /// Pairs in batches: the time and the number, of which the mean is made.
  var batchTime: UInt64 = 0, batchCount: UInt64 = 0
  var operations: UInt64 = 0
  var firstBegin = BenchClock.now(), lastEnd: UInt64 = 0

  mutating func add(_ other: BenchPart) {
    map.add(other.map)
    unmap.add(other.unmap)
    pair.add(other.pair)
    failed.add(other.failed)
    batchTime += other.batchTime
    batchCount += other.batchCount
    operations += other.operations
    firstBegin = min(firstBegin, other.firstBegin)
    lastEnd = max(lastEnd, other.lastEnd)
  }
}
