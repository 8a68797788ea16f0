import AddressSpace
import CIOMMU
import Glibc
import Synchronization

/// What one pair of the address allocator, an allocation and its release, costs one thread.
///
/// Thread CPU time, medians of interleaved rounds: in each round everything that is compared takes its turn.
enum AllocatorPairs {
  static let rounds = 21, pairs = 200_000
  /// The usable space of x86 with its interrupt window.
  static let usable: IOVARanges = IOVARanges([
    IOVARange(start: IOVA(0x1000), last: IOVA(0xfedf_ffff))!,
    IOVARange(start: IOVA(0xfef0_0000), last: IOVA((1 << 48) - 1))!,
  ])

  static func allocator(_ method: SlotMethod = .best, _ usable: IOVARanges = usable) throws -> AddressAllocator {
    try AddressAllocator(usable: usable, granule: .fourKiB, method: method)
  }

  /// Nanoseconds of thread CPU time for each of `count` pairs of so many bytes, the last released first.
  static func lifo(_ allocator: borrowing AddressAllocator, _ byteCount: UInt64, count: Int = pairs) throws -> Double {
    let began = cpuTime()
    for _ in 0..<count {
      let start = try allocator.allocate(byteCount: byteCount, limit: .max, mayEmptyCaches: true)
      allocator.free(start, byteCount: byteCount)
    }
    return Double(cpuTime() - began) / Double(count)
  }

  /// The same of pages, the oldest released first, with so many live.
  static func fifo(_ allocator: borrowing AddressAllocator, _ ring: inout [IOVA], _ next: inout Int) throws -> Double {
    let began = cpuTime()
    for _ in 0..<pairs {
      allocator.free(ring[next], byteCount: 0x1000)
      ring[next] = try allocator.allocate(byteCount: 0x1000, limit: .max, mayEmptyCaches: true)
      next = next + 1 == ring.count ? 0 : next + 1
    }
    return Double(cpuTime() - began) / Double(pairs)
  }

  /// `alloc_1`, `alloc_32`: against the atomic operations of two locks. Nothing where those cost what they should not.
  static func locks(_ byteCount: UInt64) throws -> [(variant: String, Measurement)] {
    let locked = try allocator(.locked), best = try allocator()
    let word = LockWord()
    var anchors: [Double] = [], ratios: [Double] = [], bestRatios: [Double] = []
    for _ in 0...rounds {
      let anchor = 2 * word.pair()
      anchors.append(anchor)
      ratios.append(try lifo(locked, byteCount) / anchor)
      bestRatios.append(try lifo(best, byteCount) / anchor)
    }
    let anchor = median(Array(anchors.dropFirst()))
    let isUsual = (3...8).contains(anchor / 2)
    func measurement(_ ratios: [Double], _ refusal: String?) -> Measurement {
      Measurement(
        value: refusal == nil ? median(Array(ratios.dropFirst())) : nil, anchor: "two locks' atomics, ns",
        anchorValue: anchor,
        repeats: rounds, reason: refusal)
    }
    let refusal = isUsual ? nil : "a compare-exchange and a store cost \(anchor / 2) ns, not 3 to 8"
    let noSequences = SlotMethod.best == .restartable ? nil : "no restartable sequences here"
    return [("locked", measurement(ratios, refusal)), ("rseq", measurement(bestRatios, refusal ?? noSequences))]
  }

  /// `fifo_1024`, `fifo_65536`: against pairs of one page.
  static func fifo(live: Int) throws -> Measurement {
    let allocator = try allocator(), other = try self.allocator()
    var ring = try (0..<live).map { _ in try allocator.allocate(byteCount: 0x1000) }
    var next = 0
    return try compare(
      "alloc_1, ns", { try lifo(other, 0x1000) }, { try fifo(allocator, &ring, &next) })
  }

  /// The ratio of the second to the first.
  static func compare(
    _ anchor: String, _ first: () throws -> Double, _ second: () throws -> Double
  ) throws -> Measurement {
    var ratios: [Double] = [], anchors: [Double] = []
    for round in 0...rounds {
      // Who comes first changes.
      var (one, two) = (0.0, 0.0)
      for turn in 0..<2 { if (turn + round) % 2 == 0 { one = try first() } else { two = try second() } }
      if round == 0 { continue }  // warms both up
      ratios.append(two / one)
      anchors.append(one)
    }
    return Measurement(value: median(ratios), anchor: anchor, anchorValue: median(anchors), repeats: rounds)
  }
}

/// A word in a cache line that nobody else uses.
@safe
final class LockWord: @unchecked Sendable {
  private let word: UnsafeMutablePointer<Atomic<UInt32>>

  init() {
    let memory = UnsafeMutableRawPointer.allocate(byteCount: 128, alignment: 128)
    unsafe word = memory.bindMemory(to: Atomic<UInt32>.self, capacity: 1)
    unsafe word.initialize(to: Atomic(0))
  }

  deinit { unsafe word.deallocate() }

  /// Nanoseconds for one compare-exchange and one store with release.
  func pair() -> Double {
    let began = cpuTime()
    for _ in 0..<AllocatorPairs.pairs {
      _ = unsafe word.pointee.compareExchange(expected: 0, desired: 1, ordering: .acquiring)
      unsafe word.pointee.store(0, ordering: .releasing)
    }
    return Double(cpuTime() - began) / Double(AllocatorPairs.pairs)
  }
}

/// The CPU time of this thread in nanoseconds.
func cpuTime() -> UInt64 {
  var time = timespec()
  unsafe clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
  return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}
