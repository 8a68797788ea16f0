import IOMMU

extension TraceText {
  /// The trace of a text: of one that ``text(of:)`` wrote, the same. O(bytes).
  package static func parse(_ bytes: [UInt8]) throws(TraceError) -> Trace {
    var lines = Lines(bytes)
    let version = try lines.value("swift-iommu-trace")
    guard version.elementsEqual("1".utf8) else { throw lines.error("version", .unknown(expected: "1")) }
    let name = try lines.text("name")
    var fields = Fields(try lines.value("seed"), line: lines.number)
    let seed = try fields.number("seed", 0...UInt64.max)
    try fields.end()
    fields = Fields(try lines.value("threads"), line: lines.number)
    let threads = Int(try fields.number("threads", 1...UInt64(Trace.Limits.threads)))
    try fields.end()
    var builder = TraceBuilder(name: name, seed: seed, threads: threads)
    while let line = try lines.next() { try parse(line, lines, threads, &builder) }
    guard builder.liveCount == 0 else { throw lines.error("slot", .leftMapped(builder.liveCount)) }
    return builder.trace
  }

  private static func parse(
    _ line: ArraySlice<UInt8>, _ lines: Lines, _ threads: Int, _ builder: inout TraceBuilder
  ) throws(TraceError) {
    if line.starts(with: "phase ".utf8) {
      guard builder.trace.phases.count < Trace.Limits.phases else {
        throw lines.error("phase", .outOfRange(1, UInt64(Trace.Limits.phases)))
      }
      return builder.beginPhase(try lines.text(of: line.dropFirst(6), "phase"))
    }
    var fields = Fields(line, line: lines.number)
    let kind = fields.next()
    guard let kind, kind.count == 1, "mlu".utf8.contains(kind[kind.startIndex]) else {
      throw lines.error("operation", .unknown(expected: "m, l, u or phase"))
    }
    let letter = kind[kind.startIndex]
    var operation = Trace.Operation(
      action: letter == UInt8(ascii: "u") ? .unmap : .map, direction: .bidirectional, thread: 0, slot: 0, count: 1,
      byteCount: 0)
    operation.thread = UInt16(try fields.number("thread", 0...UInt64(threads - 1)))
    operation.slot = UInt32(try fields.number("slot", 0...UInt64(Trace.Limits.slots - 1)))
    if operation.action == .map {
      if letter == UInt8(ascii: "l") {
        operation.count = UInt32(try fields.number("buffers", 1...UInt64(Trace.Limits.count)))
      }
      operation.byteCount = try fields.number("bytes", 1...Trace.Limits.byteCount / UInt64(operation.count))
      guard let text = fields.next() else { throw lines.error("direction", .missing) }
      guard text.count == 1, let direction = DMADirection(letter: text[text.startIndex]) else {
        throw lines.error("direction", .unknown(expected: "t, f or b"))
      }
      operation.direction = direction
    }
    try fields.end()
    do throws(TraceBuilder.Violation) { try builder.add(operation) } catch {
      switch error {
      case .alreadyMapped: throw lines.error("slot", .alreadyMapped)
      case .notMapped: throw lines.error("slot", .notMapped)
      case .noPhase: throw lines.error("phase", .missing)
      }
    }
  }
}

/// The lines of a text that are no comments.
private struct Lines {
  private let bytes: [UInt8]
  private var position = 0
  /// Of the line that was read last, from 1 on.
  private(set) var number = 0

  init(_ bytes: [UInt8]) { self.bytes = bytes }

  func error(_ field: String, _ problem: TraceError.Problem) -> TraceError {
    TraceError(line: max(number, 1), field: field, problem: problem)
  }

  mutating func next() throws(TraceError) -> ArraySlice<UInt8>? {
    while position < bytes.count {
      number += 1
      let end = bytes[position...].firstIndex(of: UInt8(ascii: "\n")) ?? bytes.count
      var line = bytes[position..<end]
      position = end + 1
      // An editor of another system may have been at it.
      if line.last == UInt8(ascii: "\r") { line.removeLast() }
      if line.count > TraceText.lineByteCount { throw error("line", .tooLong(TraceText.lineByteCount)) }
      if line.first != UInt8(ascii: "#") { return line }
    }
    return nil
  }

  /// What follows a word that the next line begins with.
  mutating func value(_ key: String) throws(TraceError) -> ArraySlice<UInt8> {
    guard let line = try next() else { throw error(key, .missing) }
    guard line.starts(with: "\(key) ".utf8) else { throw error(key, .missing) }
    return line.dropFirst(key.utf8.count + 1)
  }

  mutating func text(_ key: String) throws(TraceError) -> String {
    let value = try value(key)
    return try text(of: value, key)
  }

  /// Printable ASCII, a few bytes.
  func text(of bytes: ArraySlice<UInt8>, _ field: String) throws(TraceError) -> String {
    if bytes.isEmpty { throw error(field, .missing) }
    if bytes.count > Trace.Limits.nameByteCount { throw error(field, .tooLong(Trace.Limits.nameByteCount)) }
    guard bytes.allSatisfy({ (0x20...0x7e).contains($0) }) else {
      throw error(field, .unknown(expected: "printable ASCII"))
    }
    return String(decoding: bytes, as: UTF8.self)
  }
}

/// The fields of a line, one space between them.
private struct Fields {
  private var rest: ArraySlice<UInt8>?
  private let line: Int

  init(_ bytes: ArraySlice<UInt8>, line: Int) { (rest, self.line) = (bytes, line) }

  mutating func next() -> ArraySlice<UInt8>? {
    guard let bytes = rest else { return nil }
    let end = bytes.firstIndex(of: UInt8(ascii: " "))
    rest = end.map { bytes[($0 + 1)...] }
    return bytes[..<(end ?? bytes.endIndex)]
  }

  /// Decimal digits.
  mutating func number(_ field: String, _ range: ClosedRange<UInt64>) throws(TraceError) -> UInt64 {
    guard let text = next(), !text.isEmpty else { throw TraceError(line: line, field: field, problem: .missing) }
    var value: UInt64 = 0
    for byte in text {
      guard (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(byte) else {
        throw TraceError(line: line, field: field, problem: .notANumber)
      }
      let (product, isTooBig) = value.multipliedReportingOverflow(by: 10)
      let (sum, isTooBigNow) = product.addingReportingOverflow(UInt64(byte - UInt8(ascii: "0")))
      if isTooBig || isTooBigNow { throw outOfRange(field, range) }
      value = sum
    }
    guard range.contains(value) else { throw outOfRange(field, range) }
    return value
  }

  private func outOfRange(_ field: String, _ range: ClosedRange<UInt64>) -> TraceError {
    TraceError(line: line, field: field, problem: .outOfRange(range.lowerBound, range.upperBound))
  }

  /// Nothing more may come.
  func end() throws(TraceError) {
    if rest != nil { throw TraceError(line: line, field: "a further field", problem: .superfluous) }
  }
}
