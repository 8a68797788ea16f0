import Glibc
import IOMMU

/// How long a thread goes on: so many nanoseconds, or so many operations.
struct BenchBudget: Sendable {
  var nanoseconds = UInt64.max
  var operations = UInt64.max

  /// A thread's part of the operations.
  func part(_ index: Int, of count: Int) -> BenchBudget {
    guard operations != .max else { return self }
    let (index, count) = (UInt64(index), UInt64(count))
    return BenchBudget(operations: operations * (index + 1) / count - operations * index / count)
  }
}

/// The kernel's benchmark: each thread maps and unmaps memory of its own, again and again.
struct SteadyRun: Sendable {
  enum Mode: String, CaseIterable, Sendable {
    /// A buffer. The corresponding kernel option is `DMA_MAP_BENCH_SINGLE_MODE`.
    case single
    /// A list of pages, as long as the granule. The corresponding kernel option is `DMA_MAP_BENCH_SG_MODE`.
    case sg
    /// Coherent memory, allocated and freed.
    case coherent
  }

  let domain: DMADomain
  let mode: Mode
  let direction: DMADirection
  /// Pages of 4 KiB.
  let granule: Int
  /// Nanoseconds from a map to its unmap.
  let delay: UInt64
  let clock: BenchClock

  func run(_ budget: BenchBudget, _ threads: BenchThreads) throws(DMAError) -> BenchPart {
    switch mode {
    case .single: try single(budget, threads)
    case .sg: try list(budget, threads)
    case .coherent: try coherent(budget, threads)
    }
  }

  private func single(_ budget: BenchBudget, _ threads: BenchThreads) throws(DMAError) -> BenchPart {
    var buffer = try threads.inTurn { () throws(DMAError) in try domain.buffer(byteCount: granule * 4096) }
    guard let end = threads.begin(budget) else { return BenchPart() }
    var part = BenchPart()
    while part.operations < budget.operations, !threads.mustStop {
      if direction != .fromDevice { Self.fill(&buffer) }
      let began = BenchClock.now()
      let mapping = try domain.map(buffer, direction)
      let mapped = BenchClock.now()
      let unmapping = wait(mapped)
      buffer = try mapping.unmap()
      if count(&part, began, mapped, unmapping) >= end { break }
    }
    return part
  }

  private func list(_ budget: BenchBudget, _ threads: BenchThreads) throws(DMAError) -> BenchPart {
    var list = try threads.inTurn { () throws(DMAError) in
      var list = ScatterList(capacity: granule)
      for _ in 0..<granule { list.append(try domain.buffer(byteCount: 4096)) }
      return list
    }
    guard let end = threads.begin(budget) else { return BenchPart() }
    var part = BenchPart()
    while part.operations < budget.operations, !threads.mustStop {
      if direction != .fromDevice { for index in 0..<granule { list.withBuffer(at: index, Self.fill) } }
      let began = BenchClock.now()
      let mapping = try domain.map(list, direction)
      let mapped = BenchClock.now()
      let unmapping = wait(mapped)
      list = try mapping.unmap()
      if count(&part, began, mapped, unmapping) >= end { break }
    }
    return part
  }

  private func coherent(_ budget: BenchBudget, _ threads: BenchThreads) throws(DMAError) -> BenchPart {
    func free(_ memory: consuming CoherentArray<UInt8>) {}
    guard let end = threads.begin(budget) else { return BenchPart() }
    var part = BenchPart()
    while part.operations < budget.operations, !threads.mustStop {
      let began = BenchClock.now()
      let memory = try domain.allocate(UInt8.self, count: granule * 4096)
      let mapped = BenchClock.now()
      let unmapping = wait(mapped)
      free(memory)
      if count(&part, began, mapped, unmapping) >= end { break }
    }
    return part
  }

  /// When the unmap begins.
  @inline(__always)
  private func wait(_ mapped: UInt64) -> UInt64 {
    if delay == 0 { return mapped }
    BenchClock.delay(delay)
    return BenchClock.now()
  }

  /// When the unmap ended.
  @inline(__always)
  private func count(_ part: inout BenchPart, _ began: UInt64, _ mapped: UInt64, _ unmapping: UInt64) -> UInt64 {
    let ended = BenchClock.now()
    part.map.record(clock.between(began, mapped))
    part.unmap.record(clock.between(unmapping, ended))
    part.operations += 1
    return ended
  }

  /// The CPU has written the memory before the device reads it, as with a driver.
  private static func fill(_ buffer: inout DMABuffer) {
    var bytes = buffer.mutableBytes
    unsafe bytes.withUnsafeMutableBytes { _ = unsafe memset($0.baseAddress!, 0x66, $0.count) }
  }
}
