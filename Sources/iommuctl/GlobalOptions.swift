public import ArgumentParser
public import IOMMU

/// The options that every subcommand has.
struct GlobalOptions: ParsableArguments {
  @Flag(help: "Write one JSON document to stdout, and errors as JSON to stderr.") var json = false
  @Option(help: ArgumentHelp("Read this directory instead of this machine's files.", valueName: "dir"))
  var root: String?
  @Flag(help: "Use a simulated machine, which exists only in this process.") var simulated = false

  func validate() throws {
    if simulated, root != nil { throw ValidationError("--simulated and --root exclude each other.") }
    if root == "" { throw ValidationError("--root wants a directory.") }
  }

  /// As they are written.
  static let names = ["--json", "--simulated", "--root"]

  /// What is wrong with these options alone; nil when nothing is.
  static func mistake(_ options: [String]) -> String? {
    do { _ = try parse(options) } catch { return message(for: error) }
    return nil
  }

  /// Takes these options out of the others, so that they may stand before the subcommand as well, which reads them
  /// behind its own. The last part is `--` and all that follows it.
  static func sorted(_ arguments: [String]) -> (others: [String], options: [String], rest: [String]) {
    var others: [String] = [], options: [String] = [], rest = arguments[...]
    while let argument = rest.popFirst() {
      if argument == "--" {
        return (others, options, [argument] + rest)
      } else if argument == "--json" || argument == "--simulated" || argument.hasPrefix("--root=") {
        options.append(argument)
      } else if argument == "--root" {
        options.append(argument)
        // An option in the place of the directory is the parser's to complain about.
        if let next = rest.first, !next.hasPrefix("-") { options.append(rest.removeFirst()) }
      } else {
        others.append(argument)
      }
    }
    return (others, options, [])
  }
}

extension PCIAddress: ExpressibleByArgument {
  /// A device in any usual form.
  public init?(argument: String) { self.init(argument) }
}

extension Interface: ExpressibleByArgument {}
extension TranslationChoice: ExpressibleByArgument {}
