import AddressSpace
import AddressSpaceModels
import CIOMMU
import Glibc
import IOMMU
import Synchronization

/// Addresses from the per-processor magazines, while this kernel moves threads from processor to processor and interrupts what
/// is restartable.
extension Cases {
  static let magazines: [ConformanceCase] = [
    ConformanceCase(.conformance, "magazines/method") { environment in
      // Every kernel that the guests run has rseq(2) and membarrier(2), and glibc registers each thread. A simulated machine
      // says nothing about the kernel below it.
      let isUsed = SlotMethod.best == .restartable || environment.isSimulated
      try expectEqual(isUsed, true, "restartable sequences are used")
    },
    ConformanceCase(.conformance, "magazines/nothing-is-had-twice") { _ in
      for method in SlotMethod.best == .locked ? [.locked] : [SlotMethod.locked, .restartable] {
        let crowd = try Crowd(method)
        // Not the thread that waits for the others: it has more to do afterwards, on any processor.
        let caller = pthread_self()
        WorkerThreads.run(5) { if pthread_self() != caller { crowd.work(steps: 20_000) } }
        try expectEqual(crowd.workers.load(ordering: .relaxed), 4, "threads")
        try expectEqual(crowd.errors.load(ordering: .relaxed), 0, "pages that two threads had at once, \(method)")
        let statistics = crowd.allocator.statistics
        try expectEqual(statistics.liveCount, 0, "pages that nobody has given back, \(method)")
        crowd.allocator.emptyCaches()
        try expectEqual(crowd.allocator.statistics.cachedCount, 0, "pages in caches that were emptied, \(method)")
        try expectEqual(crowd.allocator.next(from: IOVA(0)) == nil, true, "the store is empty, \(method)")
      }
    },
  ]

  /// An allocator, and a mark for each page that somebody has.
  @safe
  private final class Crowd: @unchecked Sendable {
    let allocator: AddressAllocator
    let errors = Atomic(0)
    private let marks: UnsafeMutablePointer<Atomic<UInt8>>
    let workers = Atomic<UInt64>(0)
    private static let pageCount = 0x400

    init(_ method: SlotMethod) throws(RangeStoreFailure) {
      let usable = IOVARange(start: IOVA(0x1000), byteCount: UInt64(Self.pageCount - 1) << 12)!
      allocator = try AddressAllocator(usable: [usable], granule: .fourKiB, method: method)
      unsafe marks = .allocate(capacity: Self.pageCount)
      for index in 0..<Self.pageCount { unsafe (marks + index).initialize(to: Atomic(0)) }
    }

    deinit { unsafe marks.deallocate() }

    /// Takes and gives back a few pages at a time, and now and then changes the processor.
    func work(steps: Int) {
      var random = SplitMix64(seed: workers.wrappingAdd(1, ordering: .relaxed).newValue)
      var held: [IOVA] = []
      let processors = UInt32(ci_cpu_limit())
      for step in 0..<steps {
        if step % 128 == 0 { _ = ci_pin_to_cpu(.random(in: 0..<processors, using: &random)) }
        if held.count < 24, Bool.random(using: &random), let start = try? allocator.allocate(byteCount: 4096) {
          mark(start, 1)
          held.append(start)
        } else if let start = held.popLast() {
          mark(start, 0)
          allocator.free(start, byteCount: 4096)
        }
      }
      for start in held {
        mark(start, 0)
        allocator.free(start, byteCount: 4096)
      }
    }

    private func mark(_ start: IOVA, _ new: UInt8) {
      let was = unsafe marks[Int(start.rawValue >> 12)].exchange(new, ordering: .relaxed)
      if was == new { errors.wrappingAdd(1, ordering: .relaxed) }
    }
  }
}
