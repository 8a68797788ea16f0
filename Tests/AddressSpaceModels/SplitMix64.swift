/// A small random number generator whose sequence follows from its seed alone, on every machine.
///
/// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
package struct SplitMix64: RandomNumberGenerator {
  private var state: UInt64

  package init(seed: UInt64) { state = seed }

  package mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var word = state
    word = (word ^ (word >> 30)) &* 0xbf58_476d_1ce4_e5b9
    word = (word ^ (word >> 27)) &* 0x94d0_49bb_1331_11eb
    return word ^ (word >> 31)
  }
}

extension RandomNumberGenerator {
  /// True once in so many times.
  package mutating func once(in times: Int) -> Bool { Int.random(in: 0..<times, using: &self) == 0 }
}

/// Where a trace's choices come from: a seed, or bytes that somebody else chose, one a choice.
package struct Choices: RandomNumberGenerator {
  private var bytes: ArraySlice<UInt8> = []
  private var random: SplitMix64

  package init(seed: UInt64) { random = SplitMix64(seed: seed) }

  /// When the bytes are used up, what follows is the same each time.
  package init(bytes: ArraySlice<UInt8>) { (self.bytes, random) = (bytes, SplitMix64(seed: 0)) }

  /// Whether the bytes are used up.
  package var isUsedUp: Bool { bytes.isEmpty }

  package mutating func next() -> UInt64 {
    // A choice among a few is made by the upper bits: so 256 kinds of byte divide any range evenly.
    if let byte = bytes.popFirst() { return UInt64(byte) &* 0x0101_0101_0101_0101 }
    return random.next()
  }
}
