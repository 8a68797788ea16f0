import IOMMU

/// What `bench` tells.
struct BenchReport {
  let run: BenchRun
  let clock = BenchClock()
  /// Which device took part, how it was reached, and who wrote its page tables; nil when none did.
  var device: (address: String, interface: String, translation: String)?
  var result = BenchResult()
  /// What an automatic protection went by; nil for others.
  var calibration: Calibration?
  /// Whether what was measured ran in debug mode.
  var isDebugged = false

  init(run: BenchRun) { self.run = run }

  /// Takes over what a trace's phases counted.
  mutating func add(_ parts: [BenchPart], _ trace: Trace) {
    result.phases = zip(trace.phases, parts).map { ($0.name, $1) }
    for part in parts { result.sum.add(part) }
  }

  /// Writes the document, or the lines.
  func tell(_ context: Context) {
    if context.isJSON { return context.document(keys) }
    if device != nil, run.machine.host.isSimulated {
      context.say("On a simulated machine, which exists only in this process: the times are its, not hardware's.")
    }
    if let device {
      let protection = run.kind == .alloc ? "" : ", protection \(run.protection.rawValue)"
      context.say("\(device.address) over \(device.interface), page tables of the \(device.translation)\(protection)")
    }
    if isDebugged { context.sayDebugged("these are not the figures of a driver without it") }
    if let calibration { context.say("\(calibration.choice.rawValue): \(calibration.reason)") }
    if let trace = run.trace {
      context.say(
        "trace \(trace.name), seed \(trace.seed), digest 0x\(hexadecimal(trace.digest, digits: 16)), "
          + "threads \(trace.threads), mappings \(trace.mapCount)")
    }
    if run.kind == .map { kernelLines.forEach { context.say($0) } }
    if result.phases.count > 1 {
      for (name, part) in result.phases { tell(part, "\(name): ", context) }
    }
    tell(result.sum, "", context)
    context.say("\(counted(result.sum.operations, "operation")), \(result.operationsPerSecond) a second")
    tellCounts(context)
    if latencies.contains(where: \.isShort) { context.say(BenchResult.Latency.shortage) }
  }

  private func tellCounts(_ context: Context) {
    guard let counters = result.counters else { return }
    let found: [(String, UInt64?)] = [
      ("system calls", counters.systemCalls), ("invalidations", counters.invalidations), ("syncs", counters.syncs),
    ]
    let counts = found.map { "\($0.0) \(result.perOperation($0.1).map { decimal($0, 7) } ?? "unknown")" }
    context.say("an operation: \(counts.joined(separator: ", "))")
  }

  /// All that lines are written of.
  private var latencies: [BenchResult.Latency] {
    let phases = result.phases.count > 1 ? result.phases.map(\.part) : []
    return (phases + [result.sum]).flatMap { BenchResult.latencies($0, run.kind) }.filter { $0.histogram.count > 0 }
  }

  private func tell(_ part: BenchPart, _ name: String, _ context: Context) {
    for latency in BenchResult.latencies(part, run.kind) where latency.histogram.count > 0 {
      context.say(name + latency.line)
    }
  }

  /// As the kernel's benchmark prints them.
  private var kernelLines: [String] {
    func microseconds(_ nanoseconds: Double) -> String {
      let tenths = Int((nanoseconds / 100).rounded())
      return "\(tenths / 10).\(tenths % 10)"
    }
    let options = run.options, part = result.sum
    let seconds = decimal(Double(result.elapsed) / 1e9, 2)
    let dir = run.trace == nil ? " dir:\(options.direction.kernelName) granule:\(options.granule)" : ""
    return [
      "dma mapping benchmark: threads:\(run.trace?.threads ?? options.threads) seconds:\(seconds)\(dir)",
      "average map latency(us):\(microseconds(part.map.mean)) "
        + "standard deviation:\(microseconds(part.map.standardDeviation))",
      "average unmap latency(us):\(microseconds(part.unmap.mean)) "
        + "standard deviation:\(microseconds(part.unmap.standardDeviation))",
    ]
  }

  private var keys: [(String, JSON)] {
    let options = run.options, trace = run.trace, counters = result.counters
    let isSteady = trace == nil
    var keys: [(String, JSON)] = [
      ("kind", .string(run.kind.rawValue)), ("device", JSON(device?.address)), ("interface", JSON(device?.interface)),
      ("translation", JSON(device?.translation)),
      ("protection", run.kind == .alloc ? .null : .string(run.protection.rawValue)),
      ("calibration", calibration.map { .object($0.keys) } ?? .null), ("debug", .bool(isDebugged)),
      ("threads", JSON(trace?.threads ?? options.threads)),
      ("mode", isSteady && run.kind == .map ? .string(options.mode.rawValue) : .null),
      ("granule", isSteady ? JSON(options.granule) : .null),
      ("direction", isSteady && run.kind != .alloc ? .string(options.direction.name) : .null),
      ("dma_bits", JSON(options.dmaBits)), ("delay_ns", .uint(options.delayNs)),
      ("trace", trace.map { .object($0.keys) } ?? .null),
      ("clock_ns", .uint(clock.cost)), ("elapsed_ns", .uint(result.elapsed)),
      ("operations", .uint(result.sum.operations)), ("no_room", .uint(result.sum.failed.count)),
    ]
    keys += Self.keys(result.sum, run.kind)
    keys += [
      ("operations_per_second", .uint(result.operationsPerSecond)),
      ("system_calls_per_operation", JSON(result.perOperation(counters?.systemCalls))),
      ("invalidations_per_operation", JSON(result.perOperation(counters?.invalidations))),
      ("syncs_per_operation", JSON(result.perOperation(counters?.syncs))),
    ]
    if trace != nil {
      let phases = result.phases.map { name, part in
        JSON.object([("name", .string(name)), ("operations", .uint(part.operations))] + Self.keys(part, run.kind))
      }
      keys.append(("phases", .array(phases)))
    }
    return keys
  }

  private static func keys(_ part: BenchPart, _ kind: BenchKind) -> [(String, JSON)] {
    BenchResult.latencies(part, kind).map { ($0.key, .object($0.keys)) }
  }
}

extension Calibration {
  fileprivate var keys: [(String, JSON)] {
    var shortest: UInt64?
    if case .timings(let time) = evidence { shortest = time }
    return [("choice", .string(choice.rawValue)), ("reason", .string(reason)), ("shortest_ns", JSON(shortest))]
  }

  /// How it is known what an invalidation costs, in words.
  fileprivate var reason: String {
    switch evidence {
    case .cachingMode(let unit): "\(unit) has caching mode, which emulated units have"
    case .virtioIOMMU(let unit): "\(unit) is a virtio-iommu"
    case .hypervisor: "the processors are a hypervisor's"
    case .timings(let shortest):
      "an invalidation takes \(shortest) ns, the shortest of \(Calibration.timingCount) timings"
    case .told: "so it was asked for"
    }
  }
}

extension Trace {
  /// As documents have it.
  var keys: [(String, JSON)] {
    [
      ("name", .string(name)), ("seed", .uint(seed)), ("digest", .string("0x" + hexadecimal(digest, digits: 16))),
      ("mappings", JSON(mapCount)), ("peak_bytes", .uint(peakByteCount)),
    ]
  }
}
