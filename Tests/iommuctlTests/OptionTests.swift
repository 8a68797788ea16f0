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
    "--help", "-h", "help", "list --help", "help selftest", "--json --help", "demo -h", "bind --help",
  ])
  func helpIsFine(_ line: String) {
    let result = Invocation(line)
    #expect(result.status == .fine)
    #expect(result.out.contains("USAGE: iommuctl"))
    #expect(result.err.isEmpty)
  }

  @Test func helpNamesEverySubcommand() {
    let help = Invocation("--help").out
    for name in ["list", "groups", "show", "doctor", "bind", "unbind", "restore", "demo", "selftest", "bench"] {
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
