import IOMMU
import IOMMUSimulation
import Synchronization
import Testing

/// Registered memory is found without a lock where it was found before, and never once its registration has ended.
@Suite struct RegistrationCacheTests {
  @Test func foundWithinItsEnds() {
    let cache = RegistrationCache()
    #expect(cache.ipa(of: 0x20_1000, byteCount: 1) == nil)
    cache.note(0x20_1000, first: 0x20_1000, last: 0x20_2fff, ipa: 0x7000_0000)
    #expect(cache.ipa(of: 0x20_1000, byteCount: 0x2000) == 0x7000_0000)
    #expect(cache.ipa(of: 0x20_2fff, byteCount: 1) == 0x7000_1fff)
    #expect(cache.ipa(of: 0x20_1000, byteCount: 0x2001) == nil)
    #expect(cache.ipa(of: 0x20_0fff, byteCount: 2) == nil && cache.ipa(of: 0x20_3000, byteCount: 1) == nil)
    #expect(cache.ipa(of: 0x20_2fff, byteCount: .max) == nil && cache.ipa(of: .max, byteCount: 2) == nil)
    // The same place, another stretch.
    #expect(cache.ipa(of: 0x20_1000 + 128 << 18, byteCount: 1) == nil)
    cache.forget(first: 0x20_1000)
    #expect(cache.ipa(of: 0x20_1000, byteCount: 1) == nil)
  }

  /// A registration over several stretches is in several places, and goes from all.
  @Test func everyPlaceIsCleared() {
    let cache = RegistrationCache(), first: UInt64 = 0x7f00_0000_0000, last = first + 8 << 18 - 1
    for stretch in 0..<8 as Range<UInt64> { cache.note(first + stretch << 18, first: first, last: last, ipa: 0x1000) }
    cache.note(first + 9 << 18, first: first + 9 << 18, last: first + 10 << 18, ipa: 0)
    for stretch in 0..<8 as Range<UInt64> { #expect(cache.ipa(of: first + stretch << 18, byteCount: 16) != nil) }
    cache.forget(first: first)
    for stretch in 0..<8 as Range<UInt64> { #expect(cache.ipa(of: first + stretch << 18, byteCount: 16) == nil) }
    #expect(cache.ipa(of: first + 9 << 18, byteCount: 16) == 0)
  }

  /// While a place changes between two registrations, a reader has the one or the other, or nothing.
  @Test func neverHalf() {
    let cache = RegistrationCache(), one: UInt64 = 0x40_0000, other = one + 128 << 18
    let writer = Atomic<Bool>(false), wrong = Atomic<Int>(0)
    WorkerThreads.run(3) {
      // One of them writes: whoever comes first.
      let writes = writer.compareExchange(expected: false, desired: true, ordering: .relaxed).exchanged
      for round in 0..<50_000 where writes {
        let (first, ipa): (UInt64, UInt64) = round % 2 == 0 ? (one, 0x1000_0000) : (other, 0x2000_0000)
        cache.note(first, first: first, last: first + 0xfff, ipa: ipa)
      }
      for _ in 0..<50_000 where !writes {
        if let found = cache.ipa(of: one, byteCount: 1), found != 0x1000_0000 {
          wrong.wrappingAdd(1, ordering: .relaxed)
        }
        if let found = cache.ipa(of: other, byteCount: 1), found != 0x2000_0000 {
          wrong.wrappingAdd(1, ordering: .relaxed)
        }
      }
    }
    #expect(wrong.load(ordering: .relaxed) == 0)
  }
}
