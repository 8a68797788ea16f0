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
