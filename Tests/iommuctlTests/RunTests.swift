import IOMMU
import IOMMUSimulation
import Testing
import iommuctl

/// `demo`, `selftest` and `show` on simulated devices.
@Suite struct RunTests {
  static let machines: [SimulatedMachine.IOMMUKind] = [.vtd, .smmuv3]
  private static let keys: Set<String> = [
    "schema", "command", "interface", "translation", "cases", "bytes_verified", "faults", "counters",
  ]

  /// A way to a device, and who owns its page tables.
  struct Way: Sendable {
    let interface: Interface
    let owner: TranslationInUse.Owner
    var options: String { "--interface \(interface.rawValue) --translation \(owner.rawValue)" }
  }
  static let ways = [
    Way(interface: .iommufd, owner: .kernel), Way(interface: .iommufd, owner: .process),
    Way(interface: .type1, owner: .kernel),
  ]

  @Test(arguments: ways, machines)
  func demo(_ way: Way, _ kind: SimulatedMachine.IOMMUKind) throws {
    let result = Invocation("--json demo \(way.options)", simulation: .changed { $0.iommu = kind })
    #expect(result.status == .fine)
    let document = try result.document
    try check(document, way)
    #expect(document["bytes_verified"].number == 1530)
    #expect(document["faults"].list.count == 1)
    #expect(document["faults"][0]["access"].text == "write")
    #expect(document["faults"][0]["mapping"]["state"].text == "unmapped")
    #expect(document["counters"]["maps"].number == 2)
    #expect(document["counters"]["system_calls"].number == (way.owner == .kernel ? 4 : 2))
    #expect(document["counters"]["invalidations"].number == 2 && document["counters"]["syncs"].number == 2)
    #expect(document["cases"].list.allSatisfy { $0["verdict"].text == "pass" })
  }

  @Test(arguments: ways, machines)
  func selftest(_ way: Way, _ kind: SimulatedMachine.IOMMUKind) throws {
    let result = Invocation(
      "--json --simulated selftest 0:2.0 \(way.options)", simulation: .changed { $0.iommu = kind })
    #expect(result.status == .fine, "\(result.out)")
    let document = try result.document
    try check(document, way)
    #expect(document["bytes_verified"].number == 5096)
    #expect(document["faults"].list.count == 3)
    #expect(!document["cases"].list.contains { $0["verdict"].text == "fail" })
  }

  private func check(_ document: Document, _ way: Way) throws {
    #expect(document.keys.isSuperset(of: Self.keys))
    #expect(document["interface"].text == "simulated-\(way.interface.rawValue)")
    #expect(document["translation"].text == way.owner.rawValue)
    for item in document["cases"].list {
      #expect(item.keys == ["name", "verdict", "reason"])
    }
    let counters = document["counters"]
    #expect(counters.keys == ["system_calls", "maps", "unmaps", "invalidations", "syncs"])
    #expect(counters["maps"].number == counters["unmaps"].number)
    for fault in document["faults"].list {
      let address = try #require(fault["iova"].address)
      let start = try #require(fault["mapping"]["start"].address)
      #expect(address >= start && address <= fault["mapping"]["end"].address ?? 0)
      let story = fault["story"]
      #expect(story.keys.isSuperset(of: ["text", "place", "mapping", "offset_bytes", "neighbour", "distance_bytes"]))
      #expect(story["place"].text == (fault["mapping"]["state"].text == "live" ? "live" : "ended"))
      #expect(story["text"].text?.hasPrefix(fault["access"].text == "write" ? "a write to 0x" : "a read of 0x") == true)
      #expect(story["mapping"]["start"].address == start && story["offset_bytes"].number == Int(address - start))
      #expect(story["mapping"]["state"].text == (fault["mapping"]["state"].text == "live" ? "live" : "unmapped"))
      #expect(fault["source"].text == "kernel-log" && fault["kind"].text != nil)
    }
    #expect(document["faults_missing"].isNull)
  }

