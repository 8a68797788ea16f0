import AddressSpace
import AddressSpaceModels
import Testing

/// Random traces, run on the store and on ``NaiveStore`` side by side: same answer to every call,
/// invariants after each step. `make model-check` runs more and longer ones.
struct RangeStoreModelTests {
  static let steps = 1_500, seed: UInt64 = 20_261

  @Test(arguments: ModelSpace.all)
  func agreesWithTheModel(_ space: ModelSpace) throws {
    let outcome = try ModelRun.store(space, seed: Self.seed, steps: Self.steps)
    if case .failure(let text) = outcome { Issue.record("\(text)") }
  }

  @Test func aSeedHasOneDigest() throws {
    let space = ModelSpace.all[0]
    let outcome = try ModelRun.store(space, seed: 1, steps: Self.steps)
    #expect(try outcome == ModelRun.store(space, seed: 1, steps: Self.steps))
    #expect(try outcome != ModelRun.store(space, seed: 2, steps: Self.steps))
  }

  /// What a fuzzer found once, and anything else of bytes: an empty one, one that ends in the middle of a choice.
  @Test func tracesOfBytes() throws {
    for length in [0, 1, 2, 40, 700] {
      for first in 0..<UInt8(ModelSpace.all.count) {
        #expect(try ModelRun.bytes([first] + (0..<length).map { UInt8(truncatingIfNeeded: $0 &* 37) }) == nil)
      }
    }
  }
}

extension ModelSpace: CustomTestStringConvertible {
  /// For the runner.
  public var testDescription: String { name }
}
