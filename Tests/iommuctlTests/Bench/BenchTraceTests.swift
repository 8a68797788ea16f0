import Foundation
import IOMMU
import IOMMUSimulation
import Testing
import iommuctl

/// Workloads, and traces in files.
@Suite struct BenchTraceTests {
  private let directory = FileManager.default.temporaryDirectory.appendingPathComponent("bench-\(UUID().uuidString)")

  private func withFile(_ body: (String) throws -> Void) throws {
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: directory) }
    try body(directory.appendingPathComponent("trace").path)
  }

  private func document(_ line: String) throws -> Document {
    let result = Invocation("--json --simulated bench \(line)")
    #expect(result.status == .fine, "\(result.err)")
    return try result.document
  }

  /// Every workload runs to its end, on a domain and on an allocator; only W5 takes too much memory for one.
  @Test(arguments: Workload.allCases, ["map", "alloc", "map --protection lazy-per-cpu --threads 4"])
  func workloadsRun(_ workload: Workload, _ line: String) throws {
    if workload == .w5, line != "alloc" { return }
    if workload == .w8, line.contains("--threads") { return }
    // W5 has no room for anything in 28 bits.
    let bits = workload == .w5 ? 48 : 28
    let document = try document("\(line) --workload \(workload.rawValue) --operations 75 --dma-bits \(bits)")
    #expect(document["operations"].number == 75)
    #expect(document["trace"]["name"].text == workload.rawValue && document["trace"]["mappings"].number == 75)
    #expect(document["phases"].list.reduce(0) { $0 + ($1["operations"].number ?? 0) } == 75)
    if workload == .w8 { #expect(document["phases"][4]["name"].text == "2 threads, 8 pages") }
    for phase in document["phases"].list {
      let latency = phase[line == "alloc" ? "pair_ns" : "map_ns"]
      #expect(latency["samples"].number == 0 || latency["p50"].number != nil)
    }
  }

  /// 768 MiB to take, of 1 GiB.
  private static let little = Simulation.changed { $0.memoryByteCount = 1 << 30 }

  @Test func whatTakesTooMuchMemoryIsRefused() throws {
    let result = Invocation("--json --simulated bench map --workload W5 --operations 9", simulation: Self.little)
    #expect(result.status == .failed)
    #expect(try result.error["code"].text == "out-of-memory")
    #expect(try result.error["length_bytes"].number == 1 << 40)
    #expect(try result.error["remedy"].text == "`bench alloc` runs it without memory")
    #expect(Invocation("bench alloc --workload W5 --operations 9").status == .fine)
  }

  /// The remedy of a trace that takes too much names what helps, and nothing that does not.
  @Test(arguments: [
    ("--workload W3", "fewer --operations", "--workload W3 --operations 500"),
    ("--workload W4", "fewer --operations or --dma-bits", "--workload W4 --dma-bits 24 --operations 500"),
    (
      "--trace-out /dev/null --granule 1024 --threads 512 --operations 512", "fewer --threads or a smaller --granule",
      "--trace-out /dev/null --granule 1 --threads 2 --operations 4"
    ),
  ])
  func whatMakesATraceSmaller(_ line: String, _ remedy: String, _ smaller: String) throws {
    let result = Invocation("--json bench map \(line)", simulation: Self.little)
    #expect(try result.error["code"].text == "out-of-memory")
    #expect(try result.error["remedy"].text == "`bench alloc` runs it without memory; \(remedy) make it smaller")
    #expect(Invocation("bench map \(smaller)").status == .fine)
  }

  /// With their usual operations, where there is as much: they are asked for on a device that is not there, and not run.
  @Test(arguments: [("W3", 2), ("W4", 6), ("W9", 5)])
  func whatThereIsMemoryFor(_ workload: String, _ gibibytes: UInt64) throws {
    for (memory, code) in [(gibibytes, "no-such-device"), (gibibytes / 2, "out-of-memory")] {
      let simulation = Simulation.changed { $0.memoryByteCount = memory << 30 }
      let result = Invocation("--json --simulated bench map 9:0.0 --workload \(workload)", simulation: simulation)
      #expect(try result.error["code"].text == code)
    }
  }

  @Test func aTraceInAFileIsAsLargeAsItIs() throws {
    try withFile { path in
      #expect(Invocation("bench alloc --workload W5 --operations 1 --trace-out \(path)").status == .fine)
      let result = Invocation("--json bench map --trace-in \(path)", simulation: Self.little)
      let remedy = try result.error["remedy"].text
      #expect(remedy == "`bench alloc` runs it without memory")
    }
  }

  @Test func theSeedIsTheTrace() throws {
    let digests = try ["--seed 1", "--seed 1", "--seed 2", ""].map {
      try document("alloc --workload W2 --operations 100 \($0)")["trace"]["digest"].text
    }
    #expect(digests[0] == digests[1] && digests[0] == digests[3] && digests[0] != digests[2])
  }

  /// What was run is run again: the same operations, and the same counts.
  @Test(arguments: [
    "--workload W3 --operations 200 --threads 2", "--mode sg --granule 3 --operations 40 --direction from-device",
  ])
  func recordedAndReplayed(_ line: String) throws {
    try withFile { path in
      let first = try document("map --translation kernel \(line) --trace-out \(path)")
      let again = try document("map --translation kernel --trace-in \(path)")
      for key in ["name", "digest"] { #expect(first["trace"][key].text == again["trace"][key].text) }
      for key in ["seed", "mappings", "peak_bytes"] {
        #expect(first["trace"][key].number == again["trace"][key].number)
      }
      for key in ["operations", "threads"] { #expect(first[key].number == again[key].number) }
      for key in ["system_calls_per_operation", "invalidations_per_operation"] {
        #expect(first[key].real != nil && first[key].real == again[key].real)
      }
      #expect(TraceText.text(of: try TraceText.parse(Array(textFile(path).utf8))) == Array(try textFile(path).utf8))
    }
  }

  /// The file, byte by byte.
  @Test func theFileIsAsItWas() throws {
    try withFile { path in
      _ = try document("alloc --workload W2 --operations 6 --seed 7 --trace-out \(path)")
      #expect(try textFile(path) == golden("trace"))
    }
  }

  @Test func aGarbledFileIsNamed() throws {
    try withFile { path in
      try Data("swift-iommu-trace 1\nname x\nseed 1\nthreads 1\nphase p\nm 0 0 many b\n".utf8)
        .write(to: URL(fileURLWithPath: path))
      let result = Invocation("--json --simulated bench map --trace-in \(path)")
      #expect(result.status == .failed && result.out.isEmpty)
      let error = try result.error
      #expect(error["code"].text == "invalid-trace" && error["path"].text == path)
      #expect(error["line"].number == 6 && error["field"].text == "bytes")
      #expect(
        error.keys.isSuperset(of: ["code", "operation", "errno", "address", "length_bytes", "device", "remedy"]))
      let plain = Invocation("--simulated bench map --trace-in \(path)")
      #expect(plain.err == "iommuctl: \(path), line 6: bytes is not a decimal number\n")
    }
  }

  @Test(arguments: [
    ("--trace-in /nonexistent/trace", "read trace", "ENOENT"), ("--trace-in /", "read trace", "EISDIR"),
    ("--trace-out /nonexistent/trace", "write trace", "ENOENT"), ("--trace-out /dev/full", "write trace", "ENOSPC"),
  ])
  func filesThatCannotBeUsed(_ option: String, _ operation: String, _ errno: String) throws {
    let result = Invocation("--json --simulated bench map \(option)")
    #expect(result.status == .failed && result.out.isEmpty)
    #expect(try result.error["operation"].text == operation)
    #expect(try result.error["errno"].text == errno)
  }

  /// A benchmark of no operation has measured nothing.
  @Test(arguments: [("map", "any of the 10 maps"), ("alloc", "any of the 10 maps"), ("map", "the only map")])
  func roomForNothing(_ kind: String, _ what: String) throws {
    try withFile { path in
      let operations = what.contains("10") ? 10 : 1
      let line = "bench \(kind) --trace-out \(path) --operations \(operations) --granule 1024"
      let result = Invocation("--json \(line) --dma-bits 20")
      #expect(result.status == .failed && result.out.isEmpty)
      let error = try result.error
      #expect(error["code"].text == "no-space" && error["detail"].text == "There was no room for \(what)")
      #expect(Invocation("\(line) --dma-bits 23").status == .fine)
      try Data("swift-iommu-trace 1\nname x\nseed 1\nthreads 1\n".utf8).write(to: URL(fileURLWithPath: path))
      let nothing = Invocation("--json bench \(kind) --trace-in \(path)")
      #expect(nothing.status == .failed)
      #expect(try nothing.error["code"].text == "empty")
    }
  }

  /// Of a pair of threads one maps, and the other unmaps.
  @Test func producersHaveConsumers() {
    for (threads, status) in [(1, Outcome.usage), (3, .usage), (2, .fine), (4, .fine)] {
      let result = Invocation("bench map --workload W6 --threads \(threads) --operations 20")
      #expect(result.status == status)
      #expect(status == .fine || result.err.hasPrefix("Error: --threads wants an even number with --workload W6: "))
    }
    #expect(Invocation("bench map --workload W6 --operations 20").out.contains(", threads 2, "))
  }

  /// A trace is written when it is sure that it can be run: neither too much memory nor a device that cannot be driven leaves a
  /// file, nor is one that was there cut short.
  @Test(arguments: [
    "map --workload W5 --operations 9", "map 9:0.0 --operations 5", "map 0:3.0 --operations 5",
    "alloc 0:3.0 --operations 5",
    "map --operations 5 --translation process --interface type1", "map --operations 5 --node 0",
  ])
  func whatCannotBeRunIsNotWritten(_ line: String) throws {
    try withFile { path in
      let refused = Invocation("--simulated bench \(line) --trace-out \(path)", simulation: Self.little)
      #expect(refused.status != .fine && refused.out.isEmpty)
      #expect(!FileManager.default.fileExists(atPath: path), "\(refused.err)")
      try Data("kept".utf8).write(to: URL(fileURLWithPath: path))
      _ = Invocation("--simulated bench \(line) --trace-out \(path)", simulation: Self.little)
      #expect(try textFile(path) == "kept")
    }
  }
}
