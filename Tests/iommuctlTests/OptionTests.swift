import Testing
import iommuctl

@Suite struct OptionTests {
  @Test(arguments: [
    "list --simulated --json", "--simulated --json list", "--json list --simulated",
    "--simulated list --json",
  ])
  func globalOptionsStandAnywhere(_ line: String) throws {
    let result = Invocation(line)
    #expect(result.status == .fine)
    #expect(try result.document["devices"].list.count == 2)
    #expect(result.err.isEmpty)
  }

  @Test(arguments: [
    "--root R show 1:0.0", "show --root R 1:0.0", "show 1:0.0 --root=R", "--root=R show 1:0.0",
  ])
  func rootStandsAnywhere(_ line: String) throws {
    let tree = try WrittenTree(.small)
    let result = Invocation(line.replacing("R", with: tree.root))
    #expect(result.status == .fine, "\(result.err)")
    #expect(result.out.contains("f0f1:0001"))
  }

  @Test(arguments: [
    "--help", "-h", "help", "help help", "list --help", "help selftest", "--json --help", "demo -h", "bind --help",
  ])
  func helpIsFine(_ line: String) {
    let result = Invocation(line)
    #expect(result.status == .fine)
    #expect(result.out.contains("USAGE: iommuctl"))
    #expect(result.err.isEmpty)
  }

  @Test func helpNamesEverySubcommand() {
    let help = Invocation("--help").out
    for name in [
      "list", "groups", "show", "doctor", "bind", "unbind", "restore", "demo", "selftest", "bench", "simulate",
    ] {
      #expect(help.contains("  \(name) "))
    }
  }

  @Test(arguments: [
    "frobnicate", "list --frobnicate", "show", "show not-an-address", "show 0:2.9", "bind", "selftest",
    "list --root", "list --root --json", "demo --interface vhost", "list extra", "--simulated --root /x list",
    "doctor 0:2.0 0:3.0", "list --json=yes",
  ])
  func wrongUsageIsTwo(_ line: String) {
    let result = Invocation(line)
    #expect(result.status == .usage)
    #expect(result.out.isEmpty)
    #expect(!result.err.isEmpty)
  }

  /// An option that may stand before the subcommand is not what is wrong with it.
  @Test(arguments: ["lst", "--simulated lst", "lst --simulated", "--root /x lst", "--simulated lst 0:2.0 --dry-run"])
  func aWrongSubcommandIsNamed(_ line: String) {
    let result = Invocation(line)
    #expect(result.status == .usage)
    #expect(result.out.isEmpty)
    #expect(result.err.hasPrefix("Error: Unknown subcommand 'lst'. The subcommands are list, groups, show, "))
    #expect(!result.err.contains("option '"))
    #expect(result.err.contains(", bench, simulate. Did you mean 'list'?\n"))
  }

  @Test(arguments: ["help lst", "help lst extra", "--simulated help lst", "help --json lst"])
  func helpOfAWrongSubcommand(_ line: String) {
    let result = Invocation(line)
    #expect(result.status == .usage && result.out.isEmpty)
    #expect(result.err.contains("Unknown subcommand 'lst'.") && result.err.contains("Did you mean 'list'?"))
  }

  @Test(arguments: [
    ("shwo", "show"), ("bnd", "bind"), ("slftst", "selftest"), ("benhc", "bench"), ("doctors", "doctor"),
  ])
  func aSubcommandNearby(_ word: String, _ name: String) {
    #expect(Invocation(word).err.contains(" Did you mean '\(name)'?\n"))
  }

  @Test(arguments: ["frobnicate", "xxx", "b", "rebind-it", "listing"])
  func noSubcommandNearby(_ word: String) {
    let result = Invocation(word)
    #expect(result.status == .usage && !result.err.contains("Did you mean"), "\(result.err)")
  }

