import CapturedTrees
import Foundation
import Testing

/// The built executable, as a process.
@Suite struct ProcessTests {
  /// It lies beside the test's own executable.
  private static let path: String? = {
    let directory = URL(fileURLWithPath: CommandLine.arguments[0]).resolvingSymlinksInPath()
      .deletingLastPathComponent()
    let path = directory.appendingPathComponent("iommuctl").path
    return FileManager.default.isExecutableFile(atPath: path) ? path : nil
  }()

  private func run(
    _ arguments: [String], _ environment: [String: String] = [:]
  ) throws -> (status: Int32, out: String, err: String) {
    let process = Process(), out = Pipe(), err = Pipe()
    process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
    process.executableURL = URL(fileURLWithPath: try #require(Self.path, "iommuctl is not built"))
    (process.arguments, process.standardOutput, process.standardError) = (arguments, out, err)
    try process.run()
    // Both fit into a pipe's buffer.
    process.waitUntilExit()
    func text(_ pipe: Pipe) -> String {
      String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    }
    return (process.terminationStatus, text(out), text(err))
  }

  @Test func dataGoesToStdout() throws {
    let result = try run(["--json", "demo"])
    #expect(result.status == 0)
    #expect(result.err.isEmpty)
    #expect(try Document(parsing: result.out)["command"].text == "demo")
  }

  /// A full disk behind stdout is a failure, said on stderr.
  @Test func dataThatCannotBeWrittenIsAnError() throws {
    let process = Process(), err = Pipe()
    process.executableURL = URL(fileURLWithPath: try #require(Self.path, "iommuctl is not built"))
    (process.arguments, process.standardError) = (["--simulated", "list"], err)
    process.standardOutput = try FileHandle(forWritingTo: URL(fileURLWithPath: "/dev/full"))
    try process.run()
    process.waitUntilExit()
    #expect(process.terminationStatus == 1)
    let message = String(decoding: err.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    #expect(message.contains("stdout: ENOSPC"))
  }

  @Test func benchmarksOfTheSimulatedMachine() throws {
    let result = try run(["--simulated", "bench", "map", "--operations", "20", "--protection", "lazy-per-cpu"])
    #expect(result.status == 0 && result.err.isEmpty)
    #expect(result.out.contains("\naverage map latency(us):") && result.out.contains("\naverage unmap latency(us):"))
    let refused = try run(["--simulated", "bench", "map", "--trace-in", "/dev/null"])
    #expect(refused.status == 1 && refused.out.isEmpty)
    #expect(refused.err == "iommuctl: /dev/null, line 1: swift-iommu-trace is missing\n")
  }

  /// People read the story below the fault; in debug mode it says who made the mapping.
  @Test(arguments: [false, true]) func storiesAreTold(_ isDebugged: Bool) throws {
    let environment = ["SWIFT_IOMMU_DEBUG": isDebugged ? "1" : "0"]
    let result = try run(["--simulated", "selftest", "0:2.0"], environment)
    #expect(result.status == 0, "\(result.err)")
    let lines = result.out.split(separator: "\n")
    let stories = lines.filter { $0.hasPrefix("  a write to 0x") || $0.hasPrefix("  a read of 0x") }
    #expect(stories.count == 3 && stories.count { $0.contains(", which was unmapped") } == 2, "\(result.out)")
    #expect(stories.allSatisfy { $0.contains("It was mapped by thread ") == isDebugged })
  }

  /// Figures of debug mode are said to be such, and whose mistakes are told: what demo and selftest do on purpose.
  @Test func debugModeIsNamed() throws {
    let line = "debug mode is on (SWIFT_IOMMU_DEBUG): "
    for (arguments, mistakes) in [
      (["--simulated", "bench", "map", "--operations", "20"], 0), (["bench", "queue", "--operations", "20"], 0),
      (["bench", "lookup", "--operations", "20", "--live", "5"], 0), (["demo"], 1),
      (["--simulated", "selftest", "0:2.0"], 3),
    ] {
      let on = try run(arguments, ["SWIFT_IOMMU_DEBUG": "1"]), off = try run(arguments, ["SWIFT_IOMMU_DEBUG": "0"])
      #expect(on.status == 0 && off.status == 0)
      #expect(on.out.contains("\n\(line)") && !off.out.contains(line), "\(on.out)")
      #expect(on.err.split(separator: "\n").count { $0.hasPrefix("iommu debug: 0000:00:02.0: ") } == mistakes)
      #expect(off.err.isEmpty)
      let document = try run(["--json"] + arguments, ["SWIFT_IOMMU_DEBUG": "1"])
      #expect(try Document(parsing: document.out)["debug"].flag == true)
      #expect(try Document(parsing: run(["--json"] + arguments, ["SWIFT_IOMMU_DEBUG": ""]).out)["debug"].flag == false)
    }
    // Addresses alone are the same in either mode.
    let addresses = try run(["--json", "bench", "alloc", "--operations", "9"], ["SWIFT_IOMMU_DEBUG": "1"])
    #expect(try Document(parsing: addresses.out)["debug"].flag == false)
  }

  @Test func messagesGoToStderr() throws {
    let usage = try run(["frobnicate"])
    #expect(usage.status == 2)
    #expect(usage.out.isEmpty && !usage.err.isEmpty)
    let missing = try run(["--simulated", "show", "9:0.0"])
    #expect(missing.status == 1)
    #expect(missing.out.isEmpty && missing.err.contains("no-such-device"))
    #expect(try run(["--help"]).status == 0)
  }
}
