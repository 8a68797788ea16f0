import Testing

/// Random traces on every format against the model, with a reader that knows the architecture: same outcomes, and the same leaves
/// in memory. `STEPS` and `SEED` in the environment make them longer, or others.
struct TableModelTests {
  static let steps = environment("STEPS").flatMap { Int($0) } ?? 500
  static let seed = environment("SEED").flatMap { UInt64($0) } ?? 20_261

  @Test(arguments: TestFormat.all)
  func agreesWithTheModel(_ format: TestFormat) throws {
    var trace = TableTrace(format, seed: Self.seed)
    for step in 0..<Self.steps {
      do {
        try trace.step()
        if step % 25 == 0 { try trace.lookAtAll() }
      } catch {
        Issue.record("SEED=\(Self.seed), step \(step): \(error)")
        return
      }
    }
    try trace.lookAtAll()
    try trace.end()
    // A trace that never gets there proves nothing.
    let blocks = format.pageSizes.nonzeroBitCount > 1 && format.block == format.regionByteCount
    for name in ["mapped", "exists", "unmapped", "reclaimed"] + (blocks ? ["cuts", "mustInvalidate", "relinked"] : []) {
      #expect(trace.counts[name, default: 0] > 0, "SEED=\(Self.seed): \(name)")
    }
  }
}
