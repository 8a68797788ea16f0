import ArgumentParser
import IOMMU

/// Measures mapping and unmapping, with the parameters and the two lines of the kernel's benchmark.
struct Bench: Subcommand {
  static let configuration = CommandConfiguration(
    abstract: "Measure what mapping, unmapping, address allocation and look-up cost.",
    discussion: """
      WHAT is one of:
        map     a map and its unmap, as the kernel's dma_map_benchmark does it
        queue   the same through the flush queue, timed as a pair
        alloc   an address and its release, without a device
        lookup  an address of the device to the memory behind it

      Without a device, map, queue and lookup run on the simulated machine. Latencies are measured on this machine's \
      clock, less what reading it costs; on a simulated machine they are those of this library and of the \
      simulation, and tell nothing of hardware. Counts hold for the hardware as well: they include what it takes to \
      end every unmap that a lazy protection has postponed.

      --workload W1 … W9 runs what a kind of driver does, --trace-out keeps what is run, --trace-in runs it again.

      An option that would do nothing in what is measured is refused.
      """)

  @OptionGroup var global: GlobalOptions
  @Argument(help: ArgumentHelp("What to measure: alloc, map, lookup or queue.", valueName: "what")) var kind: BenchKind
  @Argument(help: "A device that is bound to vfio-pci.") var device: PCIAddress?
  @OptionGroup var options: BenchOptions

  func validate() throws {
    let measured = BenchCase(kind: kind, source: options.source, mode: options.mode, hasDevice: device != nil)
    for option in options.given {
      guard let objection = measured.objection(to: option) else { continue }
      throw ValidationError("\(option.name) does nothing \(objection.place): \(objection.reason).")
    }
    if options.node != nil, kind != .alloc, isSimulated {
      throw ValidationError(
        "--node does nothing on a simulated machine, which has no NUMA nodes: it is for `bench alloc` and real devices."
      )
    }
    if options.workload == .w6, let threads = options.givenThreads, threads % 2 == 1 {
      throw ValidationError(
        "--threads wants an even number with --workload W6: of each two threads one maps, and the other unmaps.")
    }
    if let file = options.traceIn, let other = options.traceOut, OutputFile.isSame(file, other) {
      throw ValidationError("--trace-out \(other) is the file that --trace-in reads: it would be written over.")
    }
    if kind == .queue, let protection = options.protection, [.strict, .persistent, .bounce].contains(protection) {
      throw ValidationError(
        "--protection \(protection.rawValue) has no flush queue: `bench queue` wants lazy-per-cpu, lazy-single or automatic."
      )
    }
  }

  private var isSimulated: Bool { global.simulated || (device == nil && global.root == nil) }

  func perform(_ context: Context) throws(Failure) -> Outcome {
    let trace = try options.trace()
    let isDriven = kind != .alloc || device != nil
    let machine = isSimulated ? context.simulatedMachine() : try context.machineToDrive(global)
    var run = BenchRun(kind: kind, options: options, trace: trace, machine: machine)
    if let node = options.node { run.processors = try processors(of: node) }
    try run.checkMemory()
    var report = BenchReport(run: run)
    if isDriven {
      let address = device ?? PCIAddress(Simulation.edu)!
      try run.drive(address.description, &report)
    } else {
      try run.keepTrace()
      try library { () throws(DMAError) in try run.allocate(&report) }
    }
    report.tell(context)
    return .fine
  }

  /// The processors of a NUMA node, of this machine in any case.
  private func processors(of node: Int) throws(Failure) -> [UInt32] {
    let path = "/sys/devices/system/node/node\(node)/cpulist"
    return try library { () throws(DMAError) -> [UInt32] in
      do throws(Errno) {
        let text = String(decoding: try LiveKernel().readFile(path), as: UTF8.self)
        return ProcessorList.numbers(text)
      } catch {
        throw DMAError(.system, "find NUMA node", errno: error, detail: path, remedy: "`lscpu` lists the nodes")
      }
    }
  }
}

/// What sysfs writes: `0-3,8,10-11`.
enum ProcessorList {
  static func numbers(_ text: String) -> [UInt32] {
    text.split { $0 == "," || $0 == "\n" }.flatMap { part -> [UInt32] in
      let ends = part.split(separator: "-").compactMap { UInt32($0) }
      guard let first = ends.first, let last = ends.last, first <= last, last < 1024 else { return [] }
      return Array(first...last)
    }
  }
}
