/// The IOMMU's cache of translations: pages of domains whose tables the process owns.
///
/// An entry is served until it is invalidated or displaced, whatever the tables say meanwhile: that is what an invalidation
/// is for. Each entry has its domain as a tag. The one that was filled first is displaced first, so that two runs of the same
/// accesses hit and miss alike.
struct IOTLB {
  struct Entry {
    /// Where the page lies in this process.
    let host: UInt
    let permissions: SimulatedIOMMU.Permissions
  }
  private struct Key: Hashable { let domain: SimulatedIOMMU.DomainID, page: UInt64 }

  /// The most entries.
  let capacity: Int
  private var entries: [Key: (entry: Entry, slot: Int)] = [:]
  /// The keys in the order of filling, a ring.
  private var slots: [Key?]
  private var next = 0

  init(capacity: Int) {
    precondition(capacity > 0, "an IOTLB has at least one entry")
    self.capacity = capacity
    slots = Array(repeating: nil, count: capacity)
  }

  /// How many entries there are.
  var count: Int { entries.count }

  /// What is cached of a page.
  func entry(_ domain: SimulatedIOMMU.DomainID, page: UInt64) -> Entry? {
    entries[Key(domain: domain, page: page)]?.entry
  }

  /// Fills in a page that is not cached.
  mutating func fill(_ domain: SimulatedIOMMU.DomainID, page: UInt64, _ entry: Entry) {
    let key = Key(domain: domain, page: page)
    if let old = slots[next] { entries[old] = nil }
    slots[next] = key
    entries[key] = (entry, next)
    next = (next + 1) % capacity
  }

  /// Drops the pages of a range. O(pages), at most O(entries).
  mutating func invalidate(_ domain: SimulatedIOMMU.DomainID, pages: ClosedRange<UInt64>) {
    if pages.upperBound - pages.lowerBound < UInt64(capacity) {
      for page in pages { drop(Key(domain: domain, page: page)) }
    } else {
      for key in entries.keys where key.domain == domain && pages.contains(key.page) { drop(key) }
    }
  }

  /// Drops everything of a tag. O(entries).
  mutating func invalidate(_ domain: SimulatedIOMMU.DomainID) {
    for key in entries.keys where key.domain == domain { drop(key) }
  }

  private mutating func drop(_ key: Key) {
    guard let (_, slot) = entries.removeValue(forKey: key) else { return }
    slots[slot] = nil
  }
}
