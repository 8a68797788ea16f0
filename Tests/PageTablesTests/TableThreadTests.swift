import Testing

/// Several threads in one tree, without a lock of the tree's. The stress program has the same under ThreadSanitizer.
struct TableThreadTests {
  static let steps = environment("STEPS").flatMap { Int($0) } ?? 400

  @Test(arguments: TableThreads.formats)
  func oneTableIsLinked(_ format: TestFormat) throws {
    #expect(try TableThreads(format, steps: Self.steps).oneTableIsLinked() == [])
  }

  @Test(arguments: TableThreads.formats)
  func neighbours(_ format: TestFormat) throws {
    #expect(try TableThreads(format, steps: Self.steps).neighbours() == [])
  }

  @Test(arguments: TableThreads.formats)
  func ownersChange(_ format: TestFormat) throws {
    #expect(try TableThreads(format, steps: Self.steps).ownersChange() == [])
  }
}
