import ArgumentParser
import IOMMU
import IOMMUSimulation

/// Compares when and how the library could invalidate, on machines that exist only in this process.
struct Simulate: Subcommand {
  static let configuration = CommandConfiguration(
    abstract: "Compare invalidation policies on a workload, in virtual time.",
    discussion: """
      Runs the operations of a workload, or of a trace's file, under each policy, on a simulated VT-d and a simulated SMMUv3 \
      whose page tables the process owns:
        strict        an unmap invalidates its range
        lazy-per-cpu  unmaps wait for a flush of everything, in a queue a processor
        lazy-single   the same with one deep queue
        whole-tag     an unmap invalidates everything
        threshold     an unmap of more than --threshold pages does

      and tells the commands that the hardware was sent, syncs, times that commands found the queue full (stalls), what an \
      unmap takes (p50, p99), how long unmapped memory stayed within reach at most (exposed), the throughput that the reads of \
      page tables allow by the formula of Rubin et al., SOSP 2024, and what was achieved by the clock.

      Tables of costs are named by the hardware and the nanoseconds of one invalidation. Without --iommu and --costs all that \
      go together are run:
        vtd-2000, vtd-800, virtual-20000    with vtd
        smmu-300, smmu-800, virtual-20000   with smmuv3

      --queue, --producers and --no-range-invalidation change the hardware: shorter queues, others who have put a round of \
      commands into the same queue before each call, and an SMMUv3 that takes a command a page.

      The same command gives the same figures on every machine: time is virtual, and one thread does all operations in their \
      order. Only workloads follow from --seed. On VT-d tables of a process were not yet run on hardware: its figures are the \
      simulated VT-d's alone.
      """)

  @OptionGroup var global: GlobalOptions
  @Option(help: ArgumentHelp("What the driver does: a workload, or a trace.", valueName: "name|file"))
  var workload: SimulationSource
  @Option(help: "The IOMMU; both unless given.") var iommu: SimulatedMachine.IOMMUKind?
  @Option(help: "What its work takes; all tables unless given.") var costs: CostTable?
  @Option(name: .customLong("seed"), help: "What random choices of a workload follow from; 1 unless given.")
  var givenSeed: UInt64?
  @Option(
    name: .customLong("operations"), help: "Maps of a workload, each with its unmap; 20000 unless given, 5000 of W1.")
  var givenOperations: Int?
  @Option(help: "Pages of 4 KiB beyond which the policy of that name invalidates everything, 1 to 8192.")
  var threshold = 32
  @Option(help: "Entries of the invalidation queue, a power of two; as many as the hardware's unless given.")
  var queue: Int?
  @Option(help: "Others who use the same queue, 0 to 1024.") var producers = 0
  @Flag(help: "Have an SMMUv3 without range commands.") var noRangeInvalidation = false
  @Option(help: ArgumentHelp("Write a page with plots.", valueName: "file")) var html: String?

  /// The longest mapping: what does not fit into an area would not wait for a flush.
  private static let longestByteCount: UInt64 = 32 << 20

  func validate() throws {
    if global.root != nil { throw ValidationError("--root does nothing in `simulate`: it makes machines of its own.") }
    guard (1...8192).contains(threshold) else { throw ValidationError("--threshold wants 1 to 8192.") }
    guard (1...10_000_000).contains(givenOperations ?? 1) else {
      throw ValidationError("--operations wants 1 to 10000000.")
    }
    if case .file = workload {
      for (isGiven, name) in [(givenSeed != nil, "--seed"), (givenOperations != nil, "--operations")] where isGiven {
        throw ValidationError("\(name) does nothing with a trace's file: the trace has been made before.")
      }
    }
    if case .file(let path) = workload, let html, OutputFile.isSame(path, html) {
      throw ValidationError("--html \(html) is the file that --workload reads: it would be written over.")
    }
    if let iommu, let costs, !costs.fits(iommu) {
      let names = CostTable.all.filter { $0.fits(iommu) }.map(\.name).joined(separator: ", ")
      throw ValidationError("--costs \(costs.name) are not those of \(iommu.rawValue), which has \(names).")
    }
    let mistake = hardware.mistake(on: Set(SimulationCase.all(iommu, costs, hardware).map(\.iommu)))
    if let mistake { throw ValidationError(mistake) }
  }

  private var hardware: SimulationHardware {
    SimulationHardware(queueEntries: queue, producers: producers, hasRanges: !noRangeInvalidation)
  }

  func perform(_ context: Context) throws(Failure) -> Outcome {
    let trace = try trace()
    if let html { try OutputFile.prepare(html, "write page") }
    var results: [SimulationResult] = []
    for what in SimulationCase.all(iommu, costs, hardware) {
      let run = SimulationRun(trace: trace, what: what, threshold: threshold, kernel: context.simulation.kernel)
      results.append(try library { () throws(DMAError) in try run.run() })
    }
    let report = SimulationReport(trace: trace, threshold: threshold, hardware: hardware, results: results)
    if let html { try OutputFile.write(Array(SimulationPage(report: report).html.utf8), html, "write page") }
    report.tell(context, page: html)
    return .fine
  }

  private func trace() throws(Failure) -> Trace {
    let trace: Trace
    switch workload {
    case .workload(let workload):
      if workload == .w5 { throw Self.tooLong(1 << 40) }
      trace = workload.trace(
        Workload.Size(operations: givenOperations ?? (workload == .w1 ? 5000 : 20_000)), seed: givenSeed ?? 1)
    case .file(let path): trace = try TraceFile.read(path)
    }
    if trace.longestByteCount > Self.longestByteCount { throw Self.tooLong(trace.longestByteCount) }
    return trace
  }

  private static func tooLong(_ byteCount: UInt64) -> Failure {
    .library(
      DMAError(
        .invalidArgument, "simulate", byteCount: byteCount,
        detail: "The trace maps that much by one operation, and a simulation takes at most \(longestByteCount)",
        remedy: "`bench alloc` runs it without memory"))
  }
}
