import AddressSpace
import Glibc

/// The address allocator where space is scarce, and how much of it, and of memory, it keeps.
enum AllocatorSpaces {
  static let low = UInt64(UInt32.max)

  /// `fail_524k`: a request for 64 pages below 4 GiB that fails, with 524 k pages live there and as many gaps: as a probe and for good,
  /// after a failure and right after a release. Of the four the slowest; its median over all calls.
  static func failing() throws -> Measurement {
    let allocator = try AllocatorPairs.allocator()
    var live: [IOVA] = []
    while let start = try? allocator.allocate(byteCount: 0x1000, limit: low, mayEmptyCaches: false) {
      live.append(start)
    }
    for index in live.indices where index % 2 == 0 { allocator.free(live[index], byteCount: 0x1000) }
    live = live.indices.filter { $0 % 2 == 1 }.map { live[$0] }
    allocator.emptyCaches()
    if live.count < 520_000 { throw Failure(description: "only \(live.count) pages are live") }

    var times: [[Double]] = [[], [], [], []]
    for call in 0..<4_000 {
      let (kind, isProbe) = (call % 4, call % 2 == 0)
      let index = call * 7919 % live.count
      if kind >= 2 { allocator.free(live[index], byteCount: 0x1000) }
      let began = nanoseconds()
      let start = try? allocator.allocate(byteCount: 0x40000, limit: low, mayEmptyCaches: !isProbe)
      times[kind].append(Double(nanoseconds() - began) / 1000)
      if let start { throw Failure(description: "64 pages fit at \(start)") }
      if kind >= 2 { live[index] = try allocator.allocate(byteCount: 0x1000, limit: low, mayEmptyCaches: true) }
    }
    let worst = times.max { median($0) < median($1) }!
    return Measurement(
      value: median(worst), anchor: "99th percentile, us", anchorValue: worst.sorted()[worst.count * 99 / 100],
      repeats: worst.count)
  }

  /// `sac_free`, `sac_exhausted`: below 4 GiB first as long as that did not fail, against one space.
  static func sac(isExhausted: Bool) throws -> Measurement {
    let plain = try AllocatorPairs.allocator()
    let high = IOVARanges([IOVARange(start: IOVA(1 << 32), last: IOVA((1 << 48) - 1))!])
    let tried = try AllocatorPairs.allocator(.best, isExhausted ? high : AllocatorPairs.usable)
    var hasFailed = false
    let result = try AllocatorPairs.compare(
      "one space, ns", { try AllocatorPairs.lifo(plain, 0x1000) },
      {
        let began = cpuTime()
        for _ in 0..<AllocatorPairs.pairs {
          let start = try sacFirst(tried, &hasFailed)
          tried.free(start, byteCount: 0x1000)
        }
        return Double(cpuTime() - began) / Double(AllocatorPairs.pairs)
      })
    if hasFailed != isExhausted {
      throw Failure(description: "space below 4 GiB: \(hasFailed) instead of \(isExhausted)")
    }
    return result
  }

  @inline(__always)
  private static func sacFirst(_ allocator: borrowing AddressAllocator, _ hasFailed: inout Bool) throws -> IOVA {
    if !hasFailed {
      if let start = try? allocator.allocate(byteCount: 0x1000, limit: low, mayEmptyCaches: false) { return start }
      hasFailed = true
    }
    return try allocator.allocate(byteCount: 0x1000, limit: .max, mayEmptyCaches: true)
  }

  /// `held_ratio`: what is allocated in the store against what lives, with 8192 live ranges of 1 to 64 pages and 16 simulated
  /// processors; the worst of the second half, and beside it of the first: it is to be flat.
  static func held(operations: Int) throws -> Measurement {
    let allocator = try AddressAllocator(
      usable: AllocatorPairs.usable, granule: .fourKiB, method: .locked, processors: 16)
    var live: [(start: IOVA, byteCount: UInt64)] = [], random = Random(state: 1)
    var worst = [0.0, 0.0]
    for operation in 0..<operations {
      let processor = UInt32(random.next(16))
      if live.count < 8192 || operation % 2 == 0 {
        let byteCount = 0x1000 * (1 + random.next(64))
        let start = try allocator.allocate(
          byteCount: byteCount, limit: .max, mayEmptyCaches: true, processor: processor)
        live.append((start, byteCount))
      } else {
        live.swapAt(Int(random.next(UInt64(live.count))), live.count - 1)
        let (start, byteCount) = live.removeLast()
        allocator.free(start, byteCount: byteCount, processor: processor)
      }
      if operation % 10_000 == 9_999 {
        let figures = allocator.statistics
        let half = operation < operations / 2 ? 0 : 1
        let ratio = 1 + Double(figures.cachedByteCount) / Double(figures.liveByteCount)
        worst[half] = max(worst[half], ratio)
      }
    }
    return Measurement(value: worst[1], anchor: "in the first half", anchorValue: worst[0], repeats: operations)
  }

  /// `magazine_idle`: bytes of memory for each processor after every length was used once there.
  static func idle() throws -> Measurement {
    let processors: UInt32 = 16
    let allocator = try AddressAllocator(
      usable: AllocatorPairs.usable, granule: .fourKiB, method: .locked, processors: processors)
    for processor in 0..<processors {
      for order in 0..<UInt64(10) {
        let start = try allocator.allocate(
          byteCount: 0x1000 << order, limit: .max, mayEmptyCaches: true, processor: processor)
        allocator.free(start, byteCount: 0x1000 << order, processor: processor)
      }
    }
    return Measurement(
      value: Double(allocator.statistics.memoryByteCount) / Double(processors), anchor: "processors",
      anchorValue: Double(processors), repeats: 1)
  }
}

/// A linear congruential generator, the same everywhere.
private struct Random {
  var state: UInt64
  mutating func next(_ bound: UInt64) -> UInt64 {
    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
    return (state >> 33) % bound
  }
}
