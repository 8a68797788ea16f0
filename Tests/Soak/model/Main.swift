import AddressSpaceModels
import Glibc

/// `model [--steps N] [--seed N]`: random traces on the store and on the allocator of addresses, beside their models; N steps in
/// all. One seed has one digest. The last line is `N passed, N failed`.
@main
enum Main {
  static let usage = "usage: model [--steps N] [--seed N]"

  static func main() throws {
    var options: [String: UInt64] = ["--steps": 1_000_000, "--seed": 20_261]
    let words = Array(CommandLine.arguments.dropFirst())
    for index in stride(from: 0, to: words.count, by: 2) {
      guard options[words[index]] != nil, index + 1 < words.count, let number = UInt64(words[index + 1]) else {
        print(usage)
        exit(2)
      }
      options[words[index]] = number
    }
    if options["--steps"] == 0 {
      print("model: --steps wants 1 or more")
      exit(2)
    }
    let count = ModelSpace.all.count + AllocatorSpace.all.count, seed = options["--seed"]!
    let steps = (Int(clamping: options["--steps"]!) - 1) / count + 1
    var failed = 0
    func report(_ name: String, _ outcome: ModelRun.Outcome) {
      switch outcome {
      case .digest(let digest): print("model check: \(name), seed \(seed), \(steps) steps, digest \(digest)")
      case .failure(let text):
        print("FAIL \(name): \(text)")
        failed += 1
      }
    }
    for space in ModelSpace.all { report(space.name, try ModelRun.store(space, seed: seed, steps: steps)) }
    for space in AllocatorSpace.all {
      report("allocator, \(space.name)", try ModelRun.allocator(space, seed: seed, steps: steps))
    }
    print("\(count - failed) passed, \(failed) failed")
    exit(failed == 0 ? 0 : 1)
  }
}
