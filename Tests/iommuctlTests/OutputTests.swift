import CapturedTrees
import IOMMU
import IOMMUSimulation
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
      Invocation("--root \(other.root) groups").out.contains(
        "no          0000:01:00.0 (example)  0000:01:00.0 (example), ")
    )
  }

  /// Blocked is a verdict without a reason: where to find that is said, and not where nothing is blocked.
  @Test func listSaysWhereTheReasonsAre() throws {
    let tree = try WrittenTree(.small)
    let result = Invocation("--root \(tree.root) list")
    #expect(result.err == "1 device is blocked; `iommuctl doctor ADDRESS` says why\n")
    #expect(Invocation("--json --root \(tree.root) list").err.isEmpty)
    #expect(Invocation("--simulated list").err.isEmpty)
    let server = try WrittenTree(.fixture("vtd-laptop"))
    #expect(Invocation("--root \(server.root) list").err.contains(" devices are blocked; "))
  }

  @Test func listOfASimulatedMachineSendsToIt() {
    let result = Invocation("--simulated list", simulation: .changed { $0.iommu = nil })
    #expect(result.err == "2 devices are blocked; `iommuctl --simulated doctor ADDRESS` says why\n")
  }

  /// So does a group that is not viable, with what to do about it where that would last.
  @Test func groupsSayWhatHoldsThem() throws {
    let tree = try WrittenTree(.small)
    #expect(
      Invocation("--root \(tree.root) groups").err
        == "2 groups are not viable: a driver of the host's has the device in HELD BY; "
        + "`sudo iommuctl bind ADDRESS` gives all of a group to vfio-pci\n")
    #expect(
      Invocation("--simulated groups").err
        == "1 group is not viable: a driver of the host's has the device in HELD BY\n")
    #expect(Invocation("--json --simulated groups").err.isEmpty)
    #expect(Invocation("--simulated groups", simulation: .changed { $0.devices[1].driver = nil }).err.isEmpty)
  }

  /// Who asks from a shell has no `host` to call, and the next command another machine.
  @Test(arguments: ["selftest 0:3.0", "bench map 0:3.0 --operations 1", "doctor 0:3.0", "demo 0:3.0"])
  func remediesAreForAShell(_ line: String) {
    let result = Invocation("--simulated \(line)")
    let text = result.out + result.err
    #expect(!text.contains("host."), "\(text)")
    let isOther = line.hasPrefix("demo")
    #expect(
      isOther
        || text.contains("as --simulated makes a new machine for each command; or name 0000:00:02.0, which is ready"))
    #expect(!isOther || text.contains(". `iommuctl demo` takes the simulated machine's own, 0000:00:02.0\n"))
  }

  @Test func whatTellsWhyIsTheSimulatedMachinesDoctor() throws {
    let result = Invocation("--json --simulated bind 0:3.0", simulation: .changed { $0.iommu = nil })
    #expect(try result.error["remedy"].text == "`iommuctl --simulated doctor` says why")
  }

  /// What came of the writes, and that they were made to nothing real.
  @Test func bindingTellsItsResult() {
    let simulated = "simulated machine: nothing on this machine was changed\n"
    let bound = Invocation("--simulated bind 0:3.0")
    #expect(bound.out.hasSuffix("\n0000:00:03.0: driver vfio-pci (was nvme)\n" + simulated))
    let unbound = Invocation("--simulated unbind 0:3.0")
    #expect(unbound.out.hasSuffix("\n0000:00:03.0: no driver (was nvme)\n" + simulated))
    let idle = Simulation.changed { $0.devices[1].driver = nil }
    #expect(
      Invocation("--simulated bind 0:3.0", simulation: idle).out
        .hasSuffix("\n0000:00:03.0: driver vfio-pci (had none)\n" + simulated))
    for line in ["--simulated bind 0:3.0 --dry-run", "--simulated bind 0:2.0", "--json --simulated bind 0:3.0"] {
      #expect(!Invocation(line).out.contains("simulated machine"), "\(line)")
    }
  }

  /// Documents say it as well.
  @Test func bindingOfASimulatedMachine() throws {
    for line in ["bind 0:3.0", "unbind 0:3.0", "restore 0:3.0", "bind 0:3.0 --dry-run"] {
      #expect(try Invocation("--json --simulated \(line)").document["simulated"].flag == true)
    }
    let tree = try WrittenTree(.small)
    let plan = try Invocation("--json --root \(tree.root) bind 2:0.0 --dry-run").document
    #expect(plan["simulated"].flag == false)
  }

  @Test func missingDevicesAreSaidToBeMissing() throws {
    let simulated = Invocation("--simulated show 9:0.0")
    #expect(
      simulated.err == "iommuctl: find: no-such-device, device 0000:09:00.0: ENOENT (No such file or directory). "
        + "The simulated machine has 0000:00:02.0, 0000:00:03.0\n")
    let tree = try WrittenTree(.small)
    let captured = Invocation("--root \(tree.root) show 9:0.0")
    #expect(captured.err.contains("`iommuctl list` with the same --root"))
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
