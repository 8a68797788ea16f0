import AddressSpace
import IOMMU
import IOMMUSimulation

/// A benchmark that is all set.
struct BenchRun {
  let kind: BenchKind
  let options: BenchOptions
  let trace: Trace?
  let machine: Machine
  /// Those that threads are bound to; empty leaves it to the kernel.
  var processors: [UInt32] = []

  /// The usable space of x86, where no device says another.
  private static let usable: IOVARanges = IOVARanges([
    IOVARange(start: IOVA(0x1000), last: IOVA(0xfedf_ffff))!,
    IOVARange(start: IOVA(0xfef0_0000), last: IOVA((1 << 48) - 1))!,
  ])

  var protection: BenchProtection { options.protection ?? (kind == .queue ? .lazyPerCPU : .strict) }

  /// Refuses what needs more memory than there is: all but a quarter may be taken, as a kernel that has none left ends processes.
  func checkMemory() throws(Failure) {
    guard let need else { return }
    let memory = machine.memoryByteCount
    guard need.byteCount > memory / 4 * 3 else { return }
    throw .library(
      DMAError(
        .outOfMemory, "bench", byteCount: need.byteCount,
        detail:
          "\(need.what), and a benchmark takes three quarters at most of the \(memory) bytes of memory that are free",
        remedy: need.remedy))
  }

  /// The memory that is mapped at a time, and how to have it less; nil where nothing is mapped.
  private var need: (byteCount: UInt64, what: String, remedy: String)? {
    if kind == .alloc { return nil }
    if let trace {
      let remedy = "`bench alloc` runs it without memory\(smaller.map { "; \($0) make it smaller" } ?? "")"
      return (trace.peakByteCount, "The trace maps that much at a time", remedy)
    }
    let byteCount = UInt64(options.granule) * 4096
    if kind == .lookup {
      return (
        UInt64(options.live) * byteCount, "The look-ups are among mappings of that much",
        "Name fewer of them by --live, or a smaller --granule"
      )
    }
    return (
      UInt64(options.threads) * byteCount, "The threads map that much at a time",
      "Name fewer --threads or a smaller --granule"
    )
  }

  /// What makes the trace take less memory; nil when nothing does.
  private var smaller: String? {
    switch options.workload {
    case .w5?: nil  // Its last map is of 1 TiB, however few there are.
    case .w4?, .w7?, .w9?: "fewer --operations or --dma-bits"
    case _?: "fewer --operations"
    case nil: options.traceIn == nil ? "fewer --threads or a smaller --granule" : nil
    }
  }

  /// Writes the trace where that was asked for, once nothing is known to keep it from being run.
  func keepTrace() throws(Failure) {
    if let trace, let path = options.traceOut { try TraceFile.write(trace, path) }
  }

  /// Opens the device, and measures.
  func drive(_ address: String, _ report: inout BenchReport) throws(Failure) {
    let device = try library { () throws(DMAError) in
      try Device(address, on: machine.host, interface: options.interface, translation: options.translation)
    }
    defer { device.close() }
    try library { () throws(DMAError) in try prepare(device, &report) }
    try keepTrace()
    try library { () throws(DMAError) in
      if kind == .alloc { return try allocate(from: device.dma.usableRanges, &report) }
      try measure(device.dma, &report)
    }
  }

  private func prepare(_ device: Device, _ report: inout BenchReport) throws(DMAError) {
    if let bits = options.dmaBits { try device.dma.setMask(.bits(bits)) }
    report.device = (device.address.description, machine.name(device.interface), device.translation.owner.rawValue)
    if kind == .alloc { return }
    report.isDebugged = device.dma.debugOptions != nil
    try device.dma.switchProtection(to: protection.protection)
    report.calibration = device.dma.calibration
    try requireQueue(report.calibration, device.address.description)
  }