  /// Any device can be tested; what only edu can do is skipped, under the same names.
  @Test func selftestOfAnotherDevice() throws {
    let simulation = Simulation.changed { $0.devices[1].driver = "vfio-pci" }
    let other = try Invocation("--json --simulated selftest 0:3.0", simulation: simulation).document
    let edu = try Invocation("--json --simulated selftest 0:2.0", simulation: simulation).document
    #expect(!other["cases"].list.contains { $0["verdict"].text == "fail" }, "\(other)")
    #expect(other["cases"].list.map { $0["name"].text } == edu["cases"].list.map { $0["name"].text })
    #expect(other["cases"].list.contains { $0["name"].text == "reset" && $0["verdict"].text == "pass" })
    #expect(other["cases"].list.contains { $0["name"].text == "reserved" && $0["verdict"].text == "pass" })
  }

  /// The negative control: when an unmap is reported and not done, the cases of DMA after unmap must notice.
  @Test(arguments: ["demo", "selftest 0:2.0"], ways)
  func swallowedUnmapsAreNoticed(_ line: String, _ way: Way) throws {
    var simulation = Simulation.standard
    simulation.kernel = { kernel in
      let faulting = FaultingKernel(kernel)
      faulting.swallowUnmap()
      faulting.swallowInvalidation()
      return faulting
    }
    let result = Invocation(
      "--json --simulated \(line) \(way.options)", simulation: simulation)
    #expect(result.status == .refused)
    let cases = try result.document["cases"].list
    #expect(cases.contains { $0["name"].text == "dma-after-unmap" && $0["verdict"].text == "fail" })
  }

  @Test func selftestWithinASmallLimit() throws {
    let simulation = Simulation.changed {
      ($0.memoryLockLimit, $0.canLockMemory, $0.user, $0.groups) = (8 << 20, false, 1000, [36])
      ($0.nodeGroup, $0.nodeMode) = (36, 0o660)
    }
    let document = try Invocation("--json --simulated selftest 0:2.0", simulation: simulation).document
    #expect(!document["cases"].list.contains { $0["verdict"].text == "fail" }, "\(document)")
    let large = try #require(document["cases"].list.first { $0["name"].text == "map-32MiB" })
    #expect(large["verdict"].text == "skip")
    #expect(large["reason"].text?.contains("RLIMIT_MEMLOCK") == true)
  }

  @Test func showOpensADeviceThatIsReady() throws {
    let shown = try Invocation("--json --simulated show 0:2.0").document
    #expect(shown["interface"]["chosen"].text == "simulated-iommufd")
    #expect(shown["usable"][0]["start"].address == 0x1000)
    #expect(shown["translation"]["chosen"].text == "process")
    #expect(shown["translation"]["candidates"].list.allSatisfy { $0["possible"].flag == true })
    let type1 = try Invocation("--json --simulated show 0:2.0 --interface type1").document
    #expect(type1["interface"]["chosen"].text == "simulated-type1")
    #expect(type1["translation"]["chosen"].text == "kernel")
    #expect(type1["translation"]["candidates"][1]["possible"].flag == false)
    #expect(shown["translation"]["ats"]["enabled"].flag == false && type1["translation"]["ats"].isNull)
    #expect(type1["usable"].list.count == shown["usable"].list.count)
    let closed = try Invocation("--json --simulated show 0:2.0 --no-open").document
    #expect(closed["usable"].isNull && closed["translation"]["chosen"].text == "process")
    #expect(closed["interface"]["chosen"].text == "simulated-iommufd")
    let unbound = try Invocation("--json --simulated show 0:3.0").document
    #expect(unbound["interface"]["chosen"].isNull && unbound["usable"].isNull)
    #expect(unbound["interface"]["reason"].text == "Chosen once the device is bound to vfio-pci")
  }

  /// Devices do not translate by themselves over tables of the process on an SMMUv3; on a VT-d the kernel decides.
  @Test func showTellsOfATS() throws {
    func simulation(_ machine: SimulatedMachine) -> Simulation {
      .changed { standard in
        let devices = standard.devices
        standard = machine
        standard.devices = devices
      }
    }
    let smmu = simulation(.smmuv3Nested), reason = "EATS is 0 in the stream table entry: translation requests of "
    for line in ["--simulated show 0:2.0", "--simulated show 0:2.0 --no-open"] {
      let services = try Invocation("--json \(line)", simulation: smmu).document["translation"]["ats"]
      #expect(services["enabled"].flag == false && services["reason"].text?.hasPrefix(reason) == true)
      let text = Invocation(line, simulation: smmu).out
      #expect(text.contains("\nats          off with tables of the process. \(reason)"))
    }
    let vtd = Invocation("--simulated show 0:2.0", simulation: simulation(.vtdNested))
    #expect(vtd.out.contains("\nats          the kernel's with tables of the process. The kernel switches it on "))
    let neither = Invocation("--simulated show 0:2.0 --interface type1", simulation: smmu)
    #expect(!neither.out.contains("\nats "))
  }

