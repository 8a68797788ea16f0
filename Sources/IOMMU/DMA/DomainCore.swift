import AddressSpace
import CIOMMU
import Synchronization

/// The part of a domain that mappings, buffers and arrays reach, and keep alive.
///
/// ``DMADomain`` holds one strong reference, each buffer one more, which a mapping takes over: so a mapping outlives its
/// device and its domain, and mapping and unmapping an owned buffer retains nothing. The last to go frees the core.
@safe
final class DomainCore: @unchecked Sendable {
  let kernel: any Kernel
  /// Whether that is Linux below, with its clock.
  let isOnLinux: Bool
  /// ``ProcessGuard``'s word.
  private let owner: UnsafePointer<UInt64>
  let translation: any Translation
  /// ``Translation/directCalls``.
  let directCalls: DirectCalls?
  /// The translation, where this process writes its tables.
  let processOwned: (any ProcessOwnedTranslation)?
  /// The same, where a map or an unmap may be a few stores.
  let hardwareTables: (any HardwareTables)?
  /// Behind a pointer, so that its parts are loaded where they are used.
  let shortWay: UnsafeMutablePointer<ShortWay>?
  /// System calls that each map and each unmap is: one where the kernel owns the tables, else the translation counts its own.
  let callsEach: UInt64
  /// The smallest page minus one, in bytes.
  let granuleMask: UInt64
  /// Addresses, by processor for mappings of up to 2 MiB at addresses of the library's choice; and what those map, and what they
  /// count. Mapping and unmapping them takes no lock that all processors share.
  let space: AddressAllocator
  let records: MappingTable
  let slots: DomainSlots
  /// Everything else that changes, behind the lock of the store of addresses, which is never held across a system call.
  let state: UnsafeMutablePointer<DomainState>
  /// Where addresses above 4 GiB begin; 0 where there are none.
  let highAddresses: UInt64
  /// Calls into the translation that are under way, but for those that a slot counts; ``close()`` waits for them, and no
  /// call begins after it.
  let inFlight = Atomic<Int>(0)
  let isClosed = Atomic<Bool>(false)
  /// Whether the devices of a closed domain are detached, and what was mapped is out of their reach.
  private let isEmptied = Atomic<Bool>(false)
  /// The device that the domain was made for; errors name it where no other is known.
  let device: String
  /// Devices that use the domain, and those that are attached: one that leaves is still attached for a moment, one that
  /// joins not yet. A domain is made with its first.
  private let deviceCount = Atomic<Int>(1), attachedCount = Atomic<Int>(1)
  let coherent: Arena
  let streaming: Arena
  /// What the data path needs to know of the protection.
  let lazyMode = Atomic<LazyMode>(.strict)
  /// All that decides between the short way and others, in one: ``HereMode``.
  let here = Atomic<UInt8>(HereMode.none)
  /// ``Alternative``, for maps that are no calls of their own.
  let alternative = Atomic<Alternative>(.none)
  /// What ``Alternative/short`` goes by.
  let copyLimits = Mutex(CopyLimits())
  let standing = StandingMaps()
  /// Debug mode, where it is on: ``alternative`` is ``Alternative/debug`` then, and all maps go by ``detour``.
  let debug: DebugTracker?
  let detour: any MapDetour
  let queue: FlushQueue
  let withheld = WithheldMemory()
  /// Maps that are kept after their unmap, by ``Protection/automatic(_:)``.
  let cache = MapCache()
  let protection = Mutex(ProtectionState())
  /// Whether the timer could not be had once, and why, until that is told.
  let isTimerMissed = Atomic<Bool>(false), untoldErrno = Atomic<Int32>(0)
  /// Those who are told what concerns the domain as a whole: one a device.
  let listeners = Mutex<[Listener]>([])

  struct Listener { weak var addressing: DeviceAddressing? }

  init(
    kernel: any Kernel, translation: any Translation, usable: IOVARanges, granule: PageSize, node: Int?, device: String,
    debug options: DebugOptions? = nil
  ) throws(RangeStoreFailure) {
    let processors = Int(ci_cpu_limit())
    let space = try AddressAllocator(usable: usable, granule: granule, processors: UInt32(processors))
    let highest = usable.last?.last.rawValue ?? 0
    // In debug mode the store has all mappings, as it has the gaps between them.
    let takesAny = options == nil
    guard
      let records = MappingTable(highest: highest, granule: granule, processors: processors, takesAny: takesAny)
    else {
      throw .outOfMemory
    }
    processOwned = translation as? any ProcessOwnedTranslation
    hardwareTables = translation as? any HardwareTables
    unsafe shortWay = hardwareTables.map { tables in
      let way = UnsafeMutablePointer<ShortWay>.allocate(capacity: 1)
      unsafe way.initialize(to: tables.shortWay)
      return unsafe way
    }
    callsEach = processOwned == nil ? 1 : 0
    highAddresses = highest >> 32 == 0 ? 0 : 1 << 32
    let held = options.map { HeldAddresses($0, granule: granule) }
    let first = unsafe DomainState(usable: usable, store: space.store, records: records, held: held)
    let debug = options.map { DebugTracker($0, kernel: kernel, granule: granule, device: device) }
    (self.debug, detour) = (debug, debug ?? NoDetour.shared)
    self.space = space
    self.records = records
    slots = DomainSlots(processors: processors)
    self.kernel = kernel
    isOnLinux = kernel is LiveKernel
    self.translation = translation
    directCalls = translation.directCalls
    self.device = device
    granuleMask = granule.mask
    unsafe owner = unsafe ProcessGuard.word
    unsafe state = .allocate(capacity: 1)
    unsafe state.initialize(to: first)
    coherent = Arena(kernel: kernel, granule: granule, node: node, name: "iommu-coherent")
    streaming = Arena(
      kernel: kernel, granule: granule, node: node, name: "iommu-buffers", usesHugePages: debug?.ownership == nil)
    queue = FlushQueue(processors: processors)
    if debug != nil { alternative.store(.debug, ordering: .relaxed) }
    processOwned?.reclaim?.setOwner(self)
    setHere()
  }

