public import AddressSpace
import Synchronization

/// The DMA side of a device: what it may reach, and at which addresses.
///
/// Comes with a ``Device`` as `device.dma`. Devices opened with `sharing:` have a domain value of their own, with a mask of
/// their own, over one address space. All methods may be called from any thread.
@safe
public final class DMADomain: Sendable {
  let core: DomainCore
  /// Which addresses the device of this value gets.
  let addressing = DeviceAddressing()
  /// What the device of this value can take of a list.
  let segmentRules = Mutex(DMAConstraints())
  /// The device that errors name.
  let deviceName: String
  /// The open device, which stays so while this is in use.
  private let owner: (any AnyObject & Sendable)?
  let faultLog: FaultLog
  /// Who writes the page tables, and why.
  public let translation: TranslationInUse

  init(
    core: DomainCore, deviceName: String, owner: (any AnyObject & Sendable)?, faultLog: FaultLog,
    translation: TranslationInUse
  ) {
    self.core = core
    self.translation = translation
    self.faultLog = faultLog
    self.owner = owner
    self.deviceName = deviceName
    core.listeners.withLock { [addressing] listeners in
      listeners.removeAll { $0.addressing == nil }
      listeners.append(.init(addressing: addressing))
    }
  }

  /// Says how many address bits the device drives: no address given to it will have others.
  ///
  /// The default is 64 bits, which for most devices is a promise that the driver makes. Set it before allocating:
  /// memory that was given out above a lower mask stays where it is, and so does a ``Reservation`` that reaches above it, and
  /// the call throws. What waits for a flush is no obstacle.
  ///
  /// Other threads may map meanwhile: after a call that returns no map that is still to return gives an address above the
  /// mask, and while it runs their maps keep to the lower of the two. In a domain that several devices share it is
  /// not known whose mappings are above, and only links of this device's reservations are refused there.
  ///
  /// The corresponding kernel call is `dma_set_mask_and_coherent`. O(n log n) in the number of mappings and of cached addresses.
  /// - Throws: `.outsideMask` when the IOMMU offers no address below the mask, or when something is mapped or reserved above
  ///   it: then the mask is as it was; `.forked`.
  public func setMask(_ mask: DMAMask) throws(DMAError) {
    guard ProcessGuard.isOwner else { throw core.failed(.forked, "setMask").on(deviceName) }
    let usable = usableRanges.intersection([mask.range])
    guard !usable.isEmpty else {
      throw DMAError(
        .outsideMask, "setMask", address: mask.limit, device: deviceName,
        detail: "The IOMMU offers \(usableRanges) only", remedy: "The device cannot be used behind this IOMMU")
    }
    // Mappings above the mask may be another device's where several share the domain.
    if let above = addressing.change(limit: mask.limit, inUse: { [core] in core.use(above: mask.limit) }) {
      throw DMAError(
        .outsideMask, "setMask", address: above.start.rawValue, byteCount: above.byteCount, device: deviceName,
        detail: "\(above) is in use, above the mask's \(IOVA(mask.limit))", remedy: "Set the mask before mapping")
    }
    // The first address is the highest that the device will get.
    core.space.emptyCaches()
  }

  /// The mask set last.
  public var mask: DMAMask { DMAMask.bits(64 - addressing.limit.leadingZeroBitCount) }

  /// The addresses that mappings can get: the IOMMU's aperture without reserved regions and without page 0; the mask is
  /// not taken into account. Sorted, inclusive ranges; none in a fork of the process that opened the device.
  ///
  /// A device that is opened with `sharing:` takes out what it cannot reach, for all devices of the domain and for as long
  /// as the domain lives, also when it leaves or is refused later on: what was given out once holds for whoever comes.
  public var usableRanges: IOVARanges {
    // The lock may have been held by a thread that a fork does not have.
    ProcessGuard.isOwner ? core.locked { $0.usable } : []
  }

  /// The smallest page in bytes: addresses and lengths of unsafe mappings are multiples of it.
  public var granule: PageSize { PageSize(byteCount: core.granuleMask + 1)! }

  /// How the kernel is reached.
  public var interface: Interface { core.translation.interface }

