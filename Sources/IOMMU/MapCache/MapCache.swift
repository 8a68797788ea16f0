import AddressSpace
import Synchronization

/// Maps that outlive their unmap and wait for the next map of the same memory: on page tables that the kernel owns, where an
/// invalidation is dear.
///
/// What is kept stays within the device's reach, with its address taken, until it is *torn down*: unmapped by the kernel.
/// It is in one of three lists: ready to be used again, the longest unmapped first; being torn down by some thread; or
/// refused by the kernel, which is used no more and tried again by whoever empties the cache. All of it is found by its
/// memory until it is gone, so that memory is given to nobody else before.
@safe
final class MapCache: @unchecked Sendable {
  /// A map without a mapping.
  struct Kept: BitwiseCopyable {
    var iova: UInt64 = 0, host: UInt64 = 0, byteCount: UInt64 = 0
    /// What the device may do, as ``DMAAccess/rawValue``.
    var access: UInt8 = 0
    /// When it was unmapped, in nanoseconds.
    var time: UInt64 = 0
  }

  /// What came of offering a map.
  enum Offered { case kept, full, closed }

  /// A map that the caller tears down, and its place.
  struct Leaving: BitwiseCopyable {
    var place: UInt32 = 0
    var iova: UInt64 = 0, byteCount: UInt64 = 0
    /// How much of it an earlier attempt has unmapped, from the start on.
    var unmapped: UInt64 = 0
  }
  /// A few at a time, so that the lock is held for a moment only.
  typealias Batch = InlineArray<16, Leaving>

  /// As in ``DMAStatistics``.
  struct Counts: BitwiseCopyable {
    var hits: UInt64 = 0, misses: UInt64 = 0, byteCount: UInt64 = 0
  }

  /// Which maps to tear down.
  enum Which {
    /// Ready ones with a lower number, the longest unmapped first.
    case ready(before: UInt64)
    /// Ready ones that were unmapped no later than this, in the same order.
    case idle(since: UInt64)
    /// Ready ones in the same order, until there is room for so many bytes.
    case untilRoom(UInt64)
    /// Refused ones that were not tried since a number.
    case refused(before: UInt64)
    /// Ready and refused ones of memory that begins at an address.
    case of(host: UInt64)
  }

  /// Whether maps are kept at all; what the data path reads.
  let isOpen = Atomic<Bool>(false)
  /// How long a map is kept without use, in nanoseconds.
  let timeout = Atomic<UInt64>(0)
  private let total = Atomic<Int>(0)
  /// Guards what `state` points to, and is no part of it: access to the whole of it is nobody's without the lock.
  private let lock = SpinLock()
  private let state: UnsafeMutablePointer<State>

  init() {
    unsafe state = .allocate(capacity: 1)
    unsafe state.initialize(to: State())
  }

  deinit {
    unsafe state.deinitialize(count: 1)
    unsafe state.deallocate()
  }

  /// How many are kept, those being torn down included.
  @inline(__always)
  var count: Int { total.load(ordering: .acquiring) }

  @inline(__always)
  private func locked<Result>(_ body: (inout State) -> Result) -> Result {
    lock.lock()
    defer { lock.unlock() }
    return unsafe body(&state.pointee)
  }

  /// What is counted, for a function that is called with the lock held: no mapping's map is kept meanwhile, or used again.
  func withCounts<Result>(_ body: (Counts) -> Result) -> Result { locked { body($0.counts) } }
}

// MARK: - Opening and closing

extension MapCache {
  /// Keeps maps from now on, in memory that the caller holds until ``drop()``.
  ///
  /// - Precondition: Nothing is kept.
  func open(_ storage: Storage, timeout: Duration) {
    // Less than a clock's range, so that sums with it do not overflow.
    self.timeout.store(min(timeout.saturatedNanoseconds, .max / 4), ordering: .relaxed)
    locked { state in
      state.use(storage)
      isOpen.store(true, ordering: .relaxed)
    }
  }

