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
///
/// All are nil unless they are given, so that one which would do nothing is refused also where its value is the usual one:
/// ``BenchCase`` says which.
struct BenchOptions: ParsableArguments {
  @Option(name: .customLong("threads"), help: "Threads, 1 to 1024; 1 unless given.") var givenThreads: Int?
  @Option(help: "How long to measure, at most 300; 3 unless --operations is given.") var seconds: Double?
  @Option(help: "How many operations to measure, of all threads together.") var operations: Int?
  @Option(name: .customLong("granule"), help: "Length of a mapping in pages of 4 KiB, 1 to 1024; 1 unless given.")
  var givenGranule: Int?
  @Option(name: .customLong("direction"), help: "Which way data goes; bidirectional unless given.")
  var givenDirection: DMADirection?
  @Option(help: "Address bits that the device drives, 20 to 64; 64 unless given.") var dmaBits: Int?
  @Option(name: .customLong("delay-ns"), help: "Nanoseconds from a map to its unmap, at most 10000000; 0 unless given.")
  var givenDelay: UInt64?
  @Option(help: "Run the threads on the processors of this NUMA node.") var node: Int?
  @Option(
    name: .customLong("mode"),
    help: "Map a buffer, a list of single pages, or allocate coherent memory; single unless given.")
  var givenMode: SteadyRun.Mode?
  @Option(help: "What an unmap leaves within reach: strict unless given, for `queue` lazy-per-cpu.")
  var protection: BenchProtection?
  @Option(name: .customLong("translation"), help: "Insist on who writes the page tables; automatic unless given.")
  var givenTranslation: TranslationChoice?
  @Option(help: "Insist on an interface.") var interface: Interface?
  @Option(name: .customLong("live"), help: "Mappings that a lookup is among, 1 to 1048576; 1000 unless given.")
  var givenLive: Int?
  @Option(help: "Run a workload: \(Workload.allCases.map(\.rawValue).joined(separator: ", ")).") var workload: Workload?
  @Option(
    name: .customLong("seed"), help: "What random choices follow from, of a workload and of look-ups; 1 unless given.")
  var givenSeed: UInt64?
  @Option(help: ArgumentHelp("Run the operations of a trace.", valueName: "file")) var traceIn: String?
  @Option(help: ArgumentHelp("Write the operations that are run as a trace.", valueName: "file")) var traceOut: String?

  var threads: Int { givenThreads ?? 1 }
  var granule: Int { givenGranule ?? 1 }
  var direction: DMADirection { givenDirection ?? .bidirectional }
  var delayNs: UInt64 { givenDelay ?? 0 }
  var mode: SteadyRun.Mode { givenMode ?? .single }
  var translation: TranslationChoice { givenTranslation ?? .automatic }
  var live: Int { givenLive ?? 1000 }
  var seed: UInt64 { givenSeed ?? 1 }

  /// Those that were given; first those that decide about others.
  var given: [BenchOption] {
    let all: [(BenchOption, Bool)] = [
      (.workload, workload != nil), (.traceIn, traceIn != nil), (.traceOut, traceOut != nil), (.mode, givenMode != nil),
      (.threads, givenThreads != nil), (.seconds, seconds != nil), (.operations, operations != nil),
      (.granule, givenGranule != nil), (.direction, givenDirection != nil), (.dmaBits, dmaBits != nil),
      (.delay, givenDelay != nil), (.node, node != nil), (.protection, protection != nil),
      (.translation, givenTranslation != nil), (.interface, interface != nil), (.live, givenLive != nil),
      (.seed, givenSeed != nil),
    ]
    return all.filter(\.1).map(\.0)
  }

  /// Where the operations come from.
  var source: BenchCase.Source {
    if traceIn != nil { return .file }
    if let workload { return .workload(workload) }
    return traceOut == nil ? .steady : .uniform
  }

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
    if case .steady = source { return }
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
    switch source {
    case .steady: return nil
    case .file: return try TraceFile.read(traceIn!)
    case .workload(let workload):
      let size = Workload.Size(
        operations: operations ?? workload.usualOperations, threads: threads, addressBits: dmaBits ?? 64)
      return workload.trace(size, seed: seed)
    case .uniform:
      let (count, pages) = mode == .sg ? (granule, 1) : (1, granule)
      return .uniform(
        operations: operations ?? 10_000, threads: threads, count: count, byteCount: UInt64(pages) * 4096, direction)
    }
  }
}

extension Workload: ExpressibleByArgument {}
