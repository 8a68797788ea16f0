extension UInt64 {
  /// The multiple of 2^shift that is not above.
  @inline(__always) func rounded(downTo shift: UInt64) -> UInt64 { self & ~(1 << shift - 1) }
}

/// A range of addresses with an inclusive end, for arithmetic that reaches the top of 64 bits.
struct Span64: Hashable, Sendable {
  var start: UInt64
  var last: UInt64

  func overlaps(_ other: Span64) -> Bool { start <= other.last && other.start <= last }
  func contains(_ other: Span64) -> Bool { start <= other.start && other.last <= last }

  /// The aligned blocks of a power of two of bytes that lie in a span as a whole.
  static func wholeBlocks(of byteCount: UInt64, in span: Span64) -> [Span64] {
    let first = span.start.addingReportingOverflow(byteCount - 1)
    let start = first.partialValue & ~(byteCount - 1)
    guard !first.overflow, start <= span.last else { return [] }
    let count = (span.last - start) / byteCount + ((span.last - start) % byteCount == byteCount - 1 ? 1 : 0)
    return (0..<count).map { Span64(start: start + $0 * byteCount, last: start + $0 * byteCount + (byteCount - 1)) }
  }

  /// Merges spans that overlap or touch, in order. O(n log n).
  static func normalised(_ spans: [Span64]) -> [Span64] {
    var merged: [Span64] = []
    for span in spans.sorted(by: { $0.start < $1.start }) {
      if let tail = merged.last, tail.last == .max || span.start <= tail.last + 1 {
        merged[merged.count - 1].last = max(tail.last, span.last)
      } else {
        merged.append(span)
      }
    }
    return merged
  }

  /// What is left of `whole` without `holes`, in order. O(n log n).
  static func complement(of holes: [Span64], in whole: Span64) -> [Span64] {
    var rest: [Span64] = []
    var next = whole.start
    for hole in normalised(holes) where hole.last >= whole.start && hole.start <= whole.last {
      if hole.start > next { rest.append(Span64(start: next, last: hole.start - 1)) }
      guard hole.last < whole.last else { return rest }
      next = hole.last + 1
    }
    rest.append(Span64(start: next, last: whole.last))
    return rest
  }
}
