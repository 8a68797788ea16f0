/// An IOMMU's cache of translations, of one stage or of both together, by two tags and an address: the IOTLB of a simulated SMMU
/// (VMID and ASID) and of a VT-d (domain id and PASID).
///
/// An entry is as large as the leaf of stage 1, or as much of it as lies together in stage 2. Entries that are global are
/// found in any space of their domain.
struct TranslationCache {
  struct Entry: BitwiseCopyable {
    /// Where the entry's first byte lies in this process.
    var host: UInt
    /// The same in stage 2.
    var ipa: UInt64
    var stage1: SimulatedIOMMU.Permissions, stage2: SimulatedIOMMU.Permissions
    /// Of stage 1's leaf: binary logarithms of its size and of the tables' granule, and its level.
    var leafShift: UInt8, granuleShift: UInt8, level: UInt8
    /// Binary logarithm of the entry's own size.
    var shift: UInt8
  }

  /// Which translations an invalidation is about.
  struct Tag {
    /// The VMID, or VT-d's domain id.
    var domain: UInt16
    /// The ASID, or the PASID; nil for all.
    var space: UInt16?
  }

  private var cache: TaggedCache<Entry>
  /// How many entries there are of each size, by its binary logarithm, and a bit for each size there is.
  private var counts = InlineArray<64, Int>(repeating: 0)
  private var sizes: UInt64 = 0
  private var globalCount = 0

  private static let globalBit: UInt64 = 1 << 40

  init(capacity: Int) {
    cache = TaggedCache(
      capacity: capacity,
      empty: Entry(
        host: 0, ipa: 0, stage1: [], stage2: [], leafShift: 0, granuleShift: 0, level: 0, shift: 0))
  }

  var count: Int { cache.count }

  @inline(__always)
  private static func key(_ domain: UInt16, _ space: UInt16, _ shift: UInt64) -> UInt64 {
    UInt64(domain) | UInt64(space) << 16 | shift << 32
  }

  /// The entry for an address. O(sizes there are).
  @inline(__always)
  func find(_ domain: UInt16, _ space: UInt16, _ address: UInt64) -> Entry? {
    var left = sizes
    while left != 0 {
      let shift = UInt64(left.trailingZeroBitCount)
      left &= left - 1
      if let slot = cache.find(tag: Self.key(domain, space, shift), address: address >> shift) { return cache[slot] }
      if globalCount > 0,
        let slot = cache.find(tag: Self.key(domain, 0, shift) | Self.globalBit, address: address >> shift)
      {
        return cache[slot]
      }
    }
    return nil
  }

  mutating func fill(_ domain: UInt16, _ space: UInt16, _ address: UInt64, isGlobal: Bool = false, _ entry: Entry) {
    let shift = UInt64(entry.shift)
    let tag = isGlobal ? Self.key(domain, 0, shift) | Self.globalBit : Self.key(domain, space, shift)
    if let displaced = cache.fill(tag: tag, address: address >> shift, entry) { forget(displaced.tag) }
    counts[Int(shift)] += 1
    sizes |= 1 << shift
    if isGlobal { globalCount += 1 }
  }

  private mutating func forget(_ tag: UInt64) {
    let shift = Int(tag >> 32 & 0x3f)
    counts[shift] -= 1
    if counts[shift] == 0 { sizes &= ~(1 << UInt64(shift)) }
    if tag & Self.globalBit != 0 { globalCount -= 1 }
  }

  /// Removes the entries of a tag, of an address range where one is given. O(capacity).
  ///
  /// By address, what goes is what was made of a leaf of stage 1 that lies in the range, at the level and of the granule that
  /// are named: a wrong hint leaves it there. Global entries are of every space then; without an address, of none.
  mutating func invalidate(_ tag: Tag, _ span: Span64? = nil, level: UInt8 = 0, granuleShift: UInt64? = nil) {
    var dropped: [UInt64] = []
    cache.removeAll { key, entry in
      guard UInt16(truncatingIfNeeded: key.tag) == tag.domain else { return false }
      let isGlobal = key.tag & Self.globalBit != 0
      if let space = tag.space {
        guard isGlobal ? span != nil : UInt16(truncatingIfNeeded: key.tag >> 16) == space else { return false }
      }
      if let span {
        guard level == 0 || level == entry.level, granuleShift == nil || granuleShift! == entry.granuleShift else {
          return false
        }
        let leaf = UInt64(entry.leafShift), start = (key.address << UInt64(entry.shift)).rounded(downTo: leaf)
        guard Span64(start: start, last: start | (1 << leaf - 1)).overlaps(span) else { return false }
      }
      dropped.append(key.tag)
      return true
    }
    for tag in dropped { forget(tag) }
  }

  mutating func removeAll() {
    cache.removeAll { _, _ in true }
    (counts, sizes, globalCount) = (InlineArray(repeating: 0), 0, 0)
  }
}
