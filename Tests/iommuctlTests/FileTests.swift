import Foundation
import Glibc
import IOMMU
import IOMMUSimulation
import Testing
import iommuctl

/// The files that subcommands read and write.
@Suite struct FileTests {
  private static let trace = "swift-iommu-trace 1\nname x\nseed 1\nthreads 1\nphase p\nm 0 0 4096 b\nu 0 0\n"

  /// A directory of its own.
  private func withDirectory(_ body: (String) throws -> Void) throws {
    let directory = FileManager.default.temporaryDirectory.appendingPathComponent("files-\(UUID().uuidString)").path
    try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(atPath: directory) }
    try body(directory)
  }

  private func write(_ text: String, _ path: String) throws {
    try Data(text.utf8).write(to: URL(fileURLWithPath: path))
  }

  // MARK: - Reading

  /// The reader waits for whoever writes a named pipe, to the end.
  @Test(.timeLimit(.minutes(1))) func aSlowWriter() throws {
    try withDirectory { directory in
      let path = "\(directory)/pipe", half = Self.trace.utf8.count / 2
      unsafe #expect(mkfifo(path, 0o600) == 0)
      let writer = Thread {
        usleep(50_000)
        guard let file = FileHandle(forWritingAtPath: path) else { return }
        file.write(Data(Self.trace.utf8.prefix(half)))
        usleep(50_000)
        file.write(Data(Self.trace.utf8.dropFirst(half)))
        try? file.close()
      }
      writer.start()
      let result = Invocation("--json bench map --trace-in \(path)")
      #expect(result.status == .fine, "\(result.err)")
      let document = try result.document
      #expect(document["operations"].number == 1)
    }
  }

  /// A file without an end is not read to it.
  @Test func aDeviceWithoutAnEnd() {
    let result = Invocation("bench map --trace-in /dev/zero")
    #expect(result.status == .failed && result.err == "iommuctl: /dev/zero, line 1: line is longer than 200 bytes\n")
  }

  @Test func aFileThatIsTooLong() throws {
    try withDirectory { directory in
      let path = "\(directory)/trace"
      try write(Self.trace, path)
      // All holes.
      unsafe #expect(truncate(path, 1 << 29 + 1) == 0)
      let error = try Invocation("--json bench map --trace-in \(path)").error
      #expect(error["code"].text == "invalid-argument" && error["errno"].isNull)
      #expect(error["detail"].text == "\(path) is longer than a trace may be, 536870912 bytes")
    }
  }

  // MARK: - Writing

  /// What is read is not written over, by whatever name.
  @Test func theSameFileTwice() throws {
    try withDirectory { directory in
      let path = "\(directory)/trace", link = "\(directory)/link"
      try write(Self.trace, path)
      try FileManager.default.createSymbolicLink(atPath: link, withDestinationPath: "trace")
      for name in [path, link] {
        let page = Invocation("simulate --workload \(path) --html \(name)")
        #expect(page.status == .usage)
        #expect(page.err.hasPrefix("Error: --html \(name) is the file that --workload reads: "))
        let trace = Invocation("bench map --trace-in \(path) --trace-out \(name)")
        #expect(trace.status == .usage)
        #expect(trace.err.hasPrefix("Error: --trace-out \(name) is the file that --trace-in reads: "))
      }
      #expect(try textFile(path) == Self.trace)
      #expect(Invocation("bench map --trace-in \(path) --trace-out \(directory)/other").status == .fine)
      #expect(try textFile("\(directory)/other") == Self.trace)
      // What holds nothing cannot be written over.
      #expect(Invocation("bench map --trace-in /dev/null --trace-out /dev/null").status == .failed)
    }
  }

  /// A run that ends early leaves no file, and what was there as it was.
  @Test func aPageOfARunThatFails() throws {
    try withDirectory { directory in
      let simulation = Simulation.failing(from: 12, of: "hwptInvalidate")
      let line = "simulate --workload W6 --operations 9 --iommu vtd --html \(directory)/page"
      #expect(Invocation(line, simulation: simulation).status == .failed)
      #expect(try FileManager.default.contentsOfDirectory(atPath: directory) == [])
      try write("kept", "\(directory)/page")
      #expect(Invocation(line, simulation: simulation).status == .failed)
      #expect(try textFile("\(directory)/page") == "kept")
    }
  }

  /// The new file is like the old one: behind the same link, with the same mode, and nothing beside it.
  @Test func aFileIsReplaced() throws {
    try withDirectory { directory in
      let path = "\(directory)/trace", link = "\(directory)/link"
      let open = FileManager.default
      try write(String(repeating: "x", count: 5000), path)
      try open.setAttributes([.posixPermissions: 0o640], ofItemAtPath: path)
      try open.createSymbolicLink(atPath: link, withDestinationPath: "trace")
      // Whoever reads the old one goes on with it.
      let reader = try #require(FileHandle(forReadingAtPath: path))
      #expect(Invocation("bench alloc --workload W2 --operations 6 --seed 7 --trace-out \(link)").status == .fine)
      #expect(try textFile(path) == golden("trace"))
      #expect(try open.destinationOfSymbolicLink(atPath: link) == "trace")
      #expect(try open.attributesOfItem(atPath: path)[.posixPermissions] as? Int == 0o640)
      #expect(try open.contentsOfDirectory(atPath: directory).sorted() == ["link", "trace"])
      #expect(reader.readDataToEndOfFile().count == 5000)
    }
  }

  /// Where the name beside it would be too long, the file itself is written.
  @Test func aNameAsLongAsCanBe() throws {
    try withDirectory { directory in
      let path = "\(directory)/" + String(repeating: "n", count: 255)
      try write(String(repeating: "x", count: 5000), path)
      #expect(Invocation("bench alloc --workload W2 --operations 6 --seed 7 --trace-out \(path)").status == .fine)
      #expect(try textFile(path) == golden("trace"))
    }
  }
}
