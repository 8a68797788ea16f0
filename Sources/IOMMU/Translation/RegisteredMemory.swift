import AddressSpace
import Synchronization

/// The IPA space of a process-owned translation: which memory is in stage 2, and where.
///
/// The library chooses IPAs; no device ever sees one. A registration is found by host address while it lasts, and only then:
/// memory that a single mapping registered for itself is not among those, and goes with that mapping.
final class RegisteredMemory: Sendable {
  /// Memory that a mapping had registered for itself, and that waits for the invalidation of that mapping.
  struct Retired {
    let iova: IOVARange
    let ipa: UInt64
    /// The kernel has refused to let go of it once.
    var wasRefused = false
  }

  /// A registration that is found no more.
  struct Hidden {
    let address: UInt64
    let ipa: UInt64
    let byteCount: UInt64
    /// The kernel has refused to let go of it once.
    var wasRefused = false
  }

  private let state: Mutex<State>
  private let cache = RegistrationCache()
  /// How many are retired: nothing needs the lock where there are none.
  private let retiredCount = Atomic<Int>(0)
  private let isRequired = Atomic<Bool>(false)

  private struct State: ~Copyable {
    /// IPAs in use; nil until the first device tells what there is.
    var space: RangeStore?
    var usable = IOVARanges([])
    /// Keyed by host address; the tag is the IPA.
    let registrations: RangeStore
    /// Registrations that are found no more.
    var hidden: [Hidden] = []
    var retired: [Retired] = []
    /// Memory that mappings registered for themselves and still have, where a page table cannot tell: keyed by IOVA, the tag
    /// is the IPA.
    let owned: RangeStore

    init(registrations: consuming RangeStore, owned: consuming RangeStore) {
      self.registrations = registrations
      self.owned = owned
    }
  }

  init() throws(RangeStoreFailure) {
    let registrations = try RangeStore(usable: [.full], granule: .fourKiB)
    state = Mutex(
      State(registrations: registrations, owned: try RangeStore(usable: [.full], granule: .fourKiB)))
  }
}

// MARK: - The IPA space

extension RegisteredMemory {
  /// Takes what the kernel offers for the devices attached now: all of it the first time, and less later on.
  func limit(to ranges: IOVARanges, granule: PageSize) throws(RangeStoreFailure) {
    try state.withLock { state throws(RangeStoreFailure) in
      let usable = ranges.trimmed(to: granule)
      if state.space == nil {
        state.space = try RangeStore(usable: usable, granule: granule)
        state.usable = usable
        return
      }
      // The kernel has refused a device whose reserved regions hold registered memory; so these are free.
      var done: [IOVARange] = []
      for lost in state.usable.subtracting(usable) {
        do throws(RangeStoreFailure) { try state.space?.reserve(lost) } catch {
          for range in done { _ = state.space?.unreserve(range) }
          throw error
        }
        done.append(lost)
      }
      state.usable = state.usable.intersection(usable)
    }
  }

  /// Takes a range of IPAs; ENOSPC when there is none.
  ///
  /// - Parameters:
  ///   - byteCount: Its length.
  ///   - area: The most that one call will enter there, from the start on; nil where one call enters all.
  func allocate(byteCount: UInt64, area: UInt64? = nil) throws(Errno) -> UInt64 {
    let pages = area.map { UInt32(clamping: $0 >> 12) } ?? 0
    let found = state.withLock { state -> IOVA? in
      let request = RangeStore.Request(byteCount: byteCount, alignment: DomainCore.alignment(byteCount), limit: .max)
      return try? state.space?.allocate(request, auxiliary: pages)
    }
    guard let found else { throw .noSpace }
    return found.rawValue
  }

  /// A range of IPAs in use, and the most that one call has entered there.
  struct Taken {
    let range: IOVARange
    let area: UInt64?
  }

  /// The lowest range in use that begins at an IPA or above.
  func next(from ipa: UInt64) -> Taken? {
    state.withLock { state in
      var from = IOVA(ipa)
      while let node = state.space?.next(from: from) {
        if node.kind == .allocation {
          return Taken(range: node.range, area: node.auxiliary == 0 ? nil : UInt64(node.auxiliary) << 12)
        }
        guard let above = node.range.last.advanced(by: 1) else { return nil }
        from = above
      }
      return nil
    }
  }

  func free(_ ipa: UInt64) { state.withLock { state in _ = state.space?.remove(IOVA(ipa)) } }
}

// MARK: - Registrations

