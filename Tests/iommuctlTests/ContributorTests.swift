import Foundation
import Testing

/// What a contributor types: the commands at the root of the package.
@Suite struct ContributorTests {
  private static let root = #filePath.split(separator: "/").dropLast(3).map { "/\($0)" }.joined()

  private func run(words: [String]) throws -> (status: Int32, out: String, err: String) {
    let process = Process(), out = Pipe(), err = Pipe()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.currentDirectoryURL = URL(fileURLWithPath: Self.root)
    (process.arguments, process.standardOutput, process.standardError) = (words, out, err)
    try process.run()
    // Both fit into a pipe's buffer.
    process.waitUntilExit()
    func text(_ pipe: Pipe) -> String {
      String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    }
    return (process.terminationStatus, text(out), text(err))
  }

  @Test func setUpTakesNoOtherArgument() throws {
    for words in [["pakcages"], ["packages", "more"]] {
      let result = try run(words: ["Tests/setup"] + words)
      #expect(result.status == 2 && result.out.isEmpty)
      #expect(result.err.contains("usage: setup [packages]"))
    }
  }

  @Test(arguments: ["Tests/Documentation/check", "Tests/udev/check", "Tests/Soak/check"])
  func scriptsHaveHelp(_ script: String) throws {
    let help = try run(words: [script, "--help"])
    #expect(help.status == 0 && help.err.isEmpty)
    #expect(help.out.contains("check") && !help.out.contains("\nok "), "\(help.out)")
    let wrong = try run(words: [script, "--frobnicate"])
    #expect(wrong.status == 2 && wrong.out.isEmpty && !wrong.err.isEmpty)
  }

  /// Refused before anything is built, with a sentence.
  @Test(arguments: [
    ("model --steps 0", "wants a number from 1 to "), ("model --steps -5", "wants a number from 1 to "),
    ("model --seed -1", "wants a number from 0 to "),
    ("model --seed 18446744073709551616", "wants a number from 0 to "),
    ("fuzz --runs 0", "wants a number from 1 to "), ("fuzz --seconds 0", "wants a number from 1 to "),
    ("fuzz --seconds 5 --runs 5", "not allowed with argument"),
  ])
  func soakTakesSensibleNumbersOnly(_ line: String, _ sentence: String) throws {
    let result = try run(words: ["Tests/Soak/check"] + line.split(separator: " ").map(String.init))
    #expect(result.status == 2 && result.out.isEmpty && result.err.contains(sentence), "\(result.err)")
  }

  @Test func helpNamesEveryTarget() throws {
    let lines = try textFile("\(Self.root)/Makefile").split(separator: "\n").map(String.init)
    let phony: String = try #require(lines.first { $0.hasPrefix(".PHONY: ") })
    let help = try run(words: ["make", "--no-print-directory", "help"])
    #expect(help.status == 0)
    let named = help.out.split(separator: "\n").map { String($0.split(separator: " ")[1]) }
    #expect(named == phony.split(separator: " ").dropFirst().map(String.init))
  }
}
