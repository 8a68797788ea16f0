import AddressSpace

/// What the cache's lock guards: entries, found by their memory through a hash table, each in one of the lists.
extension MapCache {
  /// Where an entry is.
  enum List: UInt8 { case ready, leaving, refused }

  /// One that is kept. A place is its number in the table from 1 on; 0 is none.
  struct Entry: BitwiseCopyable {
    var kept = Kept()
    /// Rises from one that is kept to the next.
    var number: UInt64 = 0
    /// A number when the kernel refused to unmap it.
    var tried: UInt64 = 0
    /// How much was unmapped before it did, in bytes: of a map of several areas.
    var unmapped: UInt64 = 0
    /// Neighbours in its list, and the next with the same hash; of a free entry the next free one.
    var next: UInt32 = 0, previous: UInt32 = 0, chain: UInt32 = 0
    var list = List.ready
  }

  @safe
  struct State: ~Copyable {
    private var entries: UnsafeMutablePointer<Entry>?
    private var buckets: UnsafeMutablePointer<UInt32>?
    /// How far a hash is shifted to the right.
    private var shift: UInt64 = 0
    private var capacity: UInt32 = 0
    private var byteLimit: UInt64 = 0
    var counts = MapCache.Counts()
    /// How many entries were ever used, and the first that is free again.
    private var used: UInt32 = 0, free: UInt32 = 0
    private var numbers: UInt64 = 0
    private var firsts = InlineArray<3, UInt32>(repeating: 0), lasts = InlineArray<3, UInt32>(repeating: 0)

    init() {}

    subscript(_ place: UInt32) -> Entry {
      @inline(__always) get { unsafe entries![Int(place)] }
      @inline(__always) nonmutating set { unsafe entries![Int(place)] = newValue }
    }

    /// Goes over to other memory, or to none, with nothing kept.
    mutating func use(_ storage: Storage?) {
      unsafe entries = storage?.entries
      unsafe buckets = storage?.buckets
      (shift, capacity, byteLimit) = (storage?.shift ?? 0, storage?.capacity ?? 0, storage?.byteLimit ?? 0)
      (counts.byteCount, used, free) = (0, 0, 0)
      firsts = .init(repeating: 0)
      lasts = .init(repeating: 0)
    }

    mutating func nextNumber() -> UInt64 {
      numbers += 1
      return numbers
    }

    func first(_ list: List) -> UInt32 { firsts[Int(list.rawValue)] }

    private func bucket(_ host: UInt64) -> UnsafeMutablePointer<UInt32> {
      // Fibonacci hashing: memory that lies page by page is spread evenly.
      unsafe buckets! + Int(((host >> 12) &* 0x9E37_79B9_7F4A_7C15) >> shift)
    }
  }
}

// MARK: - Entries

extension MapCache.State {
  func hasRoom(for length: UInt64) -> Bool {
    (free != 0 || used < capacity) && length <= byteLimit && counts.byteCount <= byteLimit - length
  }

  /// - Precondition: There is room.
  mutating func insert(_ kept: MapCache.Kept) {
    let place: UInt32
    if free != 0 {
      place = free
      free = self[place].chain
    } else {
      used += 1
      place = used
    }
    let bucket = unsafe bucket(kept.host), number = nextNumber()
    self[place] = unsafe MapCache.Entry(kept: kept, number: number, chain: bucket.pointee)
    unsafe bucket.pointee = place
    counts.byteCount += kept.byteCount
    append(place, to: .ready)
  }

  mutating func remove(_ place: UInt32) {
    unlink(place)
    let entry = self[place], bucket = unsafe bucket(entry.kept.host)
    if unsafe bucket.pointee == place {
      unsafe bucket.pointee = entry.chain
    } else {
      var before = unsafe bucket.pointee
      while self[before].chain != place { before = self[before].chain }
      self[before].chain = entry.chain
    }
    counts.byteCount -= entry.kept.byteCount
    self[place].chain = free
    free = place
  }

