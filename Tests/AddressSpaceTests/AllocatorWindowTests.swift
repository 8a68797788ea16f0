import AddressSpace
import Testing

/// The two halves of an allocation, for who wants high addresses while others have low ones cached; and the store's lock.
@Suite struct AllocatorWindowTests {
  private static let fourGiB: UInt64 = 1 << 32
  private static let usable: IOVARanges = [IOVARange(start: IOVA(0x1000), last: IOVA(1 << 40 - 1))!]

  private static func allocator(_ method: SlotMethod) throws -> AddressAllocator {
    try AddressAllocator(usable: usable, granule: .fourKiB, method: method)
  }

  /// Allocates below a limit, and gives it back: then it is cached.
  private static func cache(_ allocator: borrowing AddressAllocator, limit: UInt64) throws -> IOVA {
    let address = try allocator.allocate(byteCount: 0x3000, limit: limit)
    allocator.free(address, byteCount: 0x3000)
    return address
  }

  @Test(arguments: [SlotMethod.locked, .best])
  func aLowAddressIsLeftForOthers(_ method: SlotMethod) throws {
    let allocator = try Self.allocator(method)
    #expect(allocator.allocateHere(byteCount: 0x3000, limit: .max) == nil, "nothing is cached yet")
    let high = try Self.cache(allocator, limit: .max), low = try Self.cache(allocator, limit: Self.fourGiB - 1)
    #expect(high.rawValue == 1 << 40 - 0x4000 && low.rawValue == Self.fourGiB - 0x4000, "of four pages")
    // The low one came last; the high one lies below it.
    #expect(allocator.allocateHere(byteCount: 0x3000, limit: .max, lowest: Self.fourGiB) == nil)
    let found = try allocator.allocateElsewhere(
      byteCount: 0x3000, limit: .max, lowest: Self.fourGiB, mayEmptyCaches: true)
    #expect(found == high)
    let next = try allocator.allocateElsewhere(
      byteCount: 0x3000, limit: .max, lowest: Self.fourGiB, mayEmptyCaches: true)
    #expect(next.rawValue == high.rawValue - 0x4000, "the highest that is free, not the one that is cached")
    #expect(allocator.allocateHere(byteCount: 0x3000, limit: low.rawValue + 0x3ffe) == nil, "it ends above")
    #expect(allocator.allocateHere(byteCount: 0x3000, limit: low.rawValue + 0x3fff) == low)
    #expect(allocator.allocateHere(byteCount: 0x3000, limit: .max) == nil)
    #expect(allocator.statistics.liveCount == 3)
    #expect(allocator.checkInvariants() == nil)
  }

  /// No length that is not cached is answered, and none without an end.
  @Test func whatIsNotCached() throws {
    let allocator = try Self.allocator(.locked)
    for byteCount: UInt64 in [0, (2 << 20) + 0x1000, 1 << 63, .max] {
      #expect(allocator.allocateHere(byteCount: byteCount, limit: .max) == nil)
    }
    #expect(allocator.allocateHere(byteCount: 0x1000, limit: 0xfff - 1) == nil)
  }

  /// Steps that nobody comes between: and what they have allocated counts as held.
  @Test func severalStepsWithTheLockHeld() throws {
    let allocator = try Self.allocator(.locked)
    let cached = try Self.cache(allocator, limit: .max)
    allocator.lockStore(insertions: 1)
    let node = unsafe allocator.store.pointee.find(containing: cached)
    let start = try unsafe allocator.store.pointee.allocate(RangeStore.Request(byteCount: 8 << 20), tag: 7)
    allocator.unlockStore()
    #expect(node?.kind == .allocation && node?.tag == 0, "what is cached is allocated for the store")
    #expect(allocator.find(containing: start)?.tag == 7)
    #expect(allocator.checkInvariants() == nil)
    #expect(allocator.remove(start)?.byteCount == 8 << 20)
  }
}
