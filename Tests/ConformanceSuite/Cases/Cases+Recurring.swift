import CIOMMU
import Glibc
import IOMMU
import IOMMUSimulation
import Synchronization

/// Recurring buffers, under each protection: what an automatic one saves, and that no queue does where the kernel owns the
/// page tables.
extension Cases {
  static let recurring: [ConformanceCase] = [
    ConformanceCase(.counts, "count/lazy_10000") { environment in
      if environment.translation == .process { return try Unmaps.count("lazy_10000", 8, environment) }
      var told = AutomaticOptions()
      told.isInvalidationDear = true
      // The only machine whose IOMMU says of itself that it is emulated; and the one that the comparison is made on.
      guard environment.machine == "vtd-caching" else {
        _ = try Recurring.count("lazy_10000", 8, .automatic(told), environment)
        return
      }
      let automatic = try Recurring.count("lazy_10000", 8, .automatic, environment)
      let strict = try Recurring.count("lazy_10000_strict", 9, .strict, environment)
      let perCPU = try Recurring.count("lazy_10000_per_cpu", 10, .lazy(.perCPU), environment)
      let single = try Recurring.count("lazy_10000_single", 11, .lazy(.single), environment)
      try expect(automatic * 20 <= strict, "\(automatic) calls or invalidations with a cache, \(strict) without")
      // How far a queue joins calls is chance.
      guard environment.isSimulated else { return }
      try expectEqual(perCPU, strict, "invalidations with a queue a processor")
      try expectEqual(single, strict, "invalidations with one queue for all")
    }
  ]
}

/// W1 of `iommuctl bench` with buffers that recur, of a page each: a receive ring, and a frame to send with every fourth map.
private final class Recurring {
  private final class Item {
    var buffer: DMABuffer?
    var mapping: Mapping?
    init(_ buffer: consuming DMABuffer) { self.buffer = consume buffer }

    func take() throws { if let mapping = mapping.take() { buffer = try mapping.unmap() } }

    func post(_ dma: DMADomain, _ direction: DMADirection) throws {
      try take()
      mapping = try dma.map(buffer.take()!, direction)
    }
  }

  private let dma: DMADomain
  private let received: [Item], sent: [Item]
  /// The simulated machine counts the same at a tenth of the size.
  private let scale: Int

  private init(_ dma: DMADomain, scale: Int) throws {
    (self.dma, self.scale) = (dma, scale)
    received = try (0..<250 / scale).map { _ in Item(try dma.buffer(byteCount: 4096)) }
    sent = try (0..<60 / scale).map { _ in Item(try dma.buffer(byteCount: 4096)) }
  }

  private func run() throws {
    for number in 0..<10_000 / scale {
      let group = number / 4
      if number % 4 == 3 {
        try sent[group % sent.count].post(dma, .toDevice)
      } else {
        try received[(group * 3 + number % 4) % received.count].post(dma, .fromDevice)
      }
    }
    for item in received + sent { try item.take() }
    try dma.drain()
  }

  /// The simulated machine's invalidations, maps that flush included; on a real one system calls, since what was invalidated
  /// is for the trace to tell.
  static func count(
    _ name: String, _ number: UInt8, _ protection: Protection, _ environment: Environment
  ) throws -> Int {
    let device = try environment.open(environment.devices.edu), dma = device.dma
    try dma.switchProtection(to: protection)
    let ring = try Recurring(dma, scale: environment.simulated == nil ? 1 : 10)
    let before = invalidations(environment) ?? Int(dma.statistics.systemCalls)
    try Cases.phase(name, number, environment, dma) { try ring.run() }
    let after = dma.statistics, count = (invalidations(environment) ?? Int(after.systemCalls)) - before
    let choice = dma.calibration?.choice.rawValue ?? "none", buffers = ring.received.count + ring.sent.count
    environment.say(
      "COUNT \(name): \(after.systemCalls) system calls, cache hits \(after.cacheHits), choice \(choice)")
    if dma.calibration?.choice == .mapCache {
      try expectEqual(Int(after.cacheMisses), buffers, "maps that found none kept")
      try expectEqual(Int(after.cacheHits), 10_000 / ring.scale - buffers, "maps that found one kept")
    }
    try expectEqual(after.cachedBytes + after.queuedBytes, 0, "bytes that wait after the drain")
    device.close()
    return count
  }

  private static func invalidations(_ environment: Environment) -> Int? {
    environment.simulated.map { $0.counters.invalidations + $0.counters.flushesOnMap }
  }
}

/// 10,000 lazy unmaps on one processor, by queues of 256 entries that no timer flushes, and a drain: on tables of the process one
/// command for each 255 of them and one for the rest.
private enum Unmaps {
  static func count(_ name: String, _ number: UInt8, _ environment: Environment) throws {
    let device = try environment.open(environment.devices.edu), dma = device.dma
    try dma.switchProtection(to: .lazy(FlushQueueOptions(.perCPU, depth: 256, timeout: .seconds(10))))
    // On a thread that stays on one processor and ends: this one goes where it likes.
    let caller = pthread_self(), failure = Mutex<(any Error)?>(nil)
    WorkerThreads.run(2) {
      if pthread_self() == caller { return }
      do { try run(name, number, environment, dma) } catch { failure.withLock { $0 = error } }
    }
    if let failure = failure.withLock({ $0 }) { throw failure }
    try expectEqual(dma.statistics.invalidations, 40, "commands for 10,000 lazy unmaps")
    try expectEqual(dma.statistics.gatheredRanges, 0, "ranges that were tracked")
    device.close()
  }

  private static func run(_ name: String, _ number: UInt8, _ environment: Environment, _ dma: DMADomain) throws {
    _ = ci_pin_to_cpu(0)
    var buffer: DMABuffer? = try dma.buffer(byteCount: 4096)
    try Cases.phase(name, number, environment, dma) {
      for _ in 0..<10_000 { buffer = try dma.map(buffer.take()!, .bidirectional).unmap() }
      try dma.drain()
    }
  }
}
