import AddressSpace
import Synchronization

/// Where a device gets its addresses first, if its mask allows more than 32 bits.
///
/// On conventional PCI an address below 4 GiB takes one bus cycle (SAC) and one above takes two, and some devices and
/// bridges claim more bits than they can drive. Linux's DMA layer therefore tries below 4 GiB first.
public enum AddressPolicy: String, Hashable, Sendable, CaseIterable {
  /// Below 4 GiB first, until that fails once: then, for good, as ``full``. A device then gets the highest address that
  /// it will ever get, so that one which cannot drive its bits fails at once and not months later.
  case sacFirst
  /// From the mask down: for devices that are known to drive all bits of their mask.
  case full
}

/// What a domain tells once, without being asked.
public enum DMANotice: Hashable, Sendable, CustomStringConvertible {
  /// No room was left below 4 GiB: from now on the device gets addresses of this many bits.
  case addressPolicyTripped(device: String, addressBits: Int)
  /// The timer of a lazy or automatic protection cannot be had, for want of a descriptor or a thread: as long as that is so, each
  /// unmap is flushed at once, and no map is kept; what such a flush fails with waits for the next operation.
  /// ``DMAStatistics/timerFailures`` counts on. All devices of the domain are told.
  case timerMissing(device: String, errno: Errno)

  /// One sentence, as the kernel's log would have it.
  public var description: String {
    switch self {
    case .addressPolicyTripped(let device, let bits): "\(device): using \(bits)-bit DMA addresses"
    case .timerMissing(let device, let errno): "\(device): no timer (\(errno.name)): lazy unmaps are flushed at once"
    }
  }
}

/// The highest addresses to try: `first`, and where that has no room `last`.
@safe
struct AddressLimits: BitwiseCopyable {
  var first: UInt64
  var last: UInt64
  /// Whose they are; it outlives every call that they are passed to.
  private let addressing: Unmanaged<DeviceAddressing>

  fileprivate init(first: UInt64, last: UInt64, of addressing: DeviceAddressing) {
    (self.first, self.last) = (first, last)
    unsafe self.addressing = .passUnretained(addressing)
  }

  /// The device's limits as they are now.
  ///
  /// Who chooses an address with the store's lock held goes by these: ``DeviceAddressing/change(limit:inUse:)`` looks what is in use
  /// with the lock held after it has changed them.
  var now: AddressLimits { unsafe addressing._withUnsafeGuaranteedRef { $0.limits } }

  /// Whether a range that was found needed the second try.
  func isAboveFirst(_ range: IOVARange) -> Bool { range.last.rawValue > first }
}

/// One device's mask and policy: two words that the data path reads, and what is told when a second try was needed.
@safe
final class DeviceAddressing: Sendable {
  /// ``AddressLimits/first`` and ``AddressLimits/last``.
  private let first = Atomic<UInt64>(AddressPolicy.belowFourGiB), last = Atomic<UInt64>(.max)
  private let state = Mutex(State())
  /// Held by who changes the mask.
  private let changes = Mutex(())

  private struct State {
    var policy = AddressPolicy.sacFirst
    var handler: (@Sendable (DMANotice) -> Void)?
  }

  @inline(__always)
  var limits: AddressLimits {
    AddressLimits(first: first.load(ordering: .relaxed), last: last.load(ordering: .relaxed), of: self)
  }

  /// The highest address that the device can drive.
  var limit: UInt64 { last.load(ordering: .relaxed) }

  var policy: AddressPolicy { state.withLock { $0.policy } }

  /// Changes the limit, unless something is in use above the new one: then it stays, and that is the answer.
  ///
  /// The new limit is in force before `inUse` has the last word: what is found later was chosen by it.
  func change(limit new: UInt64, inUse: () -> IOVARange?) -> IOVARange? {
    changes.withLock { _ in
      // A change that cannot be is not tried, as the maps of other threads would notice.
      if let range = inUse() { return range }
      let former = limit
      set(limit: new)
      guard let range = inUse() else { return nil }
      set(limit: former)
      return range
    }
  }

  private func set(limit: UInt64) { state.withLock { store($0.policy, limit) } }

  func set(_ policy: AddressPolicy) {
    state.withLock { state in
      state.policy = policy
      store(policy, limit)
    }
  }

  func onNotice(_ new: (@Sendable (DMANotice) -> Void)?) { state.withLock { $0.handler = new } }

  func tell(_ notice: DMANotice) { state.withLock { $0.handler }?(notice) }

  /// The first try has failed: the policy gets out of the way. Whether it was this call that did it.
  @inline(never)
  func trip(_ device: String) -> Bool {
    let handler: (@Sendable (DMANotice) -> Void)?
    handler = state.withLock { state in
      guard state.policy == .sacFirst else { return nil }
      state.policy = .full
      store(.full, limit)
      return state.handler ?? { _ in }
    }
    handler?(.addressPolicyTripped(device: device, addressBits: 64 - limit.leadingZeroBitCount))
    return handler != nil
  }

  /// With the lock held.
  private func store(_ policy: AddressPolicy, _ limit: UInt64) {
    last.store(limit, ordering: .relaxed)
    first.store(policy == .full ? limit : min(limit, AddressPolicy.belowFourGiB), ordering: .relaxed)
  }
}

extension AddressPolicy {
  fileprivate static let belowFourGiB: UInt64 = (1 << 32) - 1
}

extension DMADomain {
  /// The policy in force: ``AddressPolicy/full`` after the trip. Of this device alone, also where several share a domain.
  /// ``AddressPolicy/sacFirst`` in a fork, which maps nothing.
  public var addressPolicy: AddressPolicy { ProcessGuard.isOwner ? addressing.policy : .sacFirst }

  /// Chooses the policy; the default is ``AddressPolicy/sacFirst``. It says nothing of what is mapped already.
  ///
  /// The corresponding kernel parameter is `iommu.forcedac`. Without effect in a fork.
  public func setAddressPolicy(_ policy: AddressPolicy) {
    // A thread that the fork does not have may hold the lock.
    if ProcessGuard.isOwner { addressing.set(policy) }
  }

  /// Replaces what is called with a notice; nil for nothing, which is the default.
  ///
  /// It is called by the thread whose call gave rise to the notice, before that call returns, with nothing held: it may use the
  /// device as any code may, and close it too. Without effect in a fork.
  public func onNotice(_ handler: (@Sendable (DMANotice) -> Void)?) {
    if ProcessGuard.isOwner { addressing.onNotice(handler) }
  }
}
