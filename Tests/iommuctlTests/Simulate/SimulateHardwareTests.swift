import Foundation
import Testing
import iommuctl

/// `simulate` on hardware with short queues, in a crowd, and without range commands: figures that can be worked out by hand.
@Suite struct SimulateHardwareTests {
  private static func pages(_ count: Int, times: Int) -> [String] {
    (0..<times).flatMap { _ in ["m 0 0 \(count * 4096) b", "u 0 0"] }
  }

  private func figures(_ lines: [String], _ options: String) throws -> [String: Document] {
    try SimulateTraceTests().figures(lines, options)
  }

  /// Another producer's round of 63 commands and its sync come before each call, on VT-d one of 16 or of what the queue takes. The
  /// driver wants room for its command and a sync beside them, and on VT-d for a slot that stays free.
  @Test(arguments: [
    ("smmuv3", "smmu-300", 64, 1, 20, 300 + 1540), ("smmuv3", "smmu-300", 128, 1, 0, 300 + 1540),
    ("smmuv3", "smmu-300", 128, 2, 20, 300 + 3080), ("vtd", "vtd-800", 16, 1, 20, 800 + 14 * 20 + 780),
    ("vtd", "vtd-800", 32, 1, 0, 800 + 1100), ("vtd", "vtd-800", 32, 2, 20, 800 + 2200),
  ])
  func anotherProducer(
    _ iommu: String, _ costs: String, _ queue: Int, _ producers: Int, _ stalls: Int, _ waiting: Int
  ) throws {
    let options = "--iommu \(iommu) --costs \(costs) --queue \(queue) --producers \(producers)"
    let figures = try figures(Self.pages(1, times: 20), options)
    for policy in ["strict", "whole-tag", "threshold"] {
      let figure = try #require(figures[policy])
      #expect(figure["commands"].number == 20 && figure["syncs"].number == 20, "the others' do not count")
      #expect(figure["stalls"].number == stalls && figure["queue_entries"].number == queue)
      #expect(figure["p50_unmap_ns"].number == 70 + 310 + waiting)
    }
    for policy in ["lazy-per-cpu", "lazy-single"] {
      #expect(figures[policy]?["stalls"].number == min(stalls, 1), "the flush at the end")
      #expect(figures[policy]?["p99_unmap_ns"].number == 70)
    }
  }

  /// Whoever is kept waiting sends less: after two slow calls at most 31 commands, after two more at most 15, and 16 pages are
  /// everything then.
  @Test func theBudgetInACrowd() throws {
    let alone = "--iommu smmuv3 --costs smmu-300 --no-range-invalidation --queue 512", crowd = "\(alone) --producers 16"
    func counts(_ options: String) throws -> [[Int?]] {
      let figures = try figures(Self.pages(16, times: 40), options)
      return ["strict", "whole-tag"].map { name in
        ["commands", "syncs", "stalls"].map { figures[name]?[$0].number }
      }
    }
    #expect(try counts(alone) == [[640, 40, 0], [40, 40, 0]])
    #expect(try counts(crowd) == [[4 * 16 + 36, 40, 40], [40, 40, 40]])
  }

  /// Without range commands a threshold decides how many commands there are; with them each of these unmaps has one.
  @Test func thresholdsWithoutRanges() throws {
    func commands(_ options: String) throws -> [Int?] {
      let lines = Self.pages(4, times: 1) + Self.pages(16, times: 1)
      let figures = try figures(lines, "--iommu smmuv3 --costs smmu-800 --threshold 8 \(options)")
      return ["strict", "threshold", "whole-tag"].map { figures[$0]?["commands"].number }
    }
    #expect(try commands("--no-range-invalidation") == [20, 5, 2])
    #expect(try commands("") == [2, 2, 2])
  }

  /// A queue that is shorter than a call's commands makes it wait by itself: 5 and 17 entries go through 4 places.
  @Test func aShortQueue() throws {
    let figures = try figures(
      Self.pages(4, times: 1) + Self.pages(16, times: 1),
      "--iommu smmuv3 --costs smmu-300 --threshold 8 --queue 4 --no-range-invalidation")
    #expect(["strict", "threshold", "whole-tag"].map { figures[$0]?["stalls"].number } == [1 + 4, 1, 0])
  }

  @Test func whatIsChangedIsSaid() throws {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("page-\(UUID().uuidString)").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    let line = "simulate --workload W6 --operations 2 --costs smmu-300 --html \(path)"
    let changed = Invocation("\(line) --queue 64 --producers 2 --no-range-invalidation")
    let sentence =
      "Changed of the hardware: queues of 64 entries, 2 other producers in each queue, no range commands on SMMUv3."
    #expect(changed.out.split(separator: "\n")[2] == sentence)
    #expect(try textFile(path).contains(sentence))
    let usual = Invocation(line), page = try textFile(path)
    #expect(usual.status == .fine && !usual.out.contains("Changed") && !page.contains("Changed"))
    #expect(
      Invocation("\(line) --producers 1").out.contains("\nChanged of the hardware: 1 other producer in each queue.\n"))
    let document = try Invocation("--json \(line) --producers 2 --no-range-invalidation").document
    #expect(document["producers"].number == 2 && document["range_invalidation"].flag == false)
  }
}
