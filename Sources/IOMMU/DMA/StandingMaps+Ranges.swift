import AddressSpace
import Synchronization

/// Which ranges there are, and whose turn it is to map, unmap or remove one.
extension StandingMaps {
  /// What came of adding a range.
  @safe
  enum Added {
    /// It is claimed.
    case added(Range)
    /// This one is in the way.
    case overlap(IOVARange)
  }

  /// Adds a range, claimed. O(n).
  func add(_ new: StandingRange) -> Added {
    let range = Range.allocate(capacity: 1)
    unsafe range.initialize(to: new)
    // Memory is asked for, and given back, without the lock: both may be a system call.
    var spare = Places()
    defer { spare.deallocate() }
    while true {
      switch locked({ unsafe $0.insert(range, growingInto: &spare) }) {
      case .inserted: return unsafe .added(range)
      case .overlap(let obstacle):
        unsafe range.deallocate()
        return .overlap(obstacle)
      // By the next try another thread may have let the table grow, or filled it again.
      case .full(let capacity):
        spare.deallocate()
        spare = Places(capacity: 2 * capacity)
      }
    }
  }

  /// Room for a larger table, made before it is needed; after the table has grown, the room that it had before.
  @safe
  struct Places {
    fileprivate var base: UnsafeMutablePointer<Range>?
    fileprivate var capacity = 0

    init() { unsafe base = nil }

    init(capacity: Int) {
      unsafe base = .allocate(capacity: capacity)
      self.capacity = capacity
    }

    func deallocate() { unsafe base?.deallocate() }
  }

  /// What came of inserting a range.
  enum Insertion {
    case inserted
    /// This range is in the way.
    case overlap(IOVARange)
    /// The table has places for so many, and all are taken.
    case full(Int)
  }

  /// Takes out a claimed range, in which no mapping is live. O(n).
  func remove(_ range: Range) {
    locked { unsafe $0.remove(range) }
    if unsafe range.pointee.isEnded { endedCount.wrappingSubtract(1, ordering: .relaxed) }
    unsafe range.deallocate()
  }

  /// What came of looking for a range.
  @safe
  enum Claim {
    case range(Range)
    /// Somebody else has one that may be it.
    case busy
    case none
  }

  /// Claims the first range, from an address of this process on, of which `fits` holds. O(n).
  ///
  /// What may be claimed is none that mappings can be made inside of: unmapped, ended, or not wanted. So no slot names it, see
  /// ``StandingHit``, and ``StandingRange/live`` is all of its mappings.
  ///
  /// - Parameters:
  ///   - skipsBusy: Whether what somebody else has claimed is passed over.
  ///   - fits: Is told the range, and whether all are to be mapped.
  func claim(from host: UInt64, skipsBusy: Bool, _ fits: (StandingRange, Bool) -> Bool) -> Claim {
    locked { table in
      for index in table.place(host)..<table.count {
        let range = unsafe table.ranges[index]
        if unsafe range.pointee.isBusy {
          if skipsBusy { continue }
          return .busy
        }
        guard unsafe fits(range.pointee, table.isWanted) else { continue }
        assert(unsafe !(table.isWanted && range.pointee.isUsable), "a slot may name this range")
        unsafe range.pointee.isBusy = true
        return unsafe .range(range)
      }
      return .none
    }
  }

  func release(_ range: Range) { locked { _ in unsafe range.pointee.isBusy = false } }

  /// A claimed range is mapped now.
  func raised(_ range: Range, at iova: IOVA) {
    locked { table in
      unsafe range.pointee.iova = iova.rawValue
      table.counts.standingByteCount += unsafe range.pointee.byteCount
    }
  }

  /// Some more of a claimed range is unmapped; with all of it, it is as if it had never been mapped.
  func lowered(_ range: Range, by byteCount: UInt64) {
    locked { table in
      unsafe range.pointee.loweredByteCount += byteCount
      guard unsafe range.pointee.loweredByteCount == range.pointee.byteCount else { return }
      unsafe (range.pointee.iova, range.pointee.loweredByteCount) = (0, 0)
      table.counts.standingByteCount -= unsafe range.pointee.byteCount
    }
  }

  /// Whether the range that begins at an address of this process is mapped, though it is not to be.
  func isLeftOver(_ host: UInt64) -> Bool {
    locked { table in
      let place = table.place(host)
      guard !table.isWanted, place < table.count, unsafe table.ranges[place].pointee.host == host else { return false }
      return unsafe table.ranges[place].pointee.iova != 0
    }
  }
}

extension DomainCore {
  /// Says whether all are to be mapped.
  func setStandingWanted(_ isWanted: Bool) { withoutHits { $0.isWanted = isWanted } }

  /// A registration ends: no later mapping finds it.
  func endStanding(_ range: StandingMaps.Range) {
    withoutHits { _ in unsafe range.pointee.isEnded = true }
    standing.endedCount.wrappingAdd(1, ordering: .relaxed)
  }
}

extension StandingMaps.Table {
  /// Puts a range at its place; where the table is full, it grows into `spare`, if that is larger. Allocates nothing, as it is
  /// called with the lock held; never inlined, so that the check of the object code sees that.
  @inline(never)
  mutating func insert(
    _ new: StandingMaps.Range, growingInto spare: inout StandingMaps.Places
  ) -> StandingMaps.Insertion {
    let host = unsafe new.pointee.host, place = place(host)
    if place > 0, unsafe ranges[place - 1].pointee.hostRange.overlaps(new.pointee.hostRange) {
      return unsafe .overlap(ranges[place - 1].pointee.hostRange)
    }
    if place < count, unsafe ranges[place].pointee.hostRange.overlaps(new.pointee.hostRange) {
      return unsafe .overlap(ranges[place].pointee.hostRange)
    }
    if count == capacity {
      guard spare.capacity > capacity, let larger = unsafe spare.base else { return .full(capacity) }
      unsafe larger.update(from: ranges, count: count)
      unsafe (ranges, spare.base) = unsafe (larger, ranges)
      (capacity, spare.capacity) = (spare.capacity, capacity)
    }
    unsafe (ranges + place + 1).update(from: ranges + place, count: count - place)
    unsafe ranges[place] = new
    count += 1
    if unsafe new.pointee.file < 0 {
      counts.registrations += 1
      counts.registeredByteCount += unsafe new.pointee.byteCount
    }
    return .inserted
  }

  mutating func remove(_ range: StandingMaps.Range) {
    let place = unsafe place(range.pointee.host)
    unsafe (ranges + place).update(from: ranges + place + 1, count: count - place - 1)
    count -= 1
    guard unsafe range.pointee.file < 0 else { return }
    counts.registrations -= 1
    counts.registeredByteCount -= unsafe range.pointee.byteCount
  }
}
