public import ArgumentParser
public import IOMMU

/// What is measured.
enum BenchKind: String, CaseIterable, ExpressibleByArgument {
  /// The address allocator alone.
  case alloc
  /// A map and its unmap.
  case map
  /// The way from an address of the device to memory.
  case lookup
  /// A map and its unmap through the flush queue.
  case queue
}

/// The protections by name.
enum BenchProtection: String, CaseIterable, ExpressibleByArgument {
  case strict
  case lazyPerCPU = "lazy-per-cpu"
  case lazySingle = "lazy-single"
  case persistent, bounce, automatic

  /// What the library calls it.
  var protection: Protection {
    switch self {
    case .strict: .strict
    case .lazyPerCPU: .lazy(.perCPU)
    case .lazySingle: .lazy(.single)
    case .persistent: .persistent
    case .bounce: .bounce
    case .automatic: .automatic
    }
  }
}

extension SteadyRun.Mode: ExpressibleByArgument {}

extension DMADirection: ExpressibleByArgument {
  /// `to-device`, `from-device`, `bidirectional`.
  public init?(argument: String) {
    guard let direction = Self.all.first(where: { $0.name == argument }) else { return nil }
    self = direction
  }
  /// The words that are understood.
  public static var allValueStrings: [String] { all.map(\.name) }

  private static var all: [DMADirection] { [.toDevice, .fromDevice, .bidirectional] }

  /// As documents have it.
  var name: String {
    switch self {
    case .toDevice: "to-device"
    case .fromDevice: "from-device"
    case .bidirectional: "bidirectional"
    }
  }

  /// As the kernel's benchmark prints it.
  var kernelName: String {
    switch self {
    case .toDevice: "TO_DEVICE"
    case .fromDevice: "FROM_DEVICE"
    case .bidirectional: "BIDIRECTIONAL"
    }
  }
}

/// The options of the kernel's `dma_map_benchmark`, with its bounds, and those that it lacks.
struct BenchOptions: ParsableArguments {
  @Option(help: "Threads, 1 to 1024.") var threads = 1
  @Option(help: "How long to measure, at most 300; 3 unless --operations is given.") var seconds: Double?
  @Option(help: "How many operations to measure, of all threads together.") var operations: Int?
  @Option(help: "Length of a mapping in pages of 4 KiB, 1 to 1024.") var granule = 1
  @Option(name: .customLong("direction"), help: "Which way data goes; bidirectional unless given.")
  var givenDirection: DMADirection?
  @Option(help: "Address bits that the device drives, 20 to 64; 64 unless given.") var dmaBits: Int?
  @Option(name: .customLong("delay-ns"), help: "Nanoseconds from a map to its unmap, at most 10000000; 0 unless given.")
  var givenDelay: UInt64?
  @Option(help: "Run the threads on the processors of this NUMA node.") var node: Int?
  @Option(help: "Map a buffer, a list of single pages, or allocate coherent memory.") var mode = SteadyRun.Mode.single
  @Option(help: "What an unmap leaves within reach: strict unless given, for `queue` lazy-per-cpu.")
  var protection: BenchProtection?
  @Option(name: .customLong("translation"), help: "Insist on who writes the page tables; automatic unless given.")
  var givenTranslation: TranslationChoice?
  @Option(help: "Insist on an interface.") var interface: Interface?
  @Option(name: .customLong("live"), help: "Mappings that a lookup is among, 1 to 1048576; 1000 unless given.")
  var givenLive: Int?
  @Option(help: "Run a workload: \(Workload.allCases.map(\.rawValue).joined(separator: ", ")).") var workload: Workload?
  @Option(help: "What a workload's random choices follow from.") var seed: UInt64 = 1
  @Option(help: ArgumentHelp("Run the operations of a trace.", valueName: "file")) var traceIn: String?
  @Option(help: ArgumentHelp("Write the operations that are run as a trace.", valueName: "file")) var traceOut: String?

  var direction: DMADirection { givenDirection ?? .bidirectional }
  var delayNs: UInt64 { givenDelay ?? 0 }
  var translation: TranslationChoice { givenTranslation ?? .automatic }
  var live: Int { givenLive ?? 1000 }

  /// Options that were given and that an allocator of addresses alone knows nothing of.
  ///
  /// - Parameter hasDevice: Whether the addresses are a device's: then how it is opened matters.
  func unknownToAllocator(hasDevice: Bool) -> [String] {
    // Only a trace that is written for others says where data goes.
    let hasDirections = traceOut != nil && workload == nil && traceIn == nil
    let given = [
      ("--direction", givenDirection != nil && !hasDirections), ("--delay-ns", givenDelay != nil),
      ("--protection", protection != nil), ("--live", givenLive != nil),
      ("--translation", givenTranslation != nil && !hasDevice), ("--interface", interface != nil && !hasDevice),
    ]
    return given.filter(\.1).map(\.0)
  }

  /// Whether the operations are known beforehand.
  var hasTrace: Bool { workload != nil || traceIn != nil || traceOut != nil }

  func validate() throws {
    try Self.check(1...1024, threads, "--threads")
    try Self.check(1...1024, granule, "--granule")
    try Self.check(20...64, dmaBits ?? 64, "--dma-bits")
    try Self.check(1...1 << 20, live, "--live")
    try Self.check(0...1023, node ?? 0, "--node")
    try Self.check(0...10_000_000, delayNs, "--delay-ns")
    try Self.check(1...1_000_000_000, operations ?? 1, "--operations")
    if let seconds, !(seconds > 0 && seconds <= 300) {
      throw ValidationError("--seconds wants more than 0, at most 300.")
    }
    if seconds != nil, operations != nil { throw ValidationError("--seconds and --operations exclude each other.") }
    if workload != nil, traceIn != nil { throw ValidationError("--workload and --trace-in exclude each other.") }
    guard hasTrace else { return }
    if seconds != nil { throw ValidationError("A trace is run once: --operations says how long a workload is.") }
    if traceIn != nil, operations != nil { throw ValidationError("--trace-in and --operations exclude each other.") }
    if mode == .coherent { throw ValidationError("Traces have no coherent memory.") }
    try Self.check(1...10_000_000, operations ?? 1, "--operations of a trace")
  }

  private static func check<Number: Comparable>(_ range: ClosedRange<Number>, _ value: Number, _ name: String) throws {
    guard range.contains(value) else {
      throw ValidationError("\(name) wants \(range.lowerBound) to \(range.upperBound).")
    }
  }

  /// When a thread ends, of a benchmark without a trace.
  var budget: BenchBudget {
    if let operations { return BenchBudget(operations: UInt64(operations)) }
    return BenchBudget(nanoseconds: UInt64((seconds ?? 3) * 1e9))
  }

  /// The trace that is to be run; nil when there is none.
  func trace() throws(Failure) -> Trace? {
    let trace: Trace
    if let traceIn {
      trace = try TraceFile.read(traceIn)
    } else if let workload {
      let size = Workload.Size(
        operations: operations ?? workload.usualOperations, threads: threads, addressBits: dmaBits ?? 64)
      trace = workload.trace(size, seed: seed)
    } else if traceOut != nil {
      let (count, pages) = mode == .sg ? (granule, 1) : (1, granule)
      trace = .uniform(
        operations: operations ?? 10_000, threads: threads, count: count, byteCount: UInt64(pages) * 4096, direction)
    } else {
      return nil
    }
    if let traceOut { try TraceFile.write(trace, traceOut) }
    return trace
  }
}

extension Workload: ExpressibleByArgument {}
