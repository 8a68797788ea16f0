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

  // MARK: - The kernel's log

  private static let device = PCIAddress("0000:00:02.0")!

  @Test(arguments: [
    (
      ["DMAR: [DMA Write NO_PASID] Request device [00:02.0] fault addr 0xffbf000 [fault reason 0x05] PTE"],
      true
    ),
    (
      ["DMAR: [DMA Read NO_PASID] Request device [0000:00:02.0] fault addr 0xffbf000 [fault reason 0x06]"],
      false
    ),
    (
      [
        "arm-smmu-v3 x: event: F_TRANSLATION client: 0000:00:02.0 sid: 0x10 ssid: 0x0 iova: 0xffbf010 ipa: 0x0",
        "arm-smmu-v3 x: unpriv data write s1 \"Input address caused fault\" stag: 0x0",
      ], true
    ),
    (["virtio_iommu virtio0: page fault from EP 16 at 0xffbf000 [W]"], true),
    (["virtio_iommu virtio0: page fault from EP 16 at 0xffbf000 [R]"], false),
  ])
  func faultLines(_ lines: [String], isWrite: Bool) {
    let faults = FaultLog.faults(["usb 1-1: new device"] + lines, of: Self.device)
    #expect(faults.count == 1)
    #expect(faults.first.map { $0.iova & ~0xfff } == 0xffbf000)
    #expect(faults.first?.isWrite == isWrite)
  }

  @Test func faultsOfOthersAndOfOnePageAreNotRepeated() {
    let line = "DMAR: [DMA Write NO_PASID] Request device [00:02.0] fault addr 0xffbf000 [fault reason 0x05]"
    #expect(FaultLog.faults([line, line], of: Self.device).count == 1)
    #expect(FaultLog.faults([line], of: PCIAddress("0000:00:03.0")!).isEmpty)
    #expect(FaultLog.faults(["Request device [", "fault addr 0x", "event: F_"], of: Self.device).isEmpty)
  }
}
