import Foundation
import Testing
import iommuctl

/// `simulate` of traces in files: figures that can be worked out by hand.
@Suite struct SimulateTraceTests {
  /// The figures of a trace whose lines are these.
  func figures(_ lines: [String], _ options: String, name: String = "x") throws -> [String: Document] {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("simulate-\(UUID().uuidString)").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    let text = (["swift-iommu-trace 1", "name \(name)", "seed 0", "threads 2", "phase p"] + lines).joined(
      separator: "\n")
    try Data("\(text)\n".utf8).write(to: URL(fileURLWithPath: path))
    return try SimulateTests.figures("--workload \(path) \(options)")
  }

  /// 70 ns for the tables, 310 for the system call, and what the table of costs is named by.
  @Test(arguments: [("vtd", "vtd-2000", 2000), ("vtd", "vtd-800", 800), ("smmuv3", "smmu-300", 300)])
  func onePage(_ iommu: String, _ costs: String, _ roundTrip: Int) throws {
    let figures = try figures(["m 0 0 4096 b", "u 1 0"], "--iommu \(iommu) --costs \(costs)")
    for policy in ["strict", "whole-tag", "threshold"] {
      for key in ["p50_unmap_ns", "p99_unmap_ns", "longest_exposure_ns"] {
        #expect(figures[policy]?[key].number == 380 + roundTrip)
      }
      #expect(figures[policy]?["commands"].number == 1 && figures[policy]?["syncs"].number == 1)
    }
    for policy in ["lazy-per-cpu", "lazy-single"] {
      #expect(figures[policy]?["p99_unmap_ns"].number == 70 && figures[policy]?["commands"].number == 1)
      // From the unmap to the end of the flush, which is the next thing that happens.
      #expect(figures[policy]?["longest_exposure_ns"].number == 310 + roundTrip)
    }
    // The descriptor's page and this one: four tables, and an entry of the last of them.
    let reads = 5.0, time = 65 + reads * 197
    for figure in figures.values {
      #expect(figure["memory_reads_per_page"].real == reads)
      #expect(figure["throughput_gbps"].real == (32_768 / time * 1000).rounded() / 1000)
    }
    // 55 ns to map it, the transfer, the unmap.
    let all = 55 + time + Double(380 + roundTrip)
    #expect(figures["strict"]?["achieved_gbps"].real == (32_768 / all * 1000).rounded() / 1000)
  }

  /// Pages are moved as a whole, and a list of short buffers is one unmap of whole pages.
  @Test func shortBuffers() throws {
    let figures = try figures(["l 0 3 4 100 t", "m 0 1 5000 f", "u 0 1", "u 0 3"], "--iommu smmuv3 --costs smmu-300")
    let strict = try #require(figures["strict"])
    #expect(strict["unmaps"].number == 2 && strict["syncs"].number == 2)
    #expect(strict["p50_unmap_ns"].number == 70 + 1 + 610 && strict["p99_unmap_ns"].number == 70 + 4 + 610)
    #expect(strict["commands"].number == 2, "two pages, four pages: a range each")
  }

  /// Leaves of 2 MiB in both stages, wherever the memory lies: four entries for the descriptor's page, and one for each half.
  @Test(arguments: ["vtd", "smmuv3"])
  func longBuffers(_ iommu: String) throws {
    let figures = try figures(["m 0 0 4194304 f", "u 0 0"], "--iommu \(iommu) --costs virtual-20000")
    for figure in figures.values { #expect(figure["memory_reads_per_page"].real == 0.006, "6 of 1024") }
  }

  /// A leaf and half a table take two commands on both; a VT-d's driver waits for each.
  @Test(arguments: [("vtd", "vtd-800", 2, 1600), ("smmuv3", "smmu-300", 1, 320)])
  func oddLengths(_ iommu: String, _ costs: String, _ syncs: Int, _ waiting: Int) throws {
    let figures = try figures(["m 0 0 3145728 b", "u 0 0"], "--iommu \(iommu) --costs \(costs)")
    let strict = try #require(figures["strict"]), whole = try #require(figures["whole-tag"])
    #expect(strict["commands"].number == 2 && strict["syncs"].number == syncs)
    #expect(strict["p50_unmap_ns"].number == 70 + 767 * 3 / 2 + 310 + waiting)
    #expect(whole["commands"].number == 1 && whole["syncs"].number == 1)
    for figure in figures.values { #expect(figure["stalls"].number == 0) }
  }

  /// Of the timer of a lazy mode: a queue that is not full is flushed when its oldest entry is 10 ms old.
  @Test func aFlushAfterATime() throws {
    // 256 pages take 67 µs to move: 16 ms in all.
    let lines = (0..<240).flatMap { _ in ["m 0 0 1048576 f", "u 0 0"] }
    let figures = try figures(lines, "--iommu smmuv3 --costs smmu-300")
    #expect(figures["lazy-per-cpu"]?["commands"].number == 2)
    let exposure = try #require(figures["lazy-per-cpu"]?["longest_exposure_ns"].number)
    #expect(exposure >= 10_000_000 && exposure < 10_010_000, "\(exposure)")
    #expect(figures["lazy-single"]?["commands"].number == 1)
    #expect(figures["lazy-single"]?["longest_exposure_ns"].number ?? 0 > 15_000_000)
  }

  /// The device works while the driver maps and unmaps others, one transfer after the other.
  @Test func theDeviceWorksBesideTheDriver() throws {
    let together = try figures(
      ["m 0 0 4096 f", "m 0 1 4096 f", "u 0 0", "u 0 1"], "--iommu vtd --costs virtual-20000")
    let apart = try figures(
      ["m 0 0 4096 f", "u 0 0", "m 0 1 4096 f", "u 0 1"], "--iommu vtd --costs virtual-20000")
    // The first transfer reads five entries, the second one, and is over when the first unmap is.
    func nanoseconds(_ figures: [String: Document]) -> Double {
      65_536 / (figures["strict"]?["achieved_gbps"].real ?? 1)
    }
    #expect(abs(nanoseconds(together) - Double(2 * 55 + 1050 - 55 + 2 * 20_380)) < 30, "\(nanoseconds(together))")
    #expect(abs(nanoseconds(apart) - Double(2 * 55 + 1050 + 262 + 2 * 20_380)) < 30, "\(nanoseconds(apart))")
  }

  @Test func nothingAtAll() throws {
    let figures = try figures([], "--iommu smmuv3 --costs smmu-300")
    for figure in figures.values {
      #expect(figure["unmaps"].number == 0 && figure["commands"].number == 0)
      for key in ["p50_unmap_ns", "p99_unmap_ns", "throughput_gbps", "achieved_gbps", "memory_reads_per_page"] {
        #expect(figure[key].isNull)
      }
    }
    #expect(Invocation("simulate --workload W6 --operations 1 --costs smmu-300").out.contains(" 680 "))
  }
}