  /// Counters of the address space; one consistent copy. All zero in a fork of the process that opened the device.
  public var statistics: DMAStatistics {
    guard ProcessGuard.isOwner else { return DMAStatistics() }
    var copy = core.cache.withCounts { [core] cache in
      var copy = core.locked { $0.report(core.slots.sum(), core.processOwned) }
      (copy.cacheHits, copy.cacheMisses, copy.cachedBytes) = (cache.hits, cache.misses, cache.byteCount)
      return copy
    }
    core.standing.add(to: &copy)
    copy.debugReports = core.debug?.reportCount ?? 0
    copy.arenaBytes = UInt64(core.coherent.byteCount + core.streaming.byteCount)
    return copy
  }

  /// Lets memory for records of mappings run out after so many more nodes. For tests.
  package func limitRecords(toNodes count: Int) { core.records.limitMemory(toNodes: count) }

  /// Lets memory for the store of addresses run out after so many more chunks, and then that of the index of host addresses, where
  /// there is one. For tests.
  package func limitAddresses(toChunks count: Int, index: Int = .max) {
    core.space.limitStoreMemory(toChunks: count)
    core.locked { $0.hosts.limitMemory(toChunks: index) }
  }

  /// ``AddressSpace/AddressAllocator/checkInvariants()``. For tests.
  package func checkAddresses() -> String? { core.space.checkInvariants() }

  /// Where this process owns the page tables, what writes them: for measuring what a domain costs beside it.
  package var processOwned: (any ProcessOwnedTranslation)? { core.processOwned }

  /// Whether the last device of the domain was closed.
  public var isClosed: Bool { core.isClosed.load(ordering: .relaxed) }
}

// MARK: - Translate

extension DMADomain {
  /// Where an address of the device lies in this process, if all of `byteCount` bytes lie in one mapping or in the
  /// coherent arena; else nil. Always nil in a fork, which has neither.
  ///
  /// - Complexity: O(1), without a lock, in a mapping of up to 2 MiB at an address of the library's choice; O(log n) in the
  ///   number of the others.
  public func translate(_ address: IOVA, byteCount: Int = 1) -> UnsafeMutableRawPointer? {
    guard core.isOwner, byteCount > 0 else { return nil }
    guard let range = IOVARange(start: address, byteCount: UInt64(byteCount)) else { return nil }
    if let found = core.records.translate(address, byteCount: UInt64(byteCount)) {
      return unsafe UnsafeMutableRawPointer(bitPattern: UInt(found))
    }
    let found = core.locked { state -> UInt? in
      guard let node = state.store.find(containing: address), node.isMapping, node.range.contains(range) else {
        return nil
      }
      return UInt(node.tag + (address.rawValue - node.start.rawValue))
    }
    guard let found else { return nil }
    return unsafe UnsafeMutableRawPointer(bitPattern: found)
  }

  /// Where memory of this process lies for the device, if all of `byteCount` bytes lie in one mapping or in the coherent
  /// arena; else nil. Of several mappings of the same memory, any. Always nil in a fork.
  ///
  /// - Complexity: O(1), without a lock, where the last call for this page has found a mapping of up to 2 MiB at an address of
  ///   the library's choice that is live; else O(log n) in the number of mappings. The first call makes the index, O(n log n), and
  ///   keeps no other thread from mapping meanwhile.
  public func translate(_ pointer: UnsafeRawPointer, byteCount: Int = 1) -> IOVA? {
    guard core.isOwner, byteCount > 0 else { return nil }
    let host = UInt64(UInt(bitPattern: pointer))
    return core.records.translateFound(host, byteCount: UInt64(byteCount)) ?? search(host, byteCount)
  }

  @inline(never)
  private func search(_ host: UInt64, _ byteCount: Int) -> IOVA? {
    guard let found = core.mapping(of: host, byteCount: UInt64(byteCount)) else { return nil }
    // Without the lock, as it may take memory; and only what is found by it later.
    if core.records.range(containing: found.address, isLive: true) != nil {
      core.records.noteFound(host, in: found.address)
    }
    return IOVA(found.address.rawValue + (host - found.start))
  }
}

extension DomainCore {
  /// The lowest addresses in use of which one is above `limit`, after all maps that have returned; nil where several devices share
  /// the domain, as they may be another's.
  func use(above limit: UInt64) -> IOVARange? {
    // Who is about to return has entered its mapping before it gives its slot back.
    slots.passAll()
    return isShared ? nil : locked { $0.use(above: limit) }
  }
}
