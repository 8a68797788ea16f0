import Foundation
import IOMMUSimulation
import Testing
import iommuctl

/// `simulate`: what it runs, and the counts and times that must come of it.
@Suite struct SimulateTests {
  static let policies = ["strict", "lazy-per-cpu", "lazy-single", "whole-tag", "threshold"]

  /// The policies' figures, by name.
  static func figures(_ line: String) throws -> [String: Document] {
    let list = try Self.document(line)["policies"].list
    #expect(list.compactMap { $0["name"].text } == policies)
    return Dictionary(uniqueKeysWithValues: list.map { ($0["name"].text ?? "", $0) })
  }

  static func document(_ line: String) throws -> Document {
    let result = Invocation("--json simulate \(line)")
    #expect(result.status == .fine && result.err.isEmpty, "\(result.err)")
    return try result.document
  }

  /// Each policy on each IOMMU with each table of costs that is about it.
  @Test func everythingThatGoesTogether() throws {
    let document = try Self.document("--workload W2 --operations 40")
    #expect(document["schema"].number == 1 && document["command"].text == "simulate")
    #expect(document["trace"]["name"].text == "W2" && document["trace"]["mappings"].number == 40)
    #expect(document["threshold_pages"].number == 32 && document["producers"].number == 0)
    #expect(document["range_invalidation"].flag == true)
    let run = document["policies"].list.map { "\($0["iommu"]) \($0["costs"]) \($0["name"])" }
    let places = [
      "vtd vtd-2000", "vtd vtd-800", "vtd virtual-20000", "smmuv3 smmu-300", "smmuv3 smmu-800", "smmuv3 virtual-20000",
    ]
    #expect(run == places.flatMap { place in Self.policies.map { "\(place) \($0)" } })
    for policy in document["policies"].list {
      #expect(
        policy.keys == [
          "name", "iommu", "costs", "unmaps", "commands", "syncs", "stalls", "queue_entries", "p50_unmap_ns",
          "p99_unmap_ns",
          "longest_exposure_ns", "throughput_gbps", "achieved_gbps", "memory_reads_per_page", "no_room",
        ])
      #expect(policy["queue_entries"].number == (policy["iommu"].text == "vtd" ? 256 : 524_288))
      #expect(policy["unmaps"].number == 40 && policy["stalls"].number == 0 && policy["no_room"].number == 0)
    }
  }

  @Test(arguments: [
    ("--iommu vtd", ["vtd vtd-2000", "vtd vtd-800", "vtd virtual-20000"]),
    ("--costs virtual-20000", ["vtd virtual-20000", "smmuv3 virtual-20000"]),
    ("--iommu smmuv3 --costs smmu-800", ["smmuv3 smmu-800"]), ("--costs vtd-800", ["vtd vtd-800"]),
  ])
  func whatWasAskedFor(_ options: String, _ places: [String]) throws {
    let list = try Self.document("--workload W8 --operations 5 \(options)")["policies"].list
    #expect(list.map { "\($0["iommu"]) \($0["costs"])" } == places.flatMap { Array(repeating: $0, count: 5) })
  }

  /// A receive ring's lists of 64 pages, and frames to send between them.
  @Test(arguments: ["vtd", "smmuv3"])
  func ringsOfANetworkAdapter(_ iommu: String) throws {
    let figures = try Self.figures("--workload W1 --operations 510 --iommu \(iommu) --costs virtual-20000")
    func number(_ policy: String, _ key: String) -> Int { figures[policy]?[key].number ?? -1 }
    func reads(_ policy: String) -> Double { figures[policy]?["memory_reads_per_page"].real ?? -1 }
    for policy in ["strict", "whole-tag", "threshold"] {
      #expect(number(policy, "commands") == 510 && number(policy, "syncs") == 510, "one an unmap, list or not")
      // All unmaps of 64 pages take the same: 70 ns, 1.5 for each of 63 pages, a system call, and the invalidation.
      #expect(number(policy, "p99_unmap_ns") == 70 + 94 + 310 + 20_000)
      #expect(number(policy, "longest_exposure_ns") == number(policy, "p99_unmap_ns"))
    }
    // 255 entries of a queue are used, and the last flush is that of the end.
    for (policy, flushes) in [("lazy-per-cpu", 2), ("lazy-single", 1)] {
      #expect(number(policy, "commands") == flushes && number(policy, "syncs") == flushes)
      #expect(number(policy, "p99_unmap_ns") == 164, "the stores alone")
    }
    #expect(number("strict", "longest_exposure_ns") * 10 < number("lazy-per-cpu", "longest_exposure_ns"))
    #expect(number("lazy-per-cpu", "longest_exposure_ns") < number("lazy-single", "longest_exposure_ns"))
    // What an invalidation of everything throws away is read again. The receive buffers are above the threshold.
    #expect(reads("strict") >= 1 && reads("strict") < reads("threshold") && reads("threshold") < reads("whole-tag"))
    #expect(figures["strict"]?["throughput_gbps"].real ?? 0 > figures["whole-tag"]?["throughput_gbps"].real ?? 999)
    // Here it is the processor that keeps up with the device, or not.
    #expect(figures["strict"]?["achieved_gbps"].real ?? 999 < 90)
    #expect(figures["lazy-per-cpu"]?["achieved_gbps"].real ?? 0 > 120)
  }

  @Test func theThreshold() throws {
    func reads(_ options: String) throws -> [Double?] {
      let figures = try Self.figures("--workload W2 --operations 300 --iommu smmuv3 --costs smmu-800 \(options)")
      return ["strict", "threshold", "whole-tag"].map { figures[$0]?["memory_reads_per_page"].real }
    }
    let usual = try reads(""), low = try reads("--threshold 1"), middle = try reads("--threshold 8")
    #expect(usual[1] == usual[0], "nothing has more than 32 pages")
    #expect(usual[0]! < middle[1]! && middle[1]! < low[1]! && low[1]! < usual[2]!)
  }

  @Test(arguments: ["vtd", "smmuv3"])
  func whatIsOnlySimulatedIsSaid(_ iommu: String) throws {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("page-\(UUID().uuidString)").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    let result = Invocation(
      "simulate --workload W6 --operations 2 --iommu \(iommu) --costs virtual-20000 --html \(path)")
    for text in [result.out, try textFile(path)] {
      #expect(text.contains("were not yet run on hardware") == (iommu == "vtd"), "\(text)")
    }
  }

  @Test func theTextIsATable() throws {
    let result = Invocation("simulate --workload W6 --operations 20 --iommu smmuv3 --costs smmu-300")
    let lines = result.out.split(separator: "\n", omittingEmptySubsequences: false)
    #expect(result.status == .fine && result.err.isEmpty)
    #expect(lines[0] == "On simulated machines, which exist only in this process. All times are virtual.")
    #expect(lines[1].wholeMatch(of: /trace W6, seed 1, digest 0x[0-9a-f]{16}, mappings 20/) != nil)
    #expect(
      lines[3].hasPrefix("IOMMU   COSTS     POLICY        COMMANDS  SYNCS  STALLS  P50 NS  P99 NS  EXPOSED NS  GBIT/S"))
    #expect(lines[4].hasPrefix("smmuv3  smmu-300  strict        20        20     0       680     680     680 "))
    #expect(lines.count == 10 && lines[9].isEmpty)
  }

  /// Every workload but the one that takes a terabyte.
  @Test(arguments: Workload.allCases.filter { $0 != .w5 })
  func workloadsRun(_ workload: Workload) throws {
    let figures = try Self.figures("--workload \(workload.rawValue) --operations 90 --iommu smmuv3 --costs smmu-300")
    for figure in figures.values {
      #expect(figure["unmaps"].number == 90)
      let achieved = figure["achieved_gbps"].real ?? 0, throughput = figure["throughput_gbps"].real ?? 0
      #expect(achieved > 0 && achieved <= throughput, "the device is never faster than the formula")
    }
  }
}