  /// Keeps no more maps, and gives none out; or, after a switch that did not come about, again.
  func setOpen(_ isOpen: Bool) { locked { _ in self.isOpen.store(isOpen, ordering: .relaxed) } }

  /// Forgets all, which is out of reach, and lets go of the memory.
  func drop() {
    locked { state in
      isOpen.store(false, ordering: .relaxed)
      state.use(nil)
      total.store(0, ordering: .releasing)
    }
  }
}

// MARK: - Keeping and using

extension MapCache {
  /// Keeps a map, and calls `onKept` with the lock held: nobody tears it down or uses it before. O(1).
  @inline(__always)
  func offer(_ kept: Kept, onKept: () -> Void) -> Offered {
    locked { state in
      guard isOpen.load(ordering: .relaxed) else { return .closed }
      guard state.hasRoom(for: kept.byteCount) else { return .full }
      state.insert(kept)
      total.wrappingAdd(1, ordering: .relaxed)
      onKept()
      return .kept
    }
  }

  /// Takes out a map of this memory that allows what is asked for, at addresses within limits, and calls `onTaken` with the
  /// lock held. O(1).
  @inline(__always)
  func take(
    host: UInt64, byteCount: UInt64, access: UInt8, limits: ClosedRange<UInt64>, onTaken: (Kept) -> Void
  ) -> Kept? {
    locked { state in
      guard isOpen.load(ordering: .relaxed) else { return nil }
      let place = state.find(host) { entry in
        entry.list == .ready && entry.kept.byteCount == byteCount && entry.kept.access & access == access
          && entry.kept.iova >= limits.lowerBound && entry.kept.iova + (byteCount - 1) <= limits.upperBound
      }
      guard place != 0 else {
        state.counts.misses &+= 1
        return nil
      }
      let kept = state[place].kept
      state.remove(place)
      state.counts.hits &+= 1
      total.wrappingSubtract(1, ordering: .releasing)
      onTaken(kept)
      return kept
    }
  }
}

// MARK: - Tearing down

extension MapCache {
  /// Takes out maps that the caller tears down, as many as fit into `batch`; how many.
  func take(_ which: Which, _ batch: inout Batch) -> Int {
    locked { state in
      var count = 0, room: UInt64 = 0
      while count < Batch.count {
        let place = state.next(which, room: room)
        if place == 0 { break }
        let kept = state[place].kept, unmapped = state[place].unmapped
        state.move(place, to: .leaving)
        batch[count] = Leaving(place: place, iova: kept.iova, byteCount: kept.byteCount, unmapped: unmapped)
        (count, room) = (count + 1, room + kept.byteCount)
      }
      return count
    }
  }

  /// A map that was taken out is unmapped, and its address free.
  func remove(_ place: UInt32) {
    locked {
      $0.remove(place)
      // Not outside: who finds nothing left may set it to zero.
      total.wrappingSubtract(1, ordering: .releasing)
    }
  }

  /// A map that was taken out could not be unmapped, but for its first bytes.
  func refuse(_ place: UInt32, unmapped: UInt64) {
    locked { state in
      let number = state.nextNumber()
      state[place].tried = number
      state[place].unmapped = unmapped
      state.move(place, to: .refused)
    }
  }

  /// Greater than the number of all that is kept and was tried until now, and lower than those that are to come.
  func number() -> UInt64 { locked { $0.nextNumber() } }

  /// Where something is that was taken out and is not gone, with a lower number, or of some memory: being torn down, or else
  /// refused. O(length of these lists).
  func remainder(before number: UInt64 = .max, host: UInt64? = nil) -> List? {
    locked { state in
      state.has(.leaving, before: number, host) ? .leaving : state.has(.refused, before: number, host) ? .refused : nil
    }
  }

  /// When the map was unmapped that has been ready for longest; nil where none is.
  var oldestTime: UInt64? {
    locked { state in
      let place = state.first(.ready)
      return place == 0 ? nil : state[place].kept.time
    }
  }
}
