import ArgumentParser

/// Finds what is misspelt in a command line, and what it was meant to be.
enum Spelling {
  /// The first option that neither the subcommand nor the program has, in a sentence; nil when all are known.
  ///
  /// For command lines that the parser has refused: it takes the value of an option that it does not know for an argument, and
  /// then complains of that one.
  static func unknownOption(in words: [String]) -> String? {
    if words.contains("help") { return nil }
    let general = GlobalOptions.names + options(of: IOMMUCtl.self),
      place = words.firstIndex(where: IOMMUCtl.names.contains)
    let command = place.flatMap { place in
      IOMMUCtl.configuration.subcommands.first { $0._commandName == words[place] }
    }
    let known = general + (command.map(options) ?? [])
    for (index, word) in words.enumerated() where isOption(word) {
      let name = String(word.prefix { $0 != "=" })
      guard known.contains(name) else { return "Unknown option '\(name)'.\(question(nearest(name, among: known)))" }
      if let place, index < place, !general.contains(name) {
        return "\(name) is an option of \(words[place]), and stands behind that word."
      }
    }
    return nil
  }

  /// Asks whether something else was meant.
  static func question(_ candidate: String?) -> String { candidate.map { " Did you mean '\($0)'?" } ?? "" }

  /// The candidate that is at most two letters changed, missing, added or swapped away, and at most half of its own; nil when
  /// there is none.
  static func nearest(_ word: String, among candidates: [String]) -> String? {
    let letters = bare(word)
    let found = candidates.map { ($0, distance(letters, bare($0))) }.min { $0.1 < $1.1 }
    guard let (candidate, distance) = found, distance <= min(2, bare(candidate).count / 2) else { return nil }
    return candidate
  }

  /// Not a number that is below zero.
  private static func isOption(_ word: String) -> Bool {
    word.hasPrefix("-") && word.drop { $0 == "-" }.first?.isLetter == true
  }

  private static func bare(_ word: String) -> [Character] { Array(word.drop { $0 == "-" }) }

  /// Those that a command's help lists.
  private static func options(of command: any ParsableCommand.Type) -> [String] {
    let lines = command.helpMessage(columns: 120).split(separator: "\n").filter { $0.hasPrefix("  -") }
    return lines.flatMap { line in
      line.split { $0 == " " || $0 == "," || $0 == "/" }.prefix { $0.hasPrefix("-") }.map(String.init)
    }
  }

  /// The optimal string alignment distance: letters changed, missing, added, or swapped with the next.
  private static func distance(_ first: [Character], _ second: [Character]) -> Int {
    var rows = [Array(0...second.count)]
    for (i, letter) in first.enumerated() {
      var row = [i + 1]
      for (j, other) in second.enumerated() {
        var best = min(rows[i][j + 1] + 1, row[j] + 1, rows[i][j] + (letter == other ? 0 : 1))
        if i > 0, j > 0, letter == second[j - 1], first[i - 1] == other { best = min(best, rows[i - 1][j - 1] + 1) }
        row.append(best)
      }
      rows.append(row)
    }
    return rows[first.count][second.count]
  }
}