  /// Which owner of page tables is chosen, and why: the same sentence as of the open device.
  @Test(arguments: [
    ("show 0:2.0", "process", "Nested translation is possible here"),
    ("show 0:2.0 --no-open", "process", "Nested translation is possible here"),
    ("show 0:3.0", "process", "Nested translation is possible here"),
    ("show 0:2.0 --interface type1", "kernel", "A type1 container has no nested translation"),
    ("show 0:2.0 --interface type1 --no-open", "kernel", "A type1 container has no nested translation"),
  ])
  func showSaysWhichTranslationAndWhy(_ line: String, _ name: String, _ reason: String) throws {
    let chosen = try Invocation("--json --simulated \(line)").document["translation"]
    #expect(chosen.keys == ["chosen", "reason", "candidates", "ats"])
    #expect(chosen["chosen"].text == name && chosen["reason"].text == reason)
    let text = Invocation("--simulated \(line)").out
    #expect(text.contains("\ntranslation  \(name): \(reason)\ncandidate    kernel: possible. "), "\(text)")
    #expect(text.contains("\ncandidate    process: "))
  }

  /// On a VT-d tables of the process are possible or not, and never chosen.
  @Test(arguments: ["show 0:2.0", "show 0:2.0 --no-open"])
  func showOfAVTd(_ line: String) throws {
    for nests in [true, false] {
      let simulation = Simulation.changed {
        ($0.vtdRegisters, $0.hasNestedTranslation) = (VTdRegisters(), false)
        $0.vtdRegisters!.hasNesting = nests
      }
      let shown = try Invocation("--json --simulated \(line)", simulation: simulation).document["translation"]
      let wanted = nests ? "not yet run on hardware" : "ECAP.NEST"
      #expect(shown["chosen"].text == "kernel" && shown["reason"].text?.contains(wanted) == true)
      #expect(shown["candidates"][1]["possible"].flag == nests)
      #expect(shown["candidates"][1]["reason"].text?.contains(wanted) == true)
    }
  }

  @Test func showOfADeviceThatNothingTranslatesFor() throws {
    let simulation = Simulation.changed { $0.iommu = nil }
    let text = Invocation("--simulated show 0:2.0", simulation: simulation).out
    #expect(text.contains("\ntranslation  -: No IOMMU translates for the device\n"), "\(text)")
    let chosen = try Invocation("--json --simulated show 0:2.0", simulation: simulation).document["translation"]
    #expect(chosen["chosen"].isNull && chosen["reason"].text == "No IOMMU translates for the device")
  }

  /// By default the simulated machine's tables are the process's; where they cannot be, asking for them is refused.
  @Test func translationIsChosen() throws {
    let document = try Invocation("--json demo").document
    #expect(document["translation"].text == "process")
    let plain = Simulation.changed { $0.hasNestedTranslation = false }
    #expect(try Invocation("--json demo", simulation: plain).document["translation"].text == "kernel")
    let refused = Invocation("--json demo --translation process", simulation: plain)
    #expect(refused.status == .unsupported)
    #expect(try refused.error["code"].text == "not-supported")
    #expect(Invocation("demo --translation nobody").status == .usage)
  }

  @Test func oneIsNotSeveral() {
    let result = Invocation("--simulated selftest 0:2.0").out
    #expect(result.contains(" mapped in 1 area, ") && result.contains(", 1 system call\n"), "\(result)")
    #expect(!result.contains(/\b1 (areas|capabilities|system calls)\b/))
  }

  @Test func theStoryIsTold() {
    let result = Invocation("demo")
    #expect(result.out.contains("simulated machine"))
    #expect(result.out.contains("[ok]    dma-after-unmap"))
    #expect(result.out.hasSuffix("1530 bytes verified; 8 passed, 0 failed, 0 skipped\n"))
  }
}