extension RegisteredMemory {
  /// Where registered memory lies, if all of it does in one registration. O(1) in one that was found before, else O(log n).
  @inline(__always)
  func ipa(of address: UInt64, byteCount: UInt64) -> UInt64? {
    cache.ipa(of: address, byteCount: byteCount) ?? find(address, byteCount)
  }

  /// What was found before, for callers as of ``KnownRegistrations/ipa(of:byteCount:)``.
  var known: KnownRegistrations { cache.known }

  @inline(never)
  private func find(_ address: UInt64, _ byteCount: UInt64) -> UInt64? {
    guard let range = IOVARange(start: IOVA(address), byteCount: byteCount) else { return nil }
    return state.withLock { state in
      guard let node = state.registrations.find(containing: range.start), node.range.contains(range) else { return nil }
      cache.note(address, first: node.start.rawValue, last: node.range.last.rawValue, ipa: node.tag)
      return node.tag + (address - node.start.rawValue)
    }
  }

  /// Enters a registration; false when part of the memory is registered already.
  func add(_ address: UInt64, byteCount: UInt64, ipa: UInt64) -> Bool {
    guard let range = IOVARange(start: IOVA(address), byteCount: byteCount) else { return false }
    return state.withLock { state in
      (try? state.registrations.insert(RangeStore.Node(range: range, kind: .fixed, tag: ipa))) != nil
    }
  }

  /// Takes out the oldest registration that begins at an address and is found no more.
  func takeHidden(_ address: UInt64) -> Hidden? {
    state.withLock { state in
      state.hidden.firstIndex { $0.address == address }.map { state.hidden.remove(at: $0) }
    }
  }

  /// Keeps one until it is taken out of stage 2.
  func keep(_ refused: Hidden) { state.withLock { $0.hidden.append(refused) } }

  /// Lets the registration that begins at an address be found no more.
  func hide(_ address: UInt64) {
    state.withLock { state in
      if let hidden = takeFound(address, &state) { state.hidden.append(hidden) }
    }
  }

  /// Takes out the registration that begins at an address and is found.
  func takeFound(_ address: UInt64) -> Hidden? { state.withLock { takeFound(address, &$0) } }

  private func takeFound(_ address: UInt64, _ state: inout State) -> Hidden? {
    guard let node = state.registrations.remove(IOVA(address)) else { return nil }
    cache.forget(first: address)
    return Hidden(address: address, ipa: node.tag, byteCount: node.byteCount)
  }
}

// MARK: - Memory of single mappings

extension RegisteredMemory {
  /// Whether no mapping may register memory for itself. Read where one is about to.
  var isRegistrationRequired: Bool {
    get { isRequired.load(ordering: .relaxed) }
    set { isRequired.store(newValue, ordering: .relaxed) }
  }

  /// Enters memory that a mapping has registered for itself; false when no memory is left for that.
  func own(_ iova: IOVARange, ipa: UInt64) -> Bool {
    state.withLock { state in
      (try? state.owned.insert(RangeStore.Node(range: iova, kind: .fixed, tag: ipa))) != nil
    }
  }

  /// Takes such memory out: its mapping was not made.
  func disown(_ iova: IOVARange) { state.withLock { _ = $0.owned.remove(iova.start) } }

  /// Retires what the mappings of a range have registered for themselves. O(mappings · log n).
  func retireOwned(in range: IOVARange) {
    let count = state.withLock { state in
      var count = 0
      while let node = state.owned.find(overlapping: range), range.contains(node.range) {
        _ = state.owned.remove(node.start)
        state.retired.append(Retired(iova: node.range, ipa: node.tag))
        count += 1
      }
      return count
    }
    retiredCount.wrappingAdd(count, ordering: .releasing)
  }

  /// Keeps memory until the invalidation of the mapping that had registered it.
  func retire(_ retired: Retired) {
    state.withLock { $0.retired.append(retired) }
    retiredCount.wrappingAdd(1, ordering: .releasing)
  }

  /// Takes out what waits for an invalidation of a range, nil for everything; nothing in most cases.
  func takeRetired(_ range: IOVARange?) -> [Retired] {
    if retiredCount.load(ordering: .acquiring) == 0 { return [] }
    let taken = state.withLock { state in
      var taken: [Retired] = []
      state.retired.removeAll { item in
        guard range?.contains(item.iova) ?? true else { return false }
        taken.append(item)
        return true
      }
      return taken
    }
    retiredCount.wrappingSubtract(taken.count, ordering: .relaxed)
    return taken
  }
}