  /// The order matters: nothing is unmapped from memory before the device cannot reach it.
  deinit {
    close()
    unsafe state.pointee.held?.deallocate()
    unsafe state.deinitialize(count: 1)
    unsafe state.deallocate()
    unsafe shortWay?.deallocate()
    slots.deallocate()
    records.deallocate()
  }

  /// ``ProcessGuard/isOwner``, without the look whether its word is there.
  @inline(__always)
  var isOwner: Bool { unsafe owner.pointee != 0 }

  /// Whole pages, in bytes.
  @inline(__always)
  func padded(_ byteCount: Int) -> UInt64 { (UInt64(truncatingIfNeeded: byteCount) &+ granuleMask) & ~granuleMask }

  /// Runs `body` on the state with the store's lock held. No system call may happen inside, memory is neither asked for nor given
  /// back, and ``space`` is not called.
  ///
  /// - Parameter insertions: How many nodes `body` may insert into the store: memory for them is asked for before the lock
  ///   is taken, and for one entry of the index of host addresses.
  @inline(__always)
  func locked<Result: ~Copyable, Failure: Error>(
    insertions: Int = 0, _ body: (inout DomainState) throws(Failure) -> Result
  ) throws(Failure) -> Result {
    space.lockStore(insertions: insertions)
    if insertions > 0, unsafe state.pointee.hosts.announceInsertion() > 0 { feedIndex(insertions) }
    defer { space.unlockStore() }
    return try unsafe body(&state.pointee)
  }

  /// Begins a call into the translation; false when the domain is closed: then there is nothing to call. The data path
  /// enters by its slot.
  @inline(__always)
  func enter() -> Bool {
    inFlight.wrappingAdd(1, ordering: .sequentiallyConsistent)
    if !isClosed.load(ordering: .sequentiallyConsistent) { return true }
    leave()
    return false
  }

  @inline(__always)
  func leave() { inFlight.wrappingSubtract(1, ordering: .releasing) }

  /// Whether several devices use the address space.
  var isShared: Bool { deviceCount.load(ordering: .relaxed) > 1 }

  /// Ends the domain: what is still mapped goes in one unmap-all. The second call does nothing.
  private func close() {
    stop()
    finish()
  }

  /// Lets no further call into the translation begin, and waits for those under way.
  private func stop() {
    guard isClosed.compareExchange(expected: false, desired: true, ordering: .sequentiallyConsistent).exchanged else {
      return
    }
    // A call that was under way when the process was forked never ends in the fork.
    guard ProcessGuard.isOwner else { return }
    slots.close()
    withoutHits { _ in }
    // A call under way is an ioctl, which ends by itself; what takes several looks whether to go on before each. In one order
    // with ``enter()``'s two steps.
    while inFlight.load(ordering: .sequentiallyConsistent) != 0 || slots.isAnyInFlight {
      kernel.sleep(.microseconds(20))
    }
  }

  private func finish() {
    guard ProcessGuard.isOwner else { return }
    if queue.isTimerArmed.load(ordering: .acquiring) { FlushTimer.disarm(self) }
    translation.close()
    cache.drop()
    locked {
      $0.statistics.queuedBytes = 0
      slots.clearQueued()
    }
    isEmptied.store(true, ordering: .releasing)
    debug?.domainClosed()
  }

  /// On a closed domain: returns when what was mapped is out of reach, which is as soon as another thread has detached
  /// the last device.
  @inline(never)
  func waitUntilEmptied() {
    while !isEmptied.load(ordering: .acquiring) { kernel.sleep(.microseconds(20)) }
  }
}

// MARK: - Devices

extension DomainCore {
  /// Counts one more device, before it is attached; false when the last one has left, and the domain ends.
  func join() -> Bool {
    attachedCount.wrappingAdd(1, ordering: .acquiringAndReleasing)
    var count = deviceCount.load(ordering: .acquiring)
    while count > 0 {
      let result = deviceCount.weakCompareExchange(
        expected: count, desired: count + 1, ordering: .acquiringAndReleasing)
      if result.exchanged { return true }
      count = result.original
    }
    isDetached()
    return false
  }

  /// A device leaves, which ``join()`` has counted. With the last one the domain ends: first its calls, since a type1
  /// container without a device refuses them, then its mappings.
  func deviceLeaves(_ attachment: Attachment?) {
    if deviceCount.wrappingSubtract(1, ordering: .acquiringAndReleasing).newValue == 0 { stop() }
    if let attachment { translation.detach(attachment) }
    isDetached()
  }

  private func isDetached() {
    if attachedCount.wrappingSubtract(1, ordering: .acquiringAndReleasing).newValue == 0 { finish() }
  }
}

/// Why a map or unmap failed: trivial, so that the data path carries it for nothing.
enum MapFailure: Error {
  case system(Errno)
  case space(RangeStoreFailure)
  /// The kernel unmapped this many bytes instead of what was asked.
  case mismatch(UInt64)
  /// A part of a list, or an area, could not be mapped, and those before it could not be unmapped.
  case stuck(Errno)
  case closed
  case forked
  /// Debug mode has no record of the mapping: it has ended before.
  case notMapped

  /// Whether the domain was closed: before the call, or under it.
  var isClosed: Bool { if case .closed = self { true } else { false } }
}
