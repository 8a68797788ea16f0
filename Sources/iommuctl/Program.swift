import ArgumentParser
import IOMMU

/// From arguments to an exit code: parses, runs, and tells of errors in the form that was asked for.
package enum Program {
  package static func run(
    _ arguments: [String], _ console: Console, simulation: Simulation = .standard
  ) -> Outcome {
    let (others, options, rest) = GlobalOptions.sorted(arguments)
    // Before parsing, since an error of the parser must come in JSON as well.
    let isJSON = options.contains("--json")
    let parsed: any ParsableCommand
    do {
      if let error = wrongSubcommand(others, options, isJSON) { throw error }
      // Options alone ask for help, as nothing at all does: the root of the parser knows none of them.
      var command = try IOMMUCtl.parseAsRoot(others.isEmpty ? rest : others + options + rest)
      guard command is any Subcommand else {
        try command.run()  // Help, always thrown.
        return .fine
      }
      parsed = command
    } catch { return parserAnswer(error, isJSON, others, console) }
    guard let command = parsed as? any Subcommand else { return .failed }
    let context = Context(
      command: type(of: command)._commandName, isJSON: isJSON, console: console, simulation: simulation)
    do throws(Failure) {
      return try Host.$isAskedFromShell.withValue(true) {
        Result { () throws(Failure) in try command.perform(context) }
      }.get()
    } catch {
      error.tell(console, command: context.command, isJSON: isJSON)
      return error.status
    }
  }

  /// What is wrong with the first word. Told here, since the parser would complain of an option that stands there too.
  private static func wrongSubcommand(_ words: [String], _ options: [String], _ isJSON: Bool) -> ValidationError? {
    // `help` asks of the one behind it.
    let word = words.first == "help" ? words.dropFirst().first ?? "help" : words.first
    let names = IOMMUCtl.names, list = "The subcommands are \(names.joined(separator: ", "))."
    guard let word else {
      if let error = GlobalOptions.mistake(options) { return ValidationError(error) }
      // Help is no document.
      return isJSON ? ValidationError("A subcommand is missing. \(list)") : nil
    }
    if word.hasPrefix("-") || word == "help" || names.contains(word) { return nil }
    let question = Spelling.question(Spelling.nearest(word, among: names))
    return ValidationError("Unknown subcommand '\(word)'. \(list)\(question)")
  }

  /// Help and the version go to stdout and are fine; all else is wrong usage.
  private static func parserAnswer(
    _ error: any Error, _ isJSON: Bool, _ words: [String], _ console: Console
  ) -> Outcome {
    let text = IOMMUCtl.fullMessage(for: error)
    if IOMMUCtl.exitCode(for: error) == .success {
      console.out(text + "\n")
      return .fine
    }
    let isOption = words.first?.hasPrefix("-") ?? true
    let command = isOption ? words.first(where: IOMMUCtl.names.contains) : words.first
    let unknown = isOption || IOMMUCtl.names.contains(command!) ? Spelling.unknownOption(in: words) : nil
    guard isJSON else {
      // How it is used stands behind what is wrong.
      let usage = unknown == nil ? nil : text.firstRange(of: "\nUsage: ").map { text[$0.lowerBound...] }
      console.err((unknown.map { "Error: \($0)\(usage ?? "")" } ?? text) + "\n")
      return .usage
    }
    let failure = Failure.usage(unknown ?? IOMMUCtl.message(for: error))
    failure.tell(console, command: command, isJSON: true)
    return failure.status
  }
}
