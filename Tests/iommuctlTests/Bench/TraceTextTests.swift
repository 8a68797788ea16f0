import IOMMU
import Testing
import iommuctl

@Suite struct TraceTextTests {
  private static let head = "swift-iommu-trace 1\nname t\nseed 5\nthreads 2\n"

  private func parse(_ text: String) throws(TraceError) -> Trace { try TraceText.parse(Array(text.utf8)) }

  @Test func everyOperation() throws {
    let text = Self.head + "phase first\nm 0 0 4096 b\nl 1 7 3 8192 f\nu 1 0\nphase second\nm 1 0 1 t\nu 0 7\nu 0 0\n"
    let trace = try parse(text)
    #expect(trace.name == "t" && trace.seed == 5 && trace.threads == 2)
    #expect(trace.phases.map(\.name) == ["first", "second"])
    #expect(trace.phases.map(\.operations.count) == [3, 3])
    #expect(trace.mapCount == 3 && trace.slotCount == 8 && trace.peakByteCount == 4096 + 3 * 8192)
    let list = trace.phases[0].operations[1]
    #expect(
      list.thread == 1 && list.slot == 7 && list.count == 3 && list.byteCount == 8192 && list.direction == .fromDevice)
    #expect(trace.phases[1].operations[0].direction == .toDevice)
    #expect(TraceText.text(of: trace) == Array(text.utf8))
  }

  @Test func commentsAndAMissingLastLineEnd() throws {
    let commented = try parse("# a\n" + Self.head + "# b\nphase x\n#\nm 0 1 9 b\nu 0 1")
    #expect(commented == (try parse(Self.head + "phase x\nm 0 1 9 b\nu 0 1\n")))
  }

  /// As an editor of another system writes lines; within one a carriage return is a mistake.
  @Test func carriageReturns() throws {
    let text = Self.head + "# c\nphase x\nm 0 1 9 b\nu 0 1\n"
    #expect(try parse(text.replacing("\n", with: "\r\n")) == parse(text))
    let full = "#" + String(repeating: "x", count: 199)
    #expect(try parse("\(full)\r\n\(text)") == parse(text))
    let error = #expect(throws: TraceError.self) { try parse(Self.head + "phase p\nm 0 0 4096 b\r\r\n") }
    #expect(error?.field == "direction")
  }

  /// A text behind the head (or instead of it), and what must be said of it.
  static let mistakes: [(String, Int, String, TraceError.Problem)] = [
    ("m 0 0 4096 b", 5, "phase", .missing),
    ("phase ", 5, "phase", .missing),
    ("phase p\u{e9}", 5, "phase", .unknown(expected: "printable ASCII")),
    ("phase " + String(repeating: "x", count: 41), 5, "phase", .tooLong(40)),
    ("phase p\nx 0 0", 6, "operation", .unknown(expected: "m, l, u or phase")),
    ("phase p\n\n", 6, "operation", .unknown(expected: "m, l, u or phase")),
    ("phase p\nm", 6, "thread", .missing),
    ("phase p\nm 2 0 4096 b", 6, "thread", .outOfRange(0, 1)),
    ("phase p\nm 0 -1 4096 b", 6, "slot", .notANumber),
    ("phase p\nm 0 1048576 4096 b", 6, "slot", .outOfRange(0, 1_048_575)),
    ("phase p\nm 0 99999999999999999999 4096 b", 6, "slot", .outOfRange(0, 1_048_575)),
    ("phase p\nm 0 0 0 b", 6, "bytes", .outOfRange(1, 1 << 40)),
    ("phase p\nm 0 0  4096 b", 6, "bytes", .missing),
    ("phase p\nl 0 0 0 4096 b", 6, "buffers", .outOfRange(1, 1 << 28)),
    ("phase p\nl 0 0 1024 1073741825 b", 6, "bytes", .outOfRange(1, 1 << 30)),
    ("phase p\nm 0 0 4096", 6, "direction", .missing),
    ("phase p\nm 0 0 4096 bb", 6, "direction", .unknown(expected: "t, f or b")),
    ("phase p\nm 0 0 4096 q", 6, "direction", .unknown(expected: "t, f or b")),
    ("phase p\nm 0 0 4096 b ", 6, "a further field", .superfluous),
    ("phase p\nu 0 3", 6, "slot", .notMapped),
    ("phase p\nm 0 3 1 b\nm 1 3 1 b", 7, "slot", .alreadyMapped),
    ("phase p\nm 0 3 1 b\nm 0 4 1 b\n", 7, "slot", .leftMapped(2)),
    (String(repeating: "#", count: 201), 5, "line", .tooLong(200)),
    (String(repeating: "phase p\n", count: 257), 261, "phase", .outOfRange(1, 256)),
  ]

  @Test(arguments: mistakes)
  func mistakesAreNamed(_ text: String, _ line: Int, _ field: String, _ problem: TraceError.Problem) {
    let error = #expect(throws: TraceError.self) { try parse(Self.head + text) }
    #expect(error?.line == line && error?.field == field && error?.problem == problem, "\(error as Any)")
  }

  static let heads: [(String, Int, String, TraceError.Problem)] = [
    ("", 1, "swift-iommu-trace", .missing),
    ("hello", 1, "swift-iommu-trace", .missing),
    ("swift-iommu-trace 2\n", 1, "version", .unknown(expected: "1")),
    ("swift-iommu-trace 1\n", 1, "name", .missing),
    ("swift-iommu-trace 1\nname t\nseed x\n", 3, "seed", .notANumber),
    ("swift-iommu-trace 1\nname t\nseed 1 1\n", 3, "a further field", .superfluous),
    ("swift-iommu-trace 1\nname t\nseed 1\nthreads 0\n", 4, "threads", .outOfRange(1, 1024)),
    ("swift-iommu-trace 1\nname t\nseed 1\nthreads 1025\n", 4, "threads", .outOfRange(1, 1024)),
  ]

  @Test(arguments: heads)
  func mistakesOfTheHead(_ text: String, _ line: Int, _ field: String, _ problem: TraceError.Problem) {
    let error = #expect(throws: TraceError.self) { try parse(text) }
    #expect(error?.line == line && error?.field == field && error?.problem == problem, "\(error as Any)")
  }

  @Test func errorsSayWhere() throws {
    let error = #expect(throws: TraceError.self) { try parse(Self.head + "phase p\nm 0 0 4096 q") }
    #expect(error?.description == "line 6: direction is not t, f or b")
  }

  /// Bytes changed at random: the parser answers, and what it accepts it writes and reads again as the same.
  @Test func mutatedTracesNeverTrap() throws {
    let whole = TraceText.text(of: Workload.w3.trace(.init(operations: 30, threads: 3), seed: 9))
    var random = Random(seed: 12), accepted = 0
    let alphabet = Array("0123456789 \n#mlutfbphase\u{0}".utf8) + [0xff, 0x80]
    for _ in 0..<1500 {
      var bytes = whole
      for _ in 0..<Int.random(in: 1...4, using: &random) {
        let place = Int.random(in: 0..<bytes.count, using: &random)
        switch Int.random(in: 0..<5, using: &random) {
        case 0: bytes[place] = alphabet.randomElement(using: &random)!
        case 1: bytes.insert(alphabet.randomElement(using: &random)!, at: place)
        case 2: bytes.remove(at: place)
        case 3: bytes.removeSubrange(place..<min(bytes.count, place + 40))
        default: bytes.insert(contentsOf: bytes[place..<min(bytes.count, place + 40)], at: place)
        }
        if bytes.isEmpty { bytes = [0] }
      }
      guard let trace = try? TraceText.parse(bytes) else { continue }
      accepted += 1
      #expect(try TraceText.parse(TraceText.text(of: trace)) == trace)
    }
    #expect(accepted > 0 && accepted < 1500)
  }
}
