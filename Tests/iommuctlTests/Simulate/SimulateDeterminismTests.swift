import Foundation
import Testing
import iommuctl

/// The same command, the same bytes: nothing of the real time, of addresses or of the environment is in a result.
@Suite struct SimulateDeterminismTests {
  private static let line = "--json simulate --workload W3 --operations 100 --costs virtual-20000 --seed 7"

  @Test func twiceTheSame() throws {
    let first = Invocation(Self.line), second = Invocation(Self.line)
    #expect(first.status == .fine && first.out == second.out)
    #expect(
      try first.document["policies"].list.map { $0["iommu"].text }
        == ["vtd", "smmuv3"].flatMap { Array(repeating: $0, count: 5) })
    let other = Invocation(Self.line.replacing("--seed 7", with: "--seed 8"))
    #expect(first.out != other.out)
    let usual = Invocation(Self.line.replacing("--seed 7", with: "")),
      one = Invocation(Self.line.replacing("--seed 7", with: "--seed 1"))
    #expect(usual.out == one.out && usual.out != first.out)
  }

  /// With other producers, whose commands are nobody's: the library's answer to them is the same as well.
  @Test func twiceTheSameInACrowd() throws {
    let line = Self.line + " --queue 32 --producers 3 --no-range-invalidation"
    let first = Invocation(line), second = Invocation(line)
    #expect(first.status == .fine && first.out == second.out && first.out != Invocation(Self.line).out)
    for policy in try first.document["policies"].list where policy["name"].text == "strict" {
      #expect(policy["stalls"].number ?? 0 > 0)
    }
  }

  /// In processes of their own, with other memory layouts, other hash seeds and debug mode, as many at a time as there are.
  @Test func anotherProcess() throws {
    let directory = URL(fileURLWithPath: CommandLine.arguments[0]).resolvingSymlinksInPath().deletingLastPathComponent()
    let path = directory.appendingPathComponent("iommuctl").path
    let expected = Invocation(Self.line).out
    let started = try (0..<4).map { index in
      let process = Process(), out = Pipe()
      process.executableURL = URL(fileURLWithPath: path)
      process.environment = ProcessInfo.processInfo.environment.merging(["SWIFT_IOMMU_DEBUG": "\(index % 2)"]) { $1 }
      (process.arguments, process.standardOutput) = (Self.line.split(separator: " ").map(String.init), out)
      try process.run()
      return (process, out)
    }
    for (process, out) in started {
      let text = String(decoding: out.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
      process.waitUntilExit()
      #expect(process.terminationStatus == 0 && text == expected)
    }
  }
}