  /// What the parser takes for an argument, since it does not know the option before it, is not what is wrong.
  @Test(arguments: [
    ("bench --granul 4 map", "--granul", "--granule"), ("show --jsn x", "--jsn", "--json"),
    ("bench --granul=4 map 0:2.9", "--granul", "--granule"), ("bench map --thread 4", "--thread", "--threads"),
    ("show --no-opne 1:0.0", "--no-opne", "--no-open"), ("--simulatd list", "--simulatd", "--simulated"),
    ("--simulatd", "--simulatd", "--simulated"), ("--jsn --simulated list", "--jsn", "--json"),
    ("--simulatd lst", "--simulatd", "--simulated"), ("list -jsn", "-jsn", "--json"),
    ("bind --dryrun 0:2.0", "--dryrun", "--dry-run"),
  ])
  func anUnknownOptionIsNamed(_ line: String, _ option: String, _ meant: String) throws {
    let result = Invocation(line)
    #expect(result.status == .usage && result.out.isEmpty)
    #expect(
      result.err.hasPrefix("Error: Unknown option '\(option)'. Did you mean '\(meant)'?\nUsage: iommuctl"),
      "\(result.err)")
    let document = Invocation("--json " + line)
    #expect(try document.error["detail"].text == "Unknown option '\(option)'. Did you mean '\(meant)'?")
  }

  @Test func theUsageBesideIsTheSubcommands() throws {
    let result = Invocation("bench --granul 4 map")
    #expect(result.err.contains("\nUsage: iommuctl bench ") && result.err.contains("'iommuctl bench --help'"))
    let document = try Document(parsing: Invocation("--json --granul 4 bench map").err)
    #expect(document["command"].text == "bench" && document["error"]["remedy"].text == "iommuctl bench --help")
    #expect(try Invocation("--json frobnicate").error["remedy"].text == "iommuctl --help")
  }

  /// What is no option, or is known, is left to the parser.
  @Test func otherMistakesAreTheParsersToTell() {
    let negative = Invocation("bench map --threads -1")
    #expect(negative.status == .usage && negative.err.hasPrefix("Error: Missing value for '--threads <threads>'\n"))
    #expect(Invocation("show 0:2.9 --no-open").err.contains("'0:2.9'"))
    #expect(Invocation("list --frobnicate").err.hasPrefix("Error: Unknown option '--frobnicate'.\n"))
    let early = Invocation("--threads 4 bench map")
    #expect(early.err.hasPrefix("Error: --threads is an option of bench, and stands behind that word.\n"))
  }

  @Test func aWrongSubcommandInJSON() throws {
    let wrong = Invocation("--json --simulated lst")
    #expect(wrong.status == .usage)
    #expect(try Document(parsing: wrong.err)["command"].text == "lst")
    #expect(try wrong.error["code"].text == "usage")
    #expect(try wrong.error["detail"].text?.hasPrefix("Unknown subcommand 'lst'.") == true)
    let missing = Invocation("--root x --json")
    #expect(missing.status == .usage && missing.out.isEmpty)
    #expect(try Document(parsing: missing.err)["command"].isNull)
    #expect(try missing.error["detail"].text?.hasPrefix("A subcommand is missing.") == true)
  }

  /// Options alone are no more than nothing at all; what is wrong with them is said.
  @Test func withoutASubcommandThereIsHelp() {
    for line in ["", "--simulated", "--root x"] {
      let result = Invocation(line)
      #expect(result.status == .fine, "\(line)")
      #expect(result.out.contains("USAGE: iommuctl") && result.err.isEmpty)
    }
    for line in ["--root", "--simulated --root x"] {
      let result = Invocation(line)
      #expect(result.status == .usage, "\(line)")
      #expect(result.out.isEmpty && result.err.contains("--root"))
    }
  }

  @Test(arguments: ["--version", "--simulated --version", "--version --json"])
  func theVersion(_ line: String) {
    let result = Invocation(line)
    #expect(result.status == .fine)
    #expect(result.out == "0.1.0\n")
  }

  @Test func helpExplainsWhatTablesSay() {
    let list = Invocation("list --help").out
    for status in ["ready ", "bindable ", "blocked ", "unknown "] {
      #expect(list.contains("\n  \(status)"), "\(list)")
    }
    let groups = Invocation("groups --help").out
    #expect(groups.contains("VIABLE NOW") && groups.contains("HELD BY"))
    #expect(Invocation("bind --help").out.contains("until restore or a reboot"))
  }

  @Test func wrongUsageInJSON() throws {
    let result = Invocation("--json show not-an-address")
    #expect(result.status == .usage)
    let document = try Document(parsing: result.err)
    #expect(document["schema"].number == 1)
    #expect(document["command"].text == "show")
    #expect(document["error"]["code"].text == "usage")
    #expect(document["error"]["detail"].text?.contains("not-an-address") == true)
  }

  @Test func behindTwoDashesNothingIsAnOption() {
    let result = Invocation("list --simulated -- --json")
    #expect(result.status == .usage)
    #expect(!result.err.hasPrefix("{"))
  }
}
