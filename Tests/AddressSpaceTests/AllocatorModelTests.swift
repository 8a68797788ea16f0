import AddressSpace
import AddressSpaceModels
import Testing

/// Random traces, run on the allocator and on ``NaiveStore`` side by side, on a few simulated processors: no two live ranges
/// overlap, limits and alignments hold, a request fails only when nothing is left, and in the end the store is empty.
struct AllocatorModelTests {
  @Test(arguments: AllocatorSpace.all)
  func agreesWithTheModel(_ space: AllocatorSpace) throws {
    let outcome = try ModelRun.allocator(space, seed: RangeStoreModelTests.seed, steps: RangeStoreModelTests.steps)
    if case .failure(let text) = outcome { Issue.record("\(text)") }
  }

  @Test func aSeedHasOneDigest() throws {
    let space = AllocatorSpace.all[0]
    let outcome = try ModelRun.allocator(space, seed: 1, steps: RangeStoreModelTests.steps)
    #expect(try outcome == ModelRun.allocator(space, seed: 1, steps: RangeStoreModelTests.steps))
    #expect(try outcome != ModelRun.allocator(space, seed: 2, steps: RangeStoreModelTests.steps))
  }
}

extension AllocatorSpace: CustomTestStringConvertible {
  /// For the runner.
  public var testDescription: String { name }
}
