/// Latencies in nanoseconds, counted in buckets that are a 64th of their value wide: percentiles to within 1.6 %, in 18 KiB
/// however many there are.
///
/// Source: Gil Tene's HdrHistogram, whose log-linear buckets these are.
package struct LatencyHistogram: Sendable {
  /// Buckets of each power of two; below as many nanoseconds, each value has its own.
  private static let perOctave = 64, shift = 6
  /// Anything longer counts as this, 18 minutes.
  package static let longest: UInt64 = (1 << 40) - 1

  /// Empty before the first.
  private var counts: [UInt64] = []
  /// How many were recorded.
  package private(set) var count: UInt64 = 0
  /// The longest.
  package private(set) var maximum: UInt64 = 0
  private var sum = 0.0, squares = 0.0

  package init() {}

  /// Counts one latency. O(1).
  @inline(__always)
  package mutating func record(_ nanoseconds: UInt64) {
    if counts.isEmpty { reserve() }
    let value = min(nanoseconds, Self.longest)
    counts[Self.bucket(value)] += 1
    count += 1
    maximum = max(maximum, value)
    sum += Double(value)
    squares += Double(value) * Double(value)
  }

  /// Counts all that another one counted.
  package mutating func add(_ other: LatencyHistogram) {
    if other.count == 0 { return }
    if counts.isEmpty { reserve() }
    for index in counts.indices { counts[index] += other.counts[index] }
    count += other.count
    maximum = max(maximum, other.maximum)
    sum += other.sum
    squares += other.squares
  }

  @inline(never)
  private mutating func reserve() { counts = Array(repeating: 0, count: Self.bucket(Self.longest) + 1) }

  /// The mean, exact; 0 of none.
  package var mean: Double { count == 0 ? 0 : sum / Double(count) }

  /// The standard deviation of all, exact but for rounding; 0 of none.
  package var standardDeviation: Double {
    count == 0 ? 0 : max(0, squares / Double(count) - mean * mean).squareRoot()
  }

  /// A latency that so large a part of all is at or below, and at most 1.6 % more than the least such; 0 of none.
  package func percentile(_ part: Double) -> UInt64 {
    let rank = max(1, (Double(count) * part).rounded(.up))
    var seen = 0.0
    for (index, number) in counts.enumerated() where number > 0 {
      seen += Double(number)
      if seen >= rank { return min(Self.last(of: index), maximum) }
    }
    return maximum
  }

  @inline(__always)
  private static func bucket(_ value: UInt64) -> Int {
    if value < perOctave { return Int(value) }
    let octave = 63 - value.leadingZeroBitCount - shift
    return (octave + 1) * perOctave + Int(value >> UInt64(octave)) - perOctave
  }

  /// The highest value that a bucket counts.
  private static func last(of bucket: Int) -> UInt64 {
    if bucket < perOctave { return UInt64(bucket) }
    let octave = UInt64(bucket / perOctave - 1)
    return ((UInt64(perOctave + bucket % perOctave) + 1) << octave) - 1
  }
}
