import Glibc
import IOMMU
import IOMMUSimulation
import StressRuntime

/// `stress [--seconds N] [--threads N] [--seed N]`: threads that do everything at once, for ThreadSanitizer to watch.
///
/// Each scenario has an equal share of the time. A scenario fails when something was lost, given out twice, or left behind; a
/// data race is the sanitizer's to find. With `SWIFT_IOMMU_DEBUG=1` all of them run in debug mode. The last line is
/// `N passed, N failed`.
@main
enum Main {
  static let usage = "usage: stress [--seconds N] [--threads N] [--seed N]"

  static func main() {
    var options = ["--seconds": 10, "--threads": 4, "--seed": 20_261]
    let words = Array(CommandLine.arguments.dropFirst())
    for index in stride(from: 0, to: words.count, by: 2) {
      guard options[words[index]] != nil, index + 1 < words.count, let number = Int(words[index + 1]), number > 0 else {
        print(usage)
        exit(2)
      }
      options[words[index]] = number
    }
    let scenarios = Scenario.all
    var failed = 0
    for scenario in scenarios {
      let run = Run(
        nanoseconds: UInt64(options["--seconds"]!) * 1_000_000_000 / UInt64(scenarios.count),
        threads: options["--threads"]!, seed: UInt64(options["--seed"]!))
      let failure: String?
      do { failure = try scenario.body(run) } catch { failure = "\(error)" }
      print("\(failure == nil ? "ok" : "FAIL") \(scenario.name): \(failure ?? "\(run.operations) operations")")
      failed += failure == nil ? 0 : 1
    }
    print("\(scenarios.count - failed) passed, \(failed) failed")
    exit(failed == 0 ? 0 : 1)
  }
}

/// What is done all at once; the answer says what went wrong.
struct Scenario: Sendable {
  let name: String
  let body: @Sendable (Run) throws -> String?

  private static let nested = [("SMMUv3", SimulatedMachine.smmuv3Nested), ("VT-d", .vtdNested)]

  static let all =
    nested.flatMap { name, machine in
      [
        Scenario(name: "switching under load, \(name)") { try Load(nested: machine).switching($0) },
        Scenario(name: "closing under load, \(name)") { try Load(nested: machine).closing($0) },
        Scenario(name: "forks under load, \(name)") { try Load(nested: machine).forking($0) },
      ]
    }
    + Interface.allCases.flatMap { interface in
      [
        Scenario(name: "switching under load, \(interface.rawValue)") { try Load(interface).switching($0) },
        Scenario(name: "closing under load, \(interface.rawValue)") { try Load(interface).closing($0) },
        Scenario(name: "forks under load, \(interface.rawValue)") { try Load(interface).forking($0) },
      ]
    } + [
      Scenario(name: "switching under load, debug mode") { try Load(.iommufd, isDebugged: true).switching($0) },
      Scenario(name: "closing under load, debug mode") { try Load(.type1, isDebugged: true).closing($0) },
      Scenario(name: "threads in one tree of tables") { try Trees().run($0) },
      Scenario(name: "addresses that wander, SMMUv3") { try Wandering(.smmuv3Nested).run($0) },
      Scenario(name: "addresses that wander, VT-d") { try Wandering(.vtdNested).run($0) },
      Scenario(name: "threads that end with full magazines") { try Allocation().endingThreads($0) },
      Scenario(name: "threads that change processors") { try Allocation().movingThreads($0) },
    ]
}
