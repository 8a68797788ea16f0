/// What becomes of a map of memory that is neither the library's own nor registered, where this process owns the page tables.
///
/// There a map is a store into memory, once the memory is pinned and entered into the second stage. The library does that for its
/// arenas, and ``DMADomain/register(unsafe:)`` for memory of the caller's. Any other memory needs a system call to map, and two to
/// unmap, one of which has the kernel flush all that devices have cached: a driver that wants none of that on its data path has
/// it refused, and finds where it forgot to register.
public enum RegistrationPolicy: String, Hashable, Sendable, CaseIterable {
  /// The map registers it for the mapping's life, and ``DMAStatistics/implicitRegistrations`` counts that.
  case implicit
  /// The map throws ``DMAError/Code/notRegistered``: nothing is pinned, and no address taken.
  case requireRegistered
}

extension DMADomain {
  /// The policy in force, of all devices that share the domain. ``RegistrationPolicy/implicit`` where the kernel owns the page
  /// tables, and in a fork, which maps nothing.
  public var registrationPolicy: RegistrationPolicy {
    core.isOwner && core.processOwned?.requiresRegistration == true ? .requireRegistered : .implicit
  }

  /// Chooses what becomes of maps of memory that is not registered; the default is ``RegistrationPolicy/implicit``. What is mapped
  /// stays so.
  ///
  /// It is about ``map(unsafe:_:at:widening:)``, ``mapBulk(unsafe:_:at:widening:threads:isCancelled:)``, and memory of the caller's in
  /// a ``ScatterList`` or a ``Reservation``; each piece has to lie in one ``Registration`` as a whole, and one that lies in two
  /// is not registered. Buffers and arrays of the domain always are, and what is copied, as under ``Protection/bounce``, need not
  /// be. Maps that other threads have under way may still go by the policy before.
  ///
  /// Without effect where the kernel owns the page tables: it pins with every map, so that nothing is implicit there, and without
  /// ``Protection/persistent`` takes no registrations. Without effect in a fork.
  public func setRegistrationPolicy(_ policy: RegistrationPolicy) {
    if core.isOwner { core.processOwned?.requiresRegistration = policy == .requireRegistered }
  }
}