  /// The first entry of some memory that is wanted; 0 when there is none. O(1) on average.
  @inline(__always)
  func find(_ host: UInt64, _ isWanted: (MapCache.Entry) -> Bool) -> UInt32 {
    guard unsafe buckets != nil else { return 0 }
    var place = unsafe bucket(host).pointee
    while place != 0 {
      let entry = self[place]
      if entry.kept.host == host, isWanted(entry) { return place }
      place = entry.chain
    }
    return 0
  }

  /// Whether a list has anything with a lower number, of some memory where one is given.
  func has(_ list: MapCache.List, before number: UInt64, _ host: UInt64?) -> Bool {
    var place = first(list)
    while place != 0 {
      let entry = self[place]
      if entry.number < number, host == nil || entry.kept.host == host { return true }
      place = entry.next
    }
    return false
  }

  /// The next to be torn down, when `room` bytes were taken out before it; 0 when there is none.
  func next(_ which: MapCache.Which, room: UInt64) -> UInt32 {
    let ready = first(.ready), refused = first(.refused)
    switch which {
    case .ready(let number): return ready != 0 && self[ready].number < number ? ready : 0
    case .idle(let time): return ready != 0 && self[ready].kept.time <= time ? ready : 0
    case .untilRoom(let length):
      let hasPlace = room > 0 || free != 0 || used < capacity
      return length > byteLimit || (hasPlace && counts.byteCount - room <= byteLimit - length) ? 0 : ready
    case .refused(let number): return refused != 0 && self[refused].tried < number ? refused : 0
    case .of(let host): return find(host) { $0.list != .leaving }
    }
  }
}

// MARK: - Lists

extension MapCache.State {
  /// Puts an entry at the end of another list.
  mutating func move(_ place: UInt32, to list: MapCache.List) {
    unlink(place)
    append(place, to: list)
  }

  private mutating func append(_ place: UInt32, to list: MapCache.List) {
    let index = Int(list.rawValue), last = lasts[index]
    var entry = self[place]
    (entry.list, entry.previous, entry.next) = (list, last, 0)
    self[place] = entry
    if last == 0 { firsts[index] = place } else { self[last].next = place }
    lasts[index] = place
  }

  private mutating func unlink(_ place: UInt32) {
    let entry = self[place], index = Int(entry.list.rawValue)
    if entry.previous == 0 { firsts[index] = entry.next } else { self[entry.previous].next = entry.next }
    if entry.next == 0 { lasts[index] = entry.previous } else { self[entry.next].previous = entry.previous }
  }
}

// MARK: - Memory

extension MapCache {
  /// Memory for entries and hash table; pages that no entry ever reaches are never touched.
  @safe
  final class Storage: @unchecked Sendable {
    /// The first is of no use, as no entry is at place 0.
    let entries: UnsafeMutablePointer<Entry>
    let buckets: UnsafeMutablePointer<UInt32>
    let capacity: UInt32
    let byteLimit: UInt64, shift: UInt64
    private let byteCount: Int
    private let kernel: any Kernel

    /// - Parameter granule: The least that an entry can have, in bytes.
    init(_ kernel: any Kernel, byteLimit: UInt64, granule: UInt64) throws(Errno) {
      let most: UInt64 = 1 << 18
      let capacity = min(max(byteLimit / granule, 1), most)
      let bits = 64 - UInt64(capacity.leadingZeroBitCount)
      let entriesByteCount = Int(capacity + 1) * MemoryLayout<Entry>.stride
      byteCount = entriesByteCount + 4 << bits
      let base = try unsafe kernel.mapMemory(byteCount: byteCount, descriptor: -1, offset: 0)
      unsafe entries = base.bindMemory(to: Entry.self, capacity: Int(capacity) + 1)
      unsafe buckets = (base + entriesByteCount).bindMemory(to: UInt32.self, capacity: 1 << bits)
      (self.capacity, shift) = (UInt32(capacity), 64 - bits)
      (self.byteLimit, self.kernel) = (byteLimit, kernel)
    }

    deinit {
      guard ProcessGuard.isOwner else { return }
      unsafe kernel.unmapMemory(entries, byteCount: byteCount)
    }
  }
}
