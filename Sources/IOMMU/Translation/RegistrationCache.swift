import Synchronization

/// Registrations that were found before, to be found again without a lock: host addresses to IPAs.
///
/// A place for each of some stretches of addresses, with the registration that was looked up there last. Its number is odd
/// while it is written, and a reader whose number changed meanwhile has read nothing. Whoever ends a registration clears every
/// place that has it first; that no one maps its memory then is the caller's duty, as with the registration itself.
@safe
package final class RegistrationCache: Sendable {
  /// The same for who only looks, without a reference to count: for as long as this lives.
  package let known = KnownRegistrations()

  package init() {}

  deinit { known.deallocate() }

  /// The IPA of memory that lies in one known registration.
  @inline(__always)
  package func ipa(of address: UInt64, byteCount: UInt64) -> UInt64? {
    guard Int64(bitPattern: byteCount) > 0 else { return nil }
    #if arch(x86_64)
      // The caller has entered the mapping where who ends a registration looks, after having hidden it here. One of the two must see
      // what the other wrote; but on x86 this load may be done before that store is visible. On Arm it may not: a load that acquires
      // comes after a store that releases.
      atomicMemoryFence(ordering: .sequentiallyConsistent)
    #endif
    return known.ipa(of: address, byteCount: byteCount)
  }

  /// Remembers a registration for the stretch that an address is in. With the lock of the registrations held.
  package func note(_ address: UInt64, first: UInt64, last: UInt64, ipa: UInt64) {
    unsafe write(known.place(address), first: first, span: last &- first, difference: ipa &- first)
  }

  /// Forgets a registration. With the lock of the registrations held.
  package func forget(first: UInt64) {
    for index in 0..<KnownRegistrations.count {
      let place = unsafe known.places + index
      guard unsafe place.pointee.first.load(ordering: .relaxed) == first else { continue }
      unsafe write(place, first: KnownRegistrations.none, span: 0, difference: 0)
    }
    // The other half of what ``ipa(of:byteCount:)`` says.
    atomicMemoryFence(ordering: .sequentiallyConsistent)
  }

  private func write(
    _ place: UnsafeMutablePointer<KnownRegistrations.Place>, first: UInt64, span: UInt64, difference: UInt64
  ) {
    let number = unsafe place.pointee.number.load(ordering: .relaxed)
    unsafe place.pointee.number.store(number &+ 1, ordering: .relaxed)
    atomicMemoryFence(ordering: .releasing)
    unsafe place.pointee.first.store(first, ordering: .relaxed)
    unsafe place.pointee.span.store(span, ordering: .relaxed)
    unsafe place.pointee.difference.store(difference, ordering: .relaxed)
    unsafe place.pointee.number.store(number &+ 2, ordering: .releasing)
  }
}

/// What a ``RegistrationCache`` remembers.
@safe
package struct KnownRegistrations: BitwiseCopyable, @unchecked Sendable {
  fileprivate struct Place: ~Copyable {
    let number = Atomic<UInt64>(0)
    /// The first byte, and how far the last one is from it.
    let first = Atomic<UInt64>(none), span = Atomic<UInt64>(0)
    /// What to add to a host address; wraps.
    let difference = Atomic<UInt64>(0)
    /// A cache line each.
    private let unused: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)
  }
  /// Farther from any address of a process than any registration is long.
  fileprivate static var none: UInt64 { 1 << 63 }
  fileprivate let places: UnsafeMutablePointer<Place>
  fileprivate static var count: Int { 128 }
  /// Stretches of 256 KiB, the least that an arena grows by: what it grew by at different times does not share one.
  private static var shift: UInt64 { 18 }

  fileprivate init() {
    unsafe places = .allocate(capacity: Self.count)
    for index in 0..<Self.count { unsafe (places + index).initialize(to: Place()) }
  }

  fileprivate func deallocate() {
    unsafe places.deinitialize(count: Self.count)
    unsafe places.deallocate()
  }

  @inline(__always)
  fileprivate func place(_ address: UInt64) -> UnsafeMutablePointer<Place> {
    unsafe places + Int(truncatingIfNeeded: address &>> Self.shift) & (Self.count &- 1)
  }

  /// The IPA of memory that lies in one known registration, for a caller that who ends a registration waits for, after having hidden
  /// it: one that holds a slot of its domain.
  ///
  /// - Precondition: The length is neither 0 nor above 2^63.
  @inline(__always)
  package func ipa(of address: UInt64, byteCount: UInt64) -> UInt64? {
    let place = unsafe place(address)
    let number = unsafe place.pointee.number.load(ordering: .acquiring)
    let offset = unsafe address &- place.pointee.first.load(ordering: .relaxed)
    let room = unsafe place.pointee.span.load(ordering: .relaxed) &- offset &- (byteCount &- 1)
    let difference = unsafe place.pointee.difference.load(ordering: .relaxed)
    // All in one: addresses of processes have 63 bits at most, so that what is below zero has the highest set, as does an odd number
    // here.
    guard Int64(bitPattern: offset | room | number &<< 63) >= 0 else { return nil }
    atomicMemoryFence(ordering: .acquiring)
    guard unsafe place.pointee.number.load(ordering: .relaxed) == number else { return nil }
    return address &+ difference
  }
}
