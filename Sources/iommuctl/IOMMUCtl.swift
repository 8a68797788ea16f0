import ArgumentParser
import Glibc

/// The command: its subcommands, and nothing else.
@main struct IOMMUCtl: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "iommuctl",
    abstract: "See, check, bind, test and measure PCI devices that are driven from a process through an IOMMU.",
    discussion: """
      The options --json, --simulated and --root DIR may stand before or after the subcommand.

      Exit codes: 0 fine, 1 failed, 2 wrong usage, 3 checks found problems or an action was refused, 4 no \
      permission, 5 not supported here.
      """,
    version: version,
    subcommands: [
      List.self, Groups.self, Show.self, Doctor.self, Bind.self, Unbind.self, Restore.self, Demo.self,
      SelfTest.self, Bench.self, Simulate.self,
    ])

  /// The subcommands' names.
  static let names = configuration.subcommands.map { $0._commandName }

  /// What prints the help of a subcommand; that of all where there is no such one.
  static func help(of command: String?) -> String {
    let isKnown = command.map(names.contains) ?? false
    return "iommuctl \(isKnown ? "\(command!) " : "")--help"
  }

  /// The package's version.
  static let version = "0.1.0"

  static func main() {
    let code = Program.run(Array(CommandLine.arguments.dropFirst()), Console.standard)
    Glibc.exit(code.rawValue)
  }
}

/// A subcommand: parsed by the argument parser, run by ``Program`` with a console and a machine.
protocol Subcommand: ParsableCommand {
  var global: GlobalOptions { get }
  /// Does it, and says how it went.
  func perform(_ context: Context) throws(Failure) -> Outcome
}

/// What a subcommand works with.
struct Context {
  /// The subcommand's name, for documents.
  let command: String
  let isJSON: Bool
  let console: Console
  /// The machine that `--simulated` stands for.
  let simulation: Simulation

  /// A document on stdout, begun with the keys that all have.
  func document(_ keys: [(String, JSON)]) {
    console.out(JSON.object([("schema", 1), ("command", .string(command))] + keys).text + "\n")
  }

  /// A line on stdout; nothing in JSON mode, where the document is all.
  func say(_ line: String = "") { if !isJSON { console.out(line + "\n") } }

  /// Says that debug mode is on, and what follows from that.
  func sayDebugged(_ consequence: String) { say("debug mode is on (SWIFT_IOMMU_DEBUG): \(consequence)") }
}
