import Testing
import iommuctl

@Suite struct LatencyHistogramTests {
  /// Against the values themselves, sorted: of every magnitude, never less and at most 1.6 % more.
  @Test func percentilesAgainstSortedValues() {
    var random = Random(seed: 11), histogram = LatencyHistogram(), values: [UInt64] = []
    for _ in 0..<5000 {
      let value = UInt64.random(in: 0...UInt64.max, using: &random) >> UInt64.random(in: 25...63, using: &random)
      values.append(value)
      histogram.record(value)
    }
    values.sort()
    for part in [0.0001, 0.1, 0.5, 0.9, 0.99, 0.999, 1] {
      let exact = values[max(1, Int((5000 * part).rounded(.up))) - 1]
      let found = histogram.percentile(part)
      #expect(found >= exact && Double(found) <= Double(exact) * 1.0157, "\(part): \(found), exactly \(exact)")
    }
    #expect(histogram.count == 5000)
    #expect(histogram.maximum == values.last)
  }

  @Test func smallValuesAreExact() {
    for value in UInt64(0)...130 where value < 128 || value % 2 == 1 {
      var histogram = LatencyHistogram()
      histogram.record(value)
      histogram.record(1 << 30)
      #expect(histogram.percentile(0.5) == value)
    }
  }

  @Test func whatIsTooLongCountsAsTheLongest() {
    var histogram = LatencyHistogram()
    histogram.record(.max)
    histogram.record(LatencyHistogram.longest + 1)
    #expect(histogram.maximum == LatencyHistogram.longest)
    #expect(histogram.percentile(0.5) == LatencyHistogram.longest)
  }

  @Test func meanAndDeviation() {
    var one = LatencyHistogram(), other = LatencyHistogram()
    for value in [UInt64(100), 200] { one.record(value) }
    for value in [UInt64(300), 400] { other.record(value) }
    one.add(other)
    #expect(one.count == 4 && one.maximum == 400)
    #expect(one.mean == 250)
    #expect((one.standardDeviation - 111.803).magnitude < 0.001)
    #expect(one.percentile(0.75) >= 300 && one.percentile(0.75) < 306)
  }

  @Test func ofNothing() {
    let histogram = LatencyHistogram()
    #expect(histogram.mean == 0 && histogram.standardDeviation == 0 && histogram.percentile(0.99) == 0)
  }
}
