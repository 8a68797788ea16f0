import IOMMU

/// Traces as text, an operation a line:
///
///     swift-iommu-trace 1
///     name W2
///     seed 7
///     threads 2
///     phase 4 KiB
///     m 0 17 4096 b            map: thread, slot, bytes, direction (t to the device, f from it, b both)
///     l 1 18 64 4096 f         map a list: thread, slot, buffers, bytes of each, direction
///     u 0 17                   unmap: thread, slot
///
/// One space between fields, decimal numbers, lines that begin with `#` say nothing. What follows `phase` begins when
/// all before it is done. Lines may end as on other systems, by a carriage return and a line feed. Every slot is unmapped before the end.
package enum TraceText {
  static let heading = "swift-iommu-trace", version = 1
  static let lineByteCount = 200

  /// Whether a text, of which there may be more, has a first line that is not too long, or may come to have one.
  static func hasLine(_ bytes: [UInt8]) -> Bool {
    bytes.count < lineByteCount + 2 || bytes.prefix(lineByteCount + 2).contains(UInt8(ascii: "\n"))
  }

  /// The trace as text. O(operations).
  package static func text(of trace: Trace) -> [UInt8] {
    var bytes = Array("\(heading) \(version)\nname \(trace.name)\nseed \(trace.seed)\nthreads \(trace.threads)\n".utf8)
    for phase in trace.phases {
      bytes += Array("phase \(phase.name)\n".utf8)
      for operation in phase.operations { write(operation, to: &bytes) }
    }
    return bytes
  }

  private static func write(_ operation: Trace.Operation, to bytes: inout [UInt8]) {
    func field(_ number: UInt64) {
      bytes.append(UInt8(ascii: " "))
      bytes += String(number).utf8
    }
    let isMap = operation.action == .map
    bytes.append(UInt8(ascii: !isMap ? "u" : operation.count == 1 ? "m" : "l"))
    field(UInt64(operation.thread))
    field(UInt64(operation.slot))
    if isMap {
      if operation.count != 1 { field(UInt64(operation.count)) }
      field(operation.byteCount)
      bytes += [UInt8(ascii: " "), operation.direction.letter]
    }
    bytes.append(UInt8(ascii: "\n"))
  }
}

/// Why a text is no trace: where, and what was wrong with which field.
package struct TraceError: Error, Equatable, CustomStringConvertible {
  package enum Problem: Equatable, Sendable {
    case missing
    /// Not one of these.
    case unknown(expected: String)
    case notANumber
    /// Not from one to the other.
    case outOfRange(UInt64, UInt64)
    /// More than the line should have.
    case superfluous
    /// Longer than so many bytes.
    case tooLong(Int)
    case alreadyMapped, notMapped
    /// So many slots are still mapped at the end.
    case leftMapped(Int)
  }

  /// From 1 on.
  package let line: Int
  package let field: String
  package let problem: Problem

  package var description: String {
    let what =
      switch problem {
      case .missing: "is missing"
      case .unknown(let expected): "is not \(expected)"
      case .notANumber: "is not a decimal number"
      case .outOfRange(let lowest, let highest): "is not within \(lowest)…\(highest)"
      case .superfluous: "has no place here"
      case .tooLong(let limit): "is longer than \(limit) bytes"
      case .alreadyMapped: "is mapped already"
      case .notMapped: "is not mapped"
      case .leftMapped(let count): "is still mapped at the end, one of \(count)"
      }
    return "line \(line): \(field) \(what)"
  }
}
