import AddressSpace
import AddressSpaceModels
import Glibc
import Testing

/// Prints what operations cost, in thread CPU time, best of many slices. Nothing is asserted: times are
/// no test. Only in a release build, and only with `SPEED` in the environment.
@Suite(.enabled(if: environment("SPEED") != nil))
struct SpeedTests {
  /// x86 with its interrupt window, 48 bits.
  static let usable: IOVARanges = [range(0x1000, 0xfedf_ffff), range(0xfef0_0000, (1 << 48) - 1)]

  @Test(arguments: [0, 4, 16, 64, 1_024, 16_384, 100_000])
  func rangeStore(_ live: Int) throws {
    let store = try RangeStore(usable: Self.usable, granule: .fourKiB)
    let page = RangeStore.Request(byteCount: 0x1000)
    var held = try (0..<live).map { _ in try store.allocate(page) }
    var random = SplitMix64(seed: 1)
    let pair = nanoseconds { if let start = try? store.allocate(page) { store.remove(start) } }
    var line = "range store, \(live) live: pair \(pair) ns"
    if live > 0 {
      var next = 0
      let ring = nanoseconds {
        store.remove(held[next])
        held[next] = (try? store.allocate(page)) ?? IOVA(0)
        next = next + 1 == live ? 0 : next + 1
      }
      let find = nanoseconds { _ = store.find(containing: held[Int(random.next() >> 33) % live]) }
      // Every other one goes, so that there are holes; then one goes and one comes.
      held = held.enumerated().filter { $0.offset % 2 == 0 || !(store.remove($0.element) != nil) }.map(
        \.element)
      let churn = nanoseconds {
        let victim = Int(random.next() >> 33) % held.count
        store.remove(held[victim])
        held[victim] = (try? store.allocate(page)) ?? IOVA(0)
      }
      line += ", ring \(ring) ns, churn \(churn) ns, find \(find) ns, \(store.footprint / live) bytes a range"
    }
    print(line)
  }

  @Test(arguments: [16, 1_024, 100_000])
  func intervalIndex(_ live: Int) throws {
    let index = try IntervalIndex()
    for item in 0..<UInt64(live) {
      try index.insert(.init(start: item << 13, byteCount: 0x1000, address: IOVA(item << 12)))
    }
    var random = SplitMix64(seed: 1)
    let find = nanoseconds {
      _ = index.find(containing: UInt64(Int(random.next() >> 33) % live) << 13, byteCount: 64)
    }
    let pair = nanoseconds {
      try? index.insert(.init(start: 0x1800, byteCount: 0x1000, address: IOVA(0)))
      index.remove(start: 0x1800, address: IOVA(0))
    }
    print("interval index, \(live) live: pair \(pair) ns, find \(find) ns")
  }

  @Test func spinLock() {
    let lock = SpinLock()
    print("spin lock: pair \(nanoseconds { lock.lock(); lock.unlock() }) ns")
  }

  /// The least that a call cost in any of 100 slices of 1,000.
  private func nanoseconds(_ body: () -> Void) -> Int {
    var best = Int.max
    for _ in 0..<100 {
      let start = cpuTime()
      for _ in 0..<1_000 { body() }
      best = min(best, cpuTime() - start)
    }
    return best / 1_000
  }

  private func cpuTime() -> Int {
    var time = timespec()
    unsafe clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return time.tv_sec * 1_000_000_000 + time.tv_nsec
  }
}
