import ArgumentParser
import IOMMU

/// From arguments to an exit code: parses, runs, and tells of errors in the form that was asked for.
package enum Program {
  package static func run(
    _ arguments: [String], _ console: Console, simulation: Simulation = .standard
  ) -> Outcome {
    let arguments = GlobalOptions.hoisted(arguments)
    // Before parsing, since an error of the parser must come in JSON as well.
    let isJSON = arguments.prefix { $0 != "--" }.contains("--json")
    let parsed: any ParsableCommand
    do {
      var command = try IOMMUCtl.parseAsRoot(arguments)
      guard command is any Subcommand else {
        try command.run()  // Help, always thrown.
        return .fine
      }
      parsed = command
    } catch { return parserAnswer(error, isJSON, arguments.first { !$0.hasPrefix("-") }, console) }
    guard let command = parsed as? any Subcommand else { return .failed }
    let context = Context(
      command: type(of: command)._commandName, isJSON: isJSON, console: console, simulation: simulation)
    do throws(Failure) {
      return try command.perform(context)
    } catch {
      error.tell(console, command: context.command, isJSON: isJSON)
      return error.status
    }
  }

  /// Help goes to stdout and is fine; all else is wrong usage.
  private static func parserAnswer(
    _ error: any Error, _ isJSON: Bool, _ command: String?, _ console: Console
  ) -> Outcome {
    let text = IOMMUCtl.fullMessage(for: error)
    if IOMMUCtl.exitCode(for: error) == .success {
      console.out(text + "\n")
      return .fine
    }
    guard isJSON else {
      console.err(text + "\n")
      return .usage
    }
    let failure = Failure.usage(IOMMUCtl.message(for: error))
    failure.tell(console, command: command, isJSON: true)
    return failure.status
  }
}
