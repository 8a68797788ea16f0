import ConformanceSuite
import Glibc
import IOMMU
import IOMMUSimulation

/// A machine with one of its interfaces.
struct Row {
  let options: Options

  init(_ options: Options) { self.options = options }

  /// Returns the exit code.
  func run() throws -> Int32 {
    if options.listsOnly {
      for item in options.suites.flatMap(\.cases) { write("\(item.suite.rawValue) \(item.name)\n", to: 1) }
      return 0
    }
    if let device = options.holds {
      try ClosingProcess(
        device, interface: options.interface, translation: options.translation, mapCount: options.mapCount,
        end: options.end
      ).run()
      return 0
    }
    var environment = try environment()
    (environment.steps, environment.seed) = (options.steps, options.seed)
    environment.say = { write($0 + "\n", to: 1) }
    if options.grants { try environment.grant() }
    if options.bindsOnly { return 0 }
    let runner = Runner(environment) { write($0 + "\n", to: 1) }
    let outcomes = runner.run(options.suites, filter: options.filter)
    report(runner.json(outcomes))
    return outcomes.contains { $0.verdict == .fail } ? 1 : 0
  }

  private func environment() throws -> Environment {
    if options.isSimulated {
      return .simulated(
        options.machine ?? "vtd-legacy", interface: options.interface, translation: options.translation,
        unprivileged: options.suites == [.unprivileged])
    }
    return try .live(
      options.machine ?? "unknown", interface: options.interface, translation: options.translation)
  }

  private func report(_ row: String) {
    switch options.json {
    case nil: write("RESULT \(row)\n", to: 1)
    case "-"?: write("\(row)\n", to: 1)
    case let path?:
      let file = unsafe open(path, O_WRONLY | O_CREAT | O_TRUNC, 0o644)
      write("\(row)\n", to: file)
      close(file)
    }
  }
}
