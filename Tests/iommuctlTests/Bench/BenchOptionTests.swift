import Foundation
import Testing
import iommuctl

/// Which option has an effect on what: all others are refused.
@Suite struct BenchOptionTests {
  /// `x`: taken; `-`: refused, since it would do nothing; `.`: not asked. `--node` is in BenchTests.
  private static let table = """
                            1 2 3 4 5 6 7 8 9 a b c
    --threads 2             x x x x x x x x - - x x
    --seconds 0.001         x x x x x x - - - - - -
    --operations 6          x x x x x x x x - - x x
    --granule 2             x x x x x x - - - - x x
    --direction to-device   x - x - - - - - - - x x
    --dma-bits 30           x x x x x x x x x x x x
    --delay-ns 10           x x - - - - x - x - x -
    --mode sg               x . - - - - - - - - x x
    --protection lazy-single x - x x - - x - x - x -
    --translation kernel    x x x x - x x - x - x -
    --interface type1       x x x x - x x - x - x -
    --live 5                - - - x - - - - - - - -
    --seed 3                - - - x - - x x - - - -
    """

  private static let cases = [
    "map", "map --mode coherent", "queue", "lookup", "alloc", "alloc 0:2.0", "map --workload W2", "alloc --workload W2",
    "map --trace-in TRACE", "alloc --trace-in TRACE", "map --trace-out /dev/null", "alloc --trace-out /dev/null",
  ]

  @Test(arguments: cases.indices)
  func everyOptionDoesSomethingOrIsRefused(_ column: Int) throws {
    let trace = FileManager.default.temporaryDirectory.appendingPathComponent("bench-\(UUID().uuidString)").path
    defer { try? FileManager.default.removeItem(atPath: trace) }
    #expect(Invocation("bench alloc --workload W2 --operations 4 --trace-out \(trace)").status == .fine)
    let measured = Self.cases[column].replacing("TRACE", with: trace)
    for row in Self.table.split(separator: "\n").dropFirst() {
      let words = row.split(separator: " ").map(String.init)
      let (option, value, mark) = (words[0], words[1], words[2 + column])
      let hasLength = option == "--seconds" || option == "--operations" || measured.contains("--trace-in")
      let length = hasLength ? "" : " --operations 6"
      let result = Invocation("--simulated bench \(measured) \(option) \(value)\(length)")
      switch mark {
      case "x": #expect(result.status == .fine, "\(measured) \(option): \(result.err)")
      case "-":
        #expect(result.status == .usage && result.out.isEmpty, "\(measured) \(option)")
        #expect(result.err.hasPrefix("Error: \(option) does nothing "), "\(result.err)")
      default: break
      }
    }
  }

  /// Given is given, also with the usual value.
  @Test(arguments: [
    ("map --trace-in /dev/null --granule 1", "--granule does nothing with --trace-in: the trace has its own sizes."),
    ("map --trace-in /dev/null --threads 1", "--threads does nothing with --trace-in: the trace has its own threads."),
    (
      "map --trace-in /dev/null --operations 9",
      "--operations does nothing with --trace-in: the trace has its own operations."
    ),
    (
      "map --workload W1 --direction bidirectional",
      "--direction does nothing with --workload W1: it has its own directions."
    ),
    ("map --workload W8 --threads 1", "--threads does nothing with --workload W8: it has 1 to 16 threads."),
    ("alloc --workload W5 --threads 1", "--threads does nothing with --workload W5: it has one thread."),
    ("queue --mode single", "--mode does nothing in `bench queue`: it maps one buffer at a time."),
    ("map --live 1000", "--live does nothing in `bench map`: it is for `bench lookup`."),
    ("map --seed 1", "--seed does nothing in `bench map`: nothing in it is random."),
    ("map --trace-out x --seed 1", "--seed does nothing with --trace-out alone: nothing in it is random."),
    ("map --mode coherent --trace-out x", "--mode does nothing with --trace-out: traces have no coherent memory."),
    (
      "map --mode coherent --protection strict",
      "--protection does nothing with --mode coherent: coherent memory stays mapped under every protection."
    ),
    ("alloc --translation kernel", "--translation does nothing in `bench alloc` without a device: nothing is opened."),
    (
      "alloc 0:2.0 --delay-ns 0",
      "--delay-ns does nothing in `bench alloc`: nothing is mapped, and addresses are released at once."
    ),
    (
      "queue --workload W1 --granule 2",
      "--workload does nothing in `bench queue`: workloads and traces are for `bench map` and `bench alloc`."
    ),
    (
      "lookup --trace-out x",
      "--trace-out does nothing in `bench lookup`: workloads and traces are for `bench map` and `bench alloc`."
    ),
    (
      "lookup --trace-in x",
      "--trace-in does nothing in `bench lookup`: workloads and traces are for `bench map` and `bench alloc`."
    ),
    (
      "queue --protection bounce",
      "--protection bounce has no flush queue: `bench queue` wants lazy-per-cpu, lazy-single or automatic."
    ),
  ])
  func whyItIsRefused(_ line: String, _ text: String) {
    let result = Invocation("--simulated bench \(line)")
    #expect(result.status == .usage && result.err.hasPrefix("Error: \(text)\n"), "\(result.err)")
  }

  @Test func refusedInJSONAsWell() throws {
    let result = Invocation("--json bench map --live 3")
    #expect(result.status == .usage && result.out.isEmpty)
    #expect(try result.error["detail"].text?.hasPrefix("--live does nothing ") == true)
    #expect(try result.error["remedy"].text == "iommuctl bench --help")
    let node = Invocation("--json --simulated bench map --node 0 --operations 1")
    #expect(node.status == .usage)
    #expect(try node.error["detail"].text?.hasPrefix("--node does nothing on a simulated machine") == true)
    #expect(try node.error["remedy"].text == "iommuctl bench --help")
    let plain = Invocation("--simulated bench map --node 0 --operations 1")
    #expect(plain.err.hasPrefix("Error: --node does nothing on a simulated machine, "))
  }

  /// Those that have a use that is not at once seen.
  @Test func whatIsTaken() throws {
    let sg = try Invocation("--json bench alloc --mode sg --granule 3 --operations 4 --trace-out /dev/null").document
    let single = try Invocation("--json bench alloc --granule 3 --operations 4 --trace-out /dev/null").document
    #expect(sg["trace"]["peak_bytes"].number == single["trace"]["peak_bytes"].number)
    #expect(sg["trace"]["digest"].text != single["trace"]["digest"].text)
    let device = try Invocation("--json --simulated bench alloc 0:2.0 --interface type1 --operations 4").document
    #expect(device["interface"].text == "simulated-type1")
    // Nothing about it is random, and the trace has its number all the same.
    let seeded = try Invocation("--json bench alloc --workload W8 --seed 7 --operations 60").document
    #expect(seeded["trace"]["seed"].number == 7)
  }
}
