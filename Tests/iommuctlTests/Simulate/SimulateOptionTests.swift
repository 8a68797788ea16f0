import Foundation
import IOMMU
import IOMMUSimulation
import Testing
import iommuctl

/// What is wrong with a command line of `simulate`, and which errors end how.
@Suite struct SimulateOptionTests {
  @Test(arguments: [
    ("", "--workload"), ("--workload W12", "\n  - W9\n  - the path of a trace"), ("--workload w1", "\n  - W1\n"),
    ("--workload=", "--workload"),
    ("--workload W1 --iommu amd", "'vtd' and 'smmuv3'"),
    ("--workload W1 --costs vtd", "one of 'vtd-2000', 'vtd-800', 'smmu-300', 'smmu-800' or 'virtual-20000'"),
    (
      "--workload W1 --iommu smmuv3 --costs vtd-800",
      "--costs vtd-800 are not those of smmuv3, which has smmu-300, smmu-800, virtual-20000."
    ),
    (
      "--workload W1 --iommu vtd --costs smmu-300",
      "--costs smmu-300 are not those of vtd, which has vtd-2000, vtd-800, virtual-20000."
    ),
    ("--workload W1 --threshold 0", "--threshold wants 1 to 8192."),
    ("--workload W1 --threshold 8193", "--threshold wants 1 to 8192."),
    ("--workload W1 --queue 0", "--queue wants a power of two, 4 to 524288."),
    ("--workload W1 --queue 2", "--queue wants a power of two"),
    ("--workload W1 --queue 100", "--queue wants a power of two"),
    ("--workload W1 --iommu smmuv3 --queue 1048576", "--queue wants a power of two"),
    ("--workload W1 --queue=-4", "--queue wants a power of two"),
    ("--workload W1 --queue 65536", "--queue 65536 is more than the 32768 entries that a VT-d's queue may have"),
    ("--workload W1 --producers=-1", "--producers wants 0 to 1024."),
    ("--workload W1 --producers 1025", "--producers wants 0 to 1024."),
    ("--workload W1 --iommu vtd --no-range-invalidation", "--no-range-invalidation does nothing on a VT-d."),
    ("--workload W1 --costs vtd-800 --no-range-invalidation", "--no-range-invalidation does nothing on a VT-d."),
    ("--workload W1 --operations 0", "--operations wants 1 to 10000000."),
    ("--workload /x --seed 1", "--seed does nothing with a trace's file"),
    ("--workload /x --operations 1", "--operations does nothing with a trace's file"),
    ("--workload W1 --root /x", "--root does nothing in `simulate`"), ("--workload W1 W2", "W2"),
  ])
  func wrongUsage(_ options: String, _ sentence: String) throws {
    let result = Invocation("simulate \(options)")
    #expect(result.status == .usage && result.out.isEmpty && result.err.contains(sentence), "\(result.err)")
    let document = Invocation("--json simulate \(options)")
    #expect(try document.error["code"].text == "usage")
    #expect(try document.error["remedy"].text == "iommuctl simulate --help")
  }

  @Test func theHelpSaysWhatGoesTogether() {
    let help = Invocation("simulate --help")
    #expect(help.status == .fine)
    for word in [
      "smmu-300, smmu-800, virtual-20000   with smmuv3", "W1, W2, ", "lazy-per-cpu  unmaps wait", "--threshold",
      "Rubin et al.", "not yet run on hardware", "--queue", "--producers", "--no-range-invalidation",
    ] {
      #expect(help.out.contains(word), "\(word): \(help.out)")
    }
  }

  @Test(arguments: ["--workload W5", "--workload W5 --operations 1"])
  func whatMapsTooMuchIsRefused(_ options: String) throws {
    let result = Invocation("--json simulate \(options)")
    #expect(result.status == .failed && result.out.isEmpty)
    #expect(try result.error["code"].text == "invalid-argument")
    #expect(try result.error["length_bytes"].number == 1 << 40)
    #expect(try result.error["remedy"].text == "`bench alloc` runs it without memory")
  }

  /// At the ends of what may be said.
  @Test(arguments: [
    "--queue 32768 --producers 0", "--queue 4 --producers 1024", "--iommu smmuv3 --queue 524288",
    "--costs smmu-300 --queue 65536", "--no-range-invalidation",
  ])
  func whatMayBeSaid(_ options: String) {
    let result = Invocation("simulate --workload W6 --operations 2 \(options)")
    #expect(result.status == .fine && result.err.isEmpty, "\(result.err)")
  }

  private func withFile(_ text: String, _ body: (String) throws -> Void) throws {
    let path = FileManager.default.temporaryDirectory.appendingPathComponent("simulate-\(UUID().uuidString)").path
    defer { try? FileManager.default.removeItem(atPath: path) }
    try Data(text.utf8).write(to: URL(fileURLWithPath: path))
    try body(path)
  }

  @Test func filesThatAreNoTraces() throws {
    let missing = Invocation("--json simulate --workload /nonexistent/trace")
    #expect(missing.status == .failed && missing.out.isEmpty)
    let error = try missing.error
    #expect(error["errno"].text == "ENOENT" && error["operation"].text == "read trace")
    try withFile("swift-iommu-trace 2\n") { path in
      let garbled = Invocation("--json simulate --workload \(path)")
      #expect(garbled.status == .failed)
      let error = try garbled.error
      #expect(error["code"].text == "invalid-trace" && error["path"].text == path)
    }
    let long = "swift-iommu-trace 1\nname x\nseed 0\nthreads 1\nphase p\nm 0 0 33554433 b\nu 0 0\n"
    try withFile(long) { path in
      let refused = Invocation("--json simulate --workload \(path)")
      let error = try refused.error
      #expect(error["length_bytes"].number == 33_558_528, "whole pages")
    }
    try withFile(long.replacing("33554433", with: "33554432")) { path in
      let result = Invocation("simulate --workload \(path) --iommu vtd --costs vtd-800")
      #expect(result.status == .fine, "\(result.err)")
    }
  }

  /// Said before anything is run.
  @Test(arguments: [("/nonexistent/page.html", "ENOENT"), ("/", "EISDIR")])
  func aPageThatCannotBeWritten(_ path: String, _ errno: String) throws {
    let result = Invocation("--json simulate --workload W1 --operations 10000000 --html \(path)")
    #expect(result.status == .failed && result.out.isEmpty)
    let error = try result.error
    #expect(error["errno"].text == errno && error["operation"].text == "write page" && error["detail"].text == path)
  }

  /// An error of the library's ends it as anywhere. Opening a device takes the first invalidations.
  @Test(arguments: ["vtd", "smmuv3"])
  func errorsOfTheKernel(_ iommu: String) throws {
    let simulation = Simulation.failing(from: 12, of: "hwptInvalidate")
    let line = "--json simulate --workload W6 --operations 9 --iommu \(iommu)"
    let result = Invocation(line, simulation: simulation)
    #expect(result.status == .failed && result.out.isEmpty)
    let error = try result.error
    #expect(error["errno"].text == "EIO" && error["device"].text == "0000:00:02.0")
  }
}
