import AddressSpace
import IOMMU

/// Something that takes tens of nanoseconds: of 64 one is timed alone, for the percentiles, and all together, for the mean.
protocol BenchPair: ~Copyable {
  mutating func once() throws(DMAError)
}

enum PairRun {
  private static let batch: UInt64 = 64

  static func run<Pair: BenchPair & ~Copyable>(
    _ pair: inout Pair, _ budget: BenchBudget, _ clock: BenchClock, _ threads: BenchThreads
  ) throws(DMAError) -> BenchPart {
    guard let end = threads.begin(budget) else { return BenchPart() }
    var part = BenchPart()
    while part.operations < budget.operations, !threads.mustStop {
      let count = min(batch, budget.operations - part.operations)
      let began = BenchClock.now()
      try pair.once()
      let first = BenchClock.now()
      for _ in 1..<count { try pair.once() }
      let ended = BenchClock.now()
      let time = clock.between(began, first)
      part.pair.record(time)
      part.batchTime += time + (count > 1 ? clock.between(first, ended) : 0)
      part.batchCount += count
      part.operations += count
      if ended >= end { break }
    }
    return part
  }
}

/// `alloc`: an address, and its release.
struct AllocationPair: BenchPair {
  let target: AllocatorTarget
  let byteCount: UInt64

  @inline(__always)
  mutating func once() throws(DMAError) {
    do throws(RangeStoreFailure) {
      let start = try target.policy.allocate(target.allocator, byteCount)
      target.allocator.free(start, byteCount: byteCount)
    } catch { throw AllocatorTarget.failed(error, byteCount) }
  }
}

/// `queue`: a map, and an unmap that goes through the flush queue.
struct QueuePair: BenchPair, ~Copyable {
  let domain: DMADomain
  let direction: DMADirection
  private var buffer: DMABuffer?

  // In two steps: Swift 6.2 stops at a throwing initializer that sets some properties.
  init(_ domain: DMADomain, _ direction: DMADirection, byteCount: Int) throws(DMAError) {
    self.init(domain, direction, try domain.buffer(byteCount: byteCount))
  }

  private init(_ domain: DMADomain, _ direction: DMADirection, _ buffer: consuming DMABuffer) {
    (self.domain, self.direction) = (domain, direction)
    self.buffer = consume buffer
  }

  @inline(__always)
  mutating func once() throws(DMAError) {
    let mapping = try domain.map(buffer.take()!, direction)
    buffer = try mapping.unmap()
  }
}

/// `lookup`: where an address of one of many mappings lies in the process.
struct LookupPair: BenchPair {
  let domain: DMADomain
  /// In random order.
  let addresses: [IOVA]
  private var next: Int

  init(_ domain: DMADomain, _ addresses: [IOVA], from start: Int) {
    (self.domain, self.addresses, next) = (domain, addresses, start % addresses.count)
  }

  @inline(__always)
  mutating func once() throws(DMAError) {
    if unsafe domain.translate(addresses[next]) == nil {
      throw DMAError(.notMapped, "translate", address: addresses[next].rawValue)
    }
    next = next + 1 == addresses.count ? 0 : next + 1
  }
}