  /// Where an automatic protection has no queue, what `bench queue` measured would be something else.
  private func requireQueue(_ calibration: Calibration?, _ device: String) throws(DMAError) {
    guard kind == .queue, let choice = calibration?.choice, choice == .strict || choice == .mapCache else { return }
    throw DMAError(
      .notSupported, "bench queue", device: device,
      detail: "The automatic protection chose \(choice.rawValue), which has no flush queue: the kernel has the tables",
      remedy: "`bench map --protection automatic` measures that; --protection lazy-per-cpu or lazy-single has a queue")
  }

  private func measure(_ domain: DMADomain, _ report: inout BenchReport) throws(DMAError) {
    let (live, addresses) = try mappings(domain, kind == .lookup ? options.live : 0)
    defer { withExtendedLifetime(live) {} }
    let before = BenchCounters(domain, machine)
    let clock = report.clock, budget = options.budget, count = options.threads
    let (direction, pages) = (options.direction, options.granule)
    if let trace {
      var run = TraceRun(trace: trace, target: DomainTarget(domain, clock), processors: processors)
      run.delay = options.delayNs
      try take(try run.run(), trace, &report)
    } else {
      let steady = SteadyRun(
        domain: domain, mode: options.mode, direction: direction, granule: pages, delay: options.delayNs, clock: clock)
      report.result.sum = try BenchThreads.run(count, on: processors) {
        [kind, addresses] (index, threads) throws(DMAError) in
        let budget = budget.part(index, of: count)
        switch kind {
        case .map: return try steady.run(budget, threads)
        case .queue:
          var pair = try threads.inTurn { () throws(DMAError) in
            try QueuePair(domain, direction, byteCount: pages * 4096)
          }
          return try PairRun.run(&pair, budget, clock, threads)
        case .lookup, .alloc:
          var pair = LookupPair(domain, addresses, from: index * 7919)
          return try PairRun.run(&pair, budget, clock, threads)
        }
      }
    }
    // Whatever waits in a flush queue is a part of the price.
    try domain.drain()
    report.result.counters = BenchCounters(domain, machine).since(before)
  }

  /// Takes over what a trace's phases counted, unless that is nothing: a benchmark of no operation measures none.
  private func take(_ parts: [BenchPart], _ trace: Trace, _ report: inout BenchReport) throws(DMAError) {
    if trace.mapCount == 0 { throw DMAError(.empty, "bench", detail: "The trace maps nothing") }
    if parts.reduce(0, { $0 + $1.failed.count }) == trace.mapCount {
      throw DMAError(
        .noSpace, "bench",
        detail: "There was no room for \(trace.mapCount == 1 ? "the only map" : "any of the \(trace.mapCount) maps")",
        remedy: "Name more --dma-bits, or map less at a time")
    }
    report.add(parts, trace)
  }

  /// What is looked up among.
  private func mappings(_ domain: DMADomain, _ count: Int) throws(DMAError) -> (SlotTable, [IOVA]) {
    let slots = SlotTable(count)
    var addresses: [IOVA] = [], random = Random(seed: options.seed)
    for index in 0..<count {
      let mapping = try domain.map(try domain.buffer(byteCount: options.granule * 4096), options.direction)
      addresses.append(mapping.address + random.next(options.granule * 4096))
      slots.put(index, .mapping(mapping))
    }
    for index in addresses.indices.reversed() { addresses.swapAt(index, random.next(index + 1)) }
    return (slots, addresses)
  }

  /// Measures an allocator of addresses alone: a device's, or one of x86's usual space.
  func allocate(from usable: IOVARanges = Self.usable, _ report: inout BenchReport) throws(DMAError) {
    let clock = report.clock, budget = options.budget, count = options.threads
    let byteCount = UInt64(options.granule) * 4096, limit = DMAMask.bits(options.dmaBits ?? 64).limit
    let target = try AllocatorTarget(usable, limit: limit, clock)
    if let trace {
      try take(try TraceRun(trace: trace, target: target, processors: processors).run(), trace, &report)
    } else {
      report.result.sum = try BenchThreads.run(count, on: processors) { (index, threads) throws(DMAError) in
        var pair = AllocationPair(target: target, byteCount: byteCount)
        return try PairRun.run(&pair, budget.part(index, of: count), clock, threads)
      }
    }
  }
}
