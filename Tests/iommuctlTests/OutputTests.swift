import CapturedTrees
import IOMMU
import Testing
import iommuctl

@Suite struct OutputTests {
  @Test(arguments: [
    ("list", "list"), ("groups", "groups"), ("show 1:0.0", "show"), ("bind 2:0.0 --dry-run", "bind-dry-run"),
    ("doctor 1:0.0", "doctor"),
  ])
  func tables(_ line: String, _ name: String) throws {
    let tree = try WrittenTree(.small)
    let result = Invocation("--root \(tree.root) \(line)")
    #expect(try result.out == golden(name))
  }

  /// What binding a device takes besides is said of its status, not of an interface that nothing chose yet.
  @Test func theReasonsOfShow() throws {
    let tree = try WrittenTree(.small)
    let shown = try Invocation("--json --root \(tree.root) show 1:0.1").document
    #expect(shown["status"].text == "bindable")
    #expect(shown["interface"]["reason"].text == "Chosen once the device is bound to vfio-pci")
    var held = CapturedTree.small
    func link(_ address: String) throws -> String {
      try #require(held.paths.first { $0.hasPrefix("/sys/devices/") && $0.hasSuffix("/\(address)/driver") })
    }
    held.entries[try link("0000:01:00.0")] = held.entries[try link("0000:02:00.0")]
    let other = try WrittenTree(held)
    let shared = try Invocation("--json --root \(other.root) show 1:0.1").document
    #expect(shared["reason"].text == "Binding its group takes 0000:01:00.0 (example) as well")
    #expect(shared["interface"]["reason"].text == "Chosen once the device is bound to vfio-pci")
    #expect(
      Invocation("--root \(other.root) groups").out.contains("no      0000:01:00.0 (example)  0000:01:00.0 (example), ")
    )
  }

  @Test func doctorOfTheMachineSpeaksOfItsDevices() throws {
    let tree = try WrittenTree(.small)
    let result = Invocation("--root \(tree.root) doctor")
    #expect(result.out.hasSuffix("\nverdict: fail, devices of this machine cannot be driven: group-viable\n"))
    let shared = Invocation("--root \(tree.root) doctor 1:0.1")
    #expect(shared.out.contains("[ok]     group-viable: No other device of group 7 belongs to the host.\n"))
  }

  @Test func textIsEscaped() throws {
    let text = "\"quoted\" \\ tab\t line\n return\r bell\u{7} delete\u{7f} ü 🦉"
    let written = JSON.object([("key \"k\"", .string(text))]).text
    #expect(try Document(parsing: written)["key \"k\""].text == text)
    #expect(written.utf8.allSatisfy { $0 >= 0x20 && $0 != 0x7f })
  }

  @Test func numbersAreWhole() throws {
    let value: JSON = [.uint(.max), .int(.min), 0, true, .null, [], [:]]
    #expect(value.text == "[18446744073709551615, -9223372036854775808, 0, true, null, [], {}]")
  }

  @Test func nestedValuesTakeLines() {
    let value: JSON = ["a": 1, "b": [["c": 2], ["c": 3]]]
    #expect(value.text == "{\n  \"a\": 1,\n  \"b\": [\n    {\"c\": 2},\n    {\"c\": 3}\n  ]\n}")
  }
}
