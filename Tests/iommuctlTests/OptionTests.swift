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
    for name in ["list", "groups", "show", "doctor", "bind", "unbind", "restore", "demo", "selftest"] {
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
