import IOMMU
import IOMMUSimulation
import Testing
import iommuctl

/// `bench` on the simulated machine, with numbers of operations that are small and the counts that must come of them.
@Suite struct BenchTests {
  private func bench(_ line: String, simulation: Simulation = .standard) throws -> Document {
    let result = Invocation("--json --simulated bench \(line)", simulation: simulation)
    #expect(result.status == .fine, "\(result.err)")
    return try result.document
  }

  private func check(latency: Document) {
    #expect(latency.keys == ["mean", "p50", "p99", "p99_9", "max", "samples"])
    let samples = latency["samples"].number ?? 0
    #expect(samples > 0 && latency["p50"].number != nil)
    for (key, least) in [("p99", 100), ("p99_9", 1000)] {
      #expect(samples < least ? latency[key].isNull : latency[key].number != nil, "\(key): \(latency)")
    }
    let percentiles = ["p50", "p99", "p99_9", "max"].compactMap { latency[$0].number }
    #expect(percentiles == percentiles.sorted())
    #expect((latency["mean"].real ?? -1) >= 0)
  }

  /// How many were timed, and no percentile of fewer than have one beyond it.
  @Test func howManyWereTimed() throws {
    for (line, key, samples) in [
      ("map --operations 99", "map_ns", 99), ("map --operations 100", "unmap_ns", 100),
      ("map --operations 999", "map_ns", 999), ("map --operations 1000", "map_ns", 1000),
      ("alloc --operations 129", "pair_ns", 3), ("alloc --operations 6400", "pair_ns", 100),
    ] {
      let latency = try bench(line)[key]
      #expect(latency["samples"].number == samples, "\(line)")
      check(latency: latency)
    }
    // A phase without a map.
    let holes = try bench("map --workload W7 --operations 60 --dma-bits 28")["phases"][1]["map_ns"]
    #expect(holes["samples"].number == 0)
    for name in ["mean", "p50", "p99", "p99_9", "max"] { #expect(holes[name].isNull) }
  }

  @Test func theTextSaysWhatTooFewCannotTell() throws {
    let few = Invocation("bench alloc --operations 129")
    let line = /pair ns: mean [\d.]+, 50 % \d+, 99 % -, 99\.9 % -, longest timed \d+, 3 timed/
    #expect(few.out.firstMatch(of: line) != nil, "\(few.out)")
    #expect(few.out.hasSuffix("\n- stands where too few were timed: 99 % takes 100, 99.9 % takes 1000\n"))
    let some = Invocation("bench map --operations 999").out
    #expect(some.contains(/unmap ns: .* 99 % \d+, 99\.9 % -, longest timed \d+, 999 timed\n/))
    #expect(some.hasSuffix(" takes 1000\n"))
    let enough = Invocation("bench map --operations 1000").out
    #expect(!enough.contains("% -") && !enough.contains("too few"))
    // A phase is enough.
    #expect(Invocation("bench alloc --workload W8 --operations 1200").out.contains("\n- stands where too few"))
  }

  @Test(arguments: Interface.allCases)
  func aStrictMapAndItsUnmap(_ interface: Interface) throws {
    let document = try bench("map --translation kernel --operations 500 --interface \(interface.rawValue)")
    #expect(document["schema"].number == 1 && document["command"].text == "bench" && document["kind"].text == "map")
    #expect(document["interface"].text == "simulated-\(interface.rawValue)")
    #expect(document["translation"].text == "kernel" && document["protection"].text == "strict")
    #expect(document["operations"].number == 500)
    #expect(document["system_calls_per_operation"].real == 2)
    #expect(document["invalidations_per_operation"].real == 1)
    #expect(document["syncs_per_operation"].real == 1)
    check(latency: document["map_ns"])
    check(latency: document["unmap_ns"])
    #expect(document["operations_per_second"].number ?? 0 > 0)
    #expect(document["trace"].isNull && !document.keys.contains("phases"))
  }

  /// On tables of the kernel's, lazy saves system calls and no invalidation; what waits at the end is counted too.
  @Test(arguments: ["lazy-per-cpu", "lazy-single"])
  func aLazyUnmapOnTablesOfTheKernels(_ protection: String) throws {
    let document = try bench("map --translation kernel --operations 600 --protection \(protection)")
    #expect(document["invalidations_per_operation"].real == 1)
    #expect(document["protection"].text == protection)
    let calls = try #require(document["system_calls_per_operation"].real)
    #expect(calls > 1 && calls < 2)
  }

  @Test func aListIsOneOperation() throws {
    let document = try bench("map --translation kernel --operations 50 --mode sg --granule 8")
    #expect(document["operations"].number == 50 && document["mode"].text == "sg")
    // Pages that follow each other in memory are mapped by one call; each area is invalidated for itself.
    let calls = try #require(document["system_calls_per_operation"].real)
    #expect(calls >= 2 && calls <= 9)
    #expect(document["invalidations_per_operation"].real == calls - 1)
  }

  @Test func coherentMemoryStaysMapped() throws {
    let document = try bench("map --operations 50 --mode coherent --granule 4")
    #expect(document["operations"].number == 50 && document["map_ns"]["mean"].real ?? 0 > 0)
    #expect(document["invalidations_per_operation"].real == 0)
  }

  @Test func threadsShareTheOperations() throws {
    for kind in ["map", "alloc", "queue", "lookup --live 50"] {
      let document = try bench("\(kind) --threads 3 --operations 100")
      #expect(document["operations"].number == 100 && document["threads"].number == 3)
    }
  }

  @Test func aTimeIsKept() throws {
    let document = try bench("map --seconds 0.05")
    let elapsed = try #require(document["elapsed_ns"].number)
    #expect(elapsed >= 50_000_000)
    #expect(document["operations"].number ?? 0 > 10)
  }

  @Test func theDelayIsBetweenMapAndUnmap() throws {
    let document = try bench("map --operations 10 --delay-ns 2000000")
    #expect(document["elapsed_ns"].number ?? 0 >= 20_000_000)
    #expect(document["unmap_ns"]["p50"].number ?? .max < 2_000_000)
    #expect(document["map_ns"]["p50"].number ?? .max < 2_000_000)
  }

  @Test func queueIsLazy() throws {
    let document = try bench("queue --translation kernel --operations 300")
    #expect(document["protection"].text == "lazy-per-cpu")
    check(latency: document["pair_ns"])
    #expect(document["system_calls_per_operation"].real ?? 9 < 2)
    #expect(!document.keys.contains("map_ns"))
  }

  @Test func lookupAmongMany() throws {
    let document = try bench("lookup --live 200 --granule 2 --operations 1000")
    check(latency: document["translate_ns"])
    #expect(document["system_calls_per_operation"].real == 0)
  }

  @Test func allocTakesNoDevice() throws {
    let document = try bench("alloc --operations 1000 --granule 64 --threads 2")
    check(latency: document["pair_ns"])
    for key in ["device", "interface", "translation", "protection"] { #expect(document[key].isNull) }
    for key in ["system_calls", "invalidations", "syncs"] { #expect(document["\(key)_per_operation"].isNull) }
    let device = try bench("alloc 0:2.0 --operations 10")
    #expect(device["device"].text == "0000:00:02.0")
    let told = Invocation("--simulated bench alloc 0:2.0 --operations 10").out
    #expect(told.contains("\n0000:00:02.0 over simulated-iommufd, page tables of the process\n"), "\(told)")
  }

  /// The lines that the kernel's benchmark prints, as mailing lists quote them.
  @Test func theKernelsLines() {
    let result = Invocation("bench map --operations 100 --granule 2 --direction to-device")
    #expect(result.status == .fine)
    let lines = result.out.split(separator: "\n")
    #expect(lines[0].contains("simulated machine"))
    #expect(
      lines[2].wholeMatch(of: /dma mapping benchmark: threads:1 seconds:\d+(\.\d+)? dir:TO_DEVICE granule:2/) != nil)
    #expect(lines[3].wholeMatch(of: /average map latency\(us\):\d+\.\d standard deviation:\d+\.\d/) != nil)
    #expect(lines[4].wholeMatch(of: /average unmap latency\(us\):\d+\.\d standard deviation:\d+\.\d/) != nil)
    #expect(lines[5].hasPrefix("map ns: mean "))
    #expect(lines[6].hasPrefix("unmap ns: mean "))
    #expect(lines[7].hasPrefix("100 operations, "))
    #expect(lines[8].hasPrefix("an operation: system calls "))
    #expect(lines[1].hasSuffix(", protection strict"))
  }

  /// No room for a page in 1 MiB that is full: told, and no failure of the run.
  @Test func noRoomIsCounted() throws {
    let allocated = try bench("alloc --workload W7 --operations 1200 --dma-bits 20")
    #expect(allocated["no_room"].number ?? 0 > 400)
    check(latency: allocated["no_room_ns"])
    let mapped = try bench("map --workload W4 --operations 300 --dma-bits 20")
    #expect(mapped["no_room"].number ?? 0 > 0)
    #expect(mapped["operations"].number == 300)
  }

  @Test func errorsOfAThreadEndTheRun() throws {
    let simulation = Simulation.changed {
      ($0.memoryLockLimit, $0.canLockMemory, $0.user, $0.groups) = (2 << 20, false, 1000, [36])
      ($0.nodeGroup, $0.nodeMode) = (36, 0o660)
    }
    for line in [
      "--threads 4 --granule 1024", "--threads 2 --workload W2 --operations 300", "--workload W1 --operations 99",
    ] {
      let result = Invocation("--json --simulated bench map --translation kernel \(line)", simulation: simulation)
      #expect(result.status == .failed && result.out.isEmpty, "\(result.out)")
      #expect(try result.error["code"].text == "memlock")
    }
  }

  @Test func withoutPermission() throws {
    let simulation = Simulation.changed { ($0.user, $0.groups) = (1000, [1000]) }
    let result = Invocation("--json --simulated bench map --operations 1", simulation: simulation)
    #expect(result.status == .permission)
    #expect(try result.error["code"].text == "permission")
    #expect(Invocation("--simulated bench alloc --operations 1", simulation: simulation).status == .fine)
  }

  /// Nothing is mapped and unmapped but the arena, whoever owns the tables.
  @Test(arguments: ["bounce", "persistent"], ["single", "sg"])
  func protectionsWithoutCalls(_ name: String, _ mode: String) throws {
    let document = try bench("map --operations 1000 --protection \(name) --mode \(mode)")
    #expect(document["operations"].number == 1000)
    let calls = document["system_calls_per_operation"].number ?? -1
    #expect(name == "persistent" && mode == "sg" ? calls > 0 : calls == 0, "\(calls)")
  }

  /// It says what it went by.
  @Test(arguments: [
    ("process", CostTable.vtd2000, "lazy-per-cpu", 2310), ("process", .virtual20000, "lazy-single", 20_310),
    ("kernel", .vtd2000, "strict", 3025), ("kernel", .virtual20000, "map-cache", 21_025),
  ])
  func theAutomaticProtection(_ translation: String, _ costs: CostTable, _ choice: String, _ time: Int) throws {
    let simulation = Simulation.changed { $0.costs = costs }
    let line = "--simulated bench map --operations 1000 --protection automatic --translation \(translation)"
    let document = try Invocation("--json " + line, simulation: simulation).document
    #expect(document["protection"].text == "automatic" && document["calibration"]["choice"].text == choice)
    #expect(document["calibration"]["shortest_ns"].number == time)
    let calls = try #require(document["system_calls_per_operation"].real)
    #expect(choice == "strict" ? calls == 2 : calls < 0.1)
    let told = Invocation(line, simulation: simulation).out
    #expect(told.contains("\n\(choice): an invalidation takes \(time) ns, the shortest of 64 timings\n"))
  }

  /// Without a queue there is nothing to measure: what came out would be the price of strict, or of kept maps.
  @Test(arguments: [(CostTable.vtd2000, "strict"), (.virtual20000, "map-cache")])
  func anAutomaticProtectionWithoutAQueue(_ costs: CostTable, _ choice: String) throws {
    let simulation = Simulation.changed { $0.costs = costs }
    let line = "--json --simulated bench queue --protection automatic --operations 10"
    let refused = Invocation(line + " --translation kernel", simulation: simulation)
    #expect(refused.status == .unsupported && refused.out.isEmpty)
    #expect(try refused.error["code"].text == "not-supported" && refused.error["device"].text == "0000:00:02.0")
    #expect(try refused.error["detail"].text?.contains("chose \(choice), which has no flush queue") == true)
    let measured = try Invocation(line + " --translation process", simulation: simulation).document
    #expect(measured["calibration"]["choice"].text?.hasPrefix("lazy-") == true)
    for protection in ["lazy-per-cpu", "lazy-single"] {
      let named = "--simulated bench queue --translation kernel --operations 10 --protection \(protection)"
      #expect(Invocation(named, simulation: simulation).status == .fine)
    }
  }

  @Test(arguments: [
    "", "mop", "map --threads 0", "map --threads 1025", "map --seconds 0", "map --seconds 301", "map --seconds x",
    "map --granule 0", "map --granule 1025", "map --dma-bits 19", "map --dma-bits 65", "map --delay-ns 10000001",
    "map --operations 0", "map --operations 1 --seconds 1", "map --direction sideways", "map --mode both",
    "map --protection none", "queue --protection strict", "queue --protection bounce", "queue --workload W1",
    "lookup --trace-out x", "alloc --mode sg", "map --workload W10", "map --workload W1 --trace-in x",
    "map --workload W1 --seconds 1",
    "map --trace-in x --operations 5", "map --mode coherent --trace-out x", "lookup --live 0", "map 0:2.9",
    "map --node 0", "alloc --protection strict", "alloc 0:2.0 --protection lazy-single", "alloc --delay-ns 0",
    "alloc --live 9", "alloc --direction to-device", "alloc --workload W2 --trace-out /dev/null --direction to-device",
    "alloc --interface type1", "alloc --translation kernel",
  ])
  func wrongUsageIsTwo(_ line: String) {
    let result = Invocation("--simulated bench \(line)")
    #expect(result.status == .usage, "\(result.out) \(result.err)")
    #expect(result.out.isEmpty && !result.err.isEmpty)
  }

  /// What a look-up is among and what threads map at a time is memory as well, of which three quarters may be taken: here 48 MiB. A
  /// trace's is in BenchTraceTests.
  @Test(arguments: [
    ("lookup --live 12289", 12_289 << 12, "--live"), ("lookup --granule 1024", 1000 << 22, "--live"),
    ("map --threads 13 --granule 1024", 13 << 22, "--threads"),
    ("map --threads 25 --granule 512 --mode sg", 25 << 21, "--threads"),
    ("queue --threads 1024 --granule 13", 13 << 22, "--threads"),
  ])
  func tooMuchMemory(_ line: String, _ byteCount: Int, _ option: String) throws {
    let simulation = Simulation.changed { $0.memoryByteCount = 64 << 20 }
    let result = Invocation("--json --simulated bench \(line) --operations 1", simulation: simulation)
    #expect(result.status == .failed && result.out.isEmpty)
    let error = try result.error
    #expect(error["code"].text == "out-of-memory" && error["length_bytes"].number == byteCount)
    let remedy = try #require(error["remedy"].text)
    #expect(remedy.contains(option) && remedy.contains("a smaller --granule"))
  }

  @Test func asMuchMemoryAsThereIs() {
    let simulation = Simulation.changed { $0.memoryByteCount = 64 << 20 }
    for line in ["map --threads 12 --granule 1024 --operations 12", "lookup --live 12288 --operations 1"] {
      let result = Invocation("--simulated bench \(line)", simulation: simulation)
      #expect(result.status == .fine, "\(result.err)")
    }
  }

  @Test func addressesAloneAreNoMemory() {
    let simulation = Simulation.changed { $0.memoryByteCount = 64 << 20 }
    let result = Invocation("bench alloc --threads 257 --granule 1024 --operations 257", simulation: simulation)
    #expect(result.status == .fine)
  }

  /// A thread that waits for a processor does not go on for longer: the time is over for all at once.
  @Test func manyThreadsShareATime() throws {
    let document = try bench("map --threads 200 --seconds 0.001")
    let operations = try #require(document["operations"].number)
    #expect(operations >= 1 && operations < 2000, "\(operations)")
  }

  @Test func oneIsNotSeveral() {
    #expect(Invocation("bench map --operations 1").out.contains("\n1 operation, "))
    let grid = Invocation("bench alloc --workload W8 --operations 15").out
    #expect(grid.contains("\n1 thread, 1 page: pair ns: ") && grid.contains("\n1 thread, 8 pages: "), "\(grid)")
  }

  @Test func addressesThatAreNotThere() throws {
    let error = try Invocation("--json bench alloc --dma-bits 20 --granule 1024 --operations 1").error
    #expect(error["code"].text == "no-space" && error["length_bytes"].number == 4 << 20)
    #expect(error["detail"].text == "No free range of this length is left within --dma-bits")
    #expect(error["remedy"].text == "Name a smaller --granule or more --dma-bits")
  }

  @Test func aNodesProcessors() throws {
    let result = Invocation("--json --simulated bench alloc --operations 100 --threads 2 --node 0")
    if result.status == .fine { return #expect(try result.document["operations"].number == 100) }
    #expect(try result.error["operation"].text == "find NUMA node")  // A kernel without nodes.
    let missing = Invocation("--json --simulated bench alloc --operations 1 --node 1023")
    #expect(missing.status == .failed)
  }
}
