import IOMMU
import IOMMUSimulation
import Synchronization
import iommuctl

/// What came of a command line.
struct Invocation {
  let status: Outcome
  let out: String
  let err: String

  /// Runs a command line in this process, its words between spaces.
  init(_ line: String, simulation: Simulation = .standard) {
    let console = RecordedConsole()
    status = Program.run(
      line.split(separator: " ").map(String.init), console.console, simulation: simulation)
    (out, err) = (console.out, console.err)
  }

  /// The document on stdout.
  var document: Document { get throws { try Document(parsing: out) } }
  /// The error on stderr.
  var error: Document { get throws { try Document(parsing: err)["error"] } }
}

extension Simulation {
  /// Machines on which the n-th call of a name, and each after it, is EIO.
  static func failing(from n: Int, of call: String) -> Simulation {
    var simulation = standard
    simulation.kernel = { kernel in
      let failing = FaultingKernel(kernel)
      failing.failFrom(n, of: call, with: .inputOutput)
      return failing
    }
    return simulation
  }
}

/// A console that keeps what is written.
private final class RecordedConsole: Sendable {
  private let texts = Mutex((out: "", err: ""))

  var console: Console {
    Console(
      out: { text in self.texts.withLock { $0.out += text } },
      err: { text in self.texts.withLock { $0.err += text } })
  }
  var out: String { texts.withLock(\.out) }
  var err: String { texts.withLock(\.err) }
}

extension Simulation {
  /// The standard machine with something changed.
  static func changed(_ change: (inout SimulatedMachine) -> Void) -> Simulation {
    var simulation = Simulation.standard
    change(&simulation.machine)
    return simulation
  }
}
