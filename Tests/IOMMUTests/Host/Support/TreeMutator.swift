import AddressSpaceModels
import CapturedTrees
import Glibc

/// Damages a tree at random, the same way for the same seed.
struct TreeMutator {
  private var generator: SplitMix64

  init(seed: UInt64) { generator = SplitMix64(seed: seed) }

  mutating func mutated(_ tree: CapturedTree) -> CapturedTree {
    var tree = tree
    for _ in 0..<Int.random(in: 1...12, using: &generator) {
      guard let path = tree.paths.randomElement(using: &generator) else { break }
      tree.entries[path] = replacement(for: tree.entries[path]!, tree)
    }
    return tree
  }

  private mutating func replacement(for entry: CapturedTree.Entry, _ tree: CapturedTree) -> CapturedTree
    .Entry?
  {
    switch Int.random(in: 0..<9, using: &generator) {
    case 0: return nil
    case 1: return .directory
    case 2: return .failure([EACCES, EIO, EINVAL].randomElement(using: &generator)!)
    case 3: return .link(tree.paths.randomElement(using: &generator)!)
    case 4: return .link(["", ".", "..", "../..", "/", "/nowhere"].randomElement(using: &generator)!)
    case 5: return .file([])
    case 6: return .file((0..<64).map { _ in UInt8.random(in: 0...255, using: &generator) })
    case 7: return .file(Array("99999999999999999999999999999\n".utf8))
    default: return garbled(entry)
    }
  }

  /// A file with some of its bytes changed, cut off or doubled.
  private mutating func garbled(_ entry: CapturedTree.Entry) -> CapturedTree.Entry {
    guard case .file(var bytes) = entry, !bytes.isEmpty else { return entry }
    for _ in 0..<4 {
      let index = Int.random(in: 0..<bytes.count, using: &generator)
      bytes[index] = UInt8.random(in: 0...255, using: &generator)
    }
    if Bool.random(using: &generator) { bytes.removeLast(Int.random(in: 0..<bytes.count, using: &generator)) }
    if Bool.random(using: &generator) { bytes += bytes }
    return .file(bytes)
  }
}

extension CommandLine {
  static func environmentNumber(_ name: String) -> Int? {
    unsafe getenv(name).flatMap { unsafe Int(String(cString: $0)) }
  }
}
