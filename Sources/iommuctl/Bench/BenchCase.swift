/// The options of `bench`, by name.
enum BenchOption: String, CaseIterable {
  case threads, seconds, operations, granule, direction, node, mode, protection, translation, interface, live, workload,
    seed
  case dmaBits = "dma-bits"
  case delay = "delay-ns"
  case traceIn = "trace-in"
  case traceOut = "trace-out"

  var name: String { "--\(rawValue)" }
}

/// What is measured, as far as it decides which options have an effect.
struct BenchCase {
  /// Where operations come from.
  enum Source {
    /// The same again and again, until the time or the operations are over.
    case steady
    /// The same, as a trace that is written.
    case uniform
    case workload(Workload)
    /// A trace that was written before.
    case file
  }

  let kind: BenchKind
  let source: Source
  let mode: SteadyRun.Mode
  let hasDevice: Bool

  /// Where an option would do nothing, and why.
  struct Objection {
    let place: String, reason: String
  }

  /// What there is to say against an option; nil where it has an effect.
  func objection(to option: BenchOption) -> Objection? {
    switch option {
    case .dmaBits, .node: nil
    case .workload, .traceIn, .traceOut:
      kind == .queue || kind == .lookup ? here("workloads and traces are for `bench map` and `bench alloc`") : nil
    case .threads, .seconds, .operations, .granule, .seed: ofTheTrace(option)
    case .direction, .mode: ofTheTrace(option) ?? ofTheMemory(option)
    case .delay, .protection, .translation, .interface, .live: ofTheMemory(option)
    }
  }

  /// What a trace decides by itself.
  private func ofTheTrace(_ option: BenchOption) -> Objection? {
    switch (source, option) {
    case (.steady, .seed): kind == .lookup ? nil : here("nothing in it is random")
    case (.steady, _): nil
    case (.uniform, .seed): Objection(place: "with --trace-out alone", reason: "nothing in it is random")
    case (.uniform, .seconds): Objection(place: "with --trace-out", reason: "--operations says how long a trace is")
    case (.uniform, .mode) where mode == .coherent:
      Objection(place: "with --trace-out", reason: "traces have no coherent memory")
    case (.uniform, _): nil
    case (.workload(let workload), .seconds): Self.with(workload, "--operations says how long a workload is")
    case (.workload(.w5), .threads): Self.with(.w5, "it has one thread")
    case (.workload(.w8), .threads): Self.with(.w8, "it has 1 to 16 threads")
    case (.workload, .threads), (.workload, .operations), (.workload, .seed): nil
    case (.workload(let workload), _): Self.with(workload, "it has its own \(Self.possessions(option))")
    case (.file, .seconds):
      Objection(place: "with --trace-in", reason: "a trace is run once, from its begin to its end")
    case (.file, .seed): Objection(place: "with --trace-in", reason: "the trace has been made before")
    case (.file, _): Objection(place: "with --trace-in", reason: "the trace has its own \(Self.possessions(option))")
    }
  }

  /// What depends on whether memory is mapped, and how.
  private func ofTheMemory(_ option: BenchOption) -> Objection? {
    let isCoherent = kind == .map && mode == .coherent
    return switch (option, kind) {
    case (.direction, .alloc):
      // What is written may be run by `bench map`.
      if case .uniform = source { nil } else { here("an address has no direction") }
    case (.direction, .lookup): here("a look-up goes by the address alone")
    case (.direction, _) where isCoherent:
      Objection(place: "with --mode coherent", reason: "coherent memory goes both ways")
    case (.mode, .alloc): if case .uniform = source { nil } else { here("nothing is mapped") }
    case (.mode, .queue): here("it maps one buffer at a time")
    case (.mode, .lookup): here("it looks buffers up")
    case (.delay, .alloc): here("nothing is mapped, and addresses are released at once")
    case (.delay, .queue): here("a map and its unmap are timed as a pair, with nothing in between")
    case (.delay, .lookup): here("nothing is unmapped")
    case (.protection, .alloc): here("nothing is mapped")
    case (.protection, _) where isCoherent:
      Objection(place: "with --mode coherent", reason: "coherent memory stays mapped under every protection")
    case (.translation, .alloc), (.interface, .alloc):
      hasDevice ? nil : Objection(place: "in `bench alloc` without a device", reason: "nothing is opened")
    case (.live, .map), (.live, .queue), (.live, .alloc): here("it is for `bench lookup`")
    default: nil
    }
  }

  private func here(_ reason: String) -> Objection { Objection(place: "in `bench \(kind.rawValue)`", reason: reason) }

  private static func with(_ workload: Workload, _ reason: String) -> Objection {
    Objection(place: "with --workload \(workload.rawValue)", reason: reason)
  }

  /// What a trace has of its own in place of an option.
  private static func possessions(_ option: BenchOption) -> String {
    switch option {
    case .granule: "sizes"
    case .mode: "buffers and lists"
    default: "\(option.rawValue)\(option.rawValue.hasSuffix("s") ? "" : "s")"
    }
  }
}
