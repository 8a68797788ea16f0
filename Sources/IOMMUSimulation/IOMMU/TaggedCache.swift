/// A cache of an IOMMU: a fixed number of entries, each under a tag and an address.
///
/// An entry is served until it is removed or displaced, whatever memory says meanwhile: that is what invalidation is for. The
/// one that was filled first is displaced first, so that two runs of the same accesses hit and miss alike.
package struct TaggedCache<Payload: BitwiseCopyable> {
  package struct Key: Equatable {
    package var tag: UInt64, address: UInt64
  }

  /// An entry, its bucket, and its neighbours in the chain of that; 0 for none, else a slot's number + 1.
  private struct Slot {
    var key = Key(tag: 0, address: 0)
    var payload: Payload
    var next: Int32 = 0, previous: Int32 = 0
    var bucket: Int32 = 0
    var isUsed = false
  }

  /// The most entries.
  package let capacity: Int
  /// How many there are.
  package private(set) var count = 0
  private var slots: [Slot]
  /// The first of each chain, likewise; as many as twice the slots.
  private var buckets: [Int32]
  private let shift: UInt64
  /// The slot that is filled next.
  private var next = 0

  /// An empty cache; `empty` stands in slots that are not used.
  package init(capacity: Int, empty: Payload) {
    precondition(capacity > 0 && capacity < 1 << 28, "a cache has at least one entry")
    self.capacity = capacity
    slots = Array(repeating: Slot(payload: empty), count: capacity)
    let bits = Int.bitWidth - (capacity * 2 - 1).leadingZeroBitCount
    buckets = Array(repeating: 0, count: 1 << bits)
    shift = UInt64(64 - bits)
  }

  package subscript(slot: Int) -> Payload {
    @inline(__always) get { slots[slot].payload }
  }

  @inline(__always)
  private func bucket(of key: Key) -> Int {
    let mixed = (key.tag &* 0x9e37_79b9_7f4a_7c15 ^ key.address) &* 0xd6e8_feb8_6659_fd93
    return Int(truncatingIfNeeded: mixed >> shift)
  }

  /// The slot of an entry. O(1).
  @inline(__always)
  package func find(tag: UInt64, address: UInt64) -> Int? {
    let key = Key(tag: tag, address: address)
    var slot = Int(buckets[bucket(of: key)]) - 1
    while slot >= 0 {
      if slots[slot].key == key { return slot }
      slot = Int(slots[slot].next) - 1
    }
    return nil
  }

  /// Fills in an entry that is not there; the key of the one that it displaces comes back. O(1).
  @discardableResult
  package mutating func fill(tag: UInt64, address: UInt64, _ payload: Payload) -> Key? {
    let slot = next
    next = next + 1 == capacity ? 0 : next + 1
    var displaced: Key?
    if slots[slot].isUsed {
      displaced = slots[slot].key
      remove(slot)
    }
    let key = Key(tag: tag, address: address), bucket = bucket(of: key), first = buckets[bucket]
    slots[slot] = Slot(key: key, payload: payload, next: first, previous: 0, bucket: Int32(bucket), isUsed: true)
    if first > 0 { slots[Int(first) - 1].previous = Int32(slot + 1) }
    buckets[bucket] = Int32(slot + 1)
    count += 1
    return displaced
  }

  /// Removes what a test says yes to. O(capacity).
  package mutating func removeAll(where isWanted: (Key, Payload) -> Bool) {
    guard count > 0 else { return }
    for slot in 0..<capacity where slots[slot].isUsed && isWanted(slots[slot].key, slots[slot].payload) { remove(slot) }
  }

  private mutating func remove(_ slot: Int) {
    let (previous, following, bucket) = (slots[slot].previous, slots[slot].next, Int(slots[slot].bucket))
    if previous > 0 {
      slots[Int(previous) - 1].next = following
    } else {
      buckets[bucket] = following
    }
    if following > 0 { slots[Int(following) - 1].previous = previous }
    slots[slot].isUsed = false
    count -= 1
  }
}
