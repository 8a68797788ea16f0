import AddressSpace

/// Addresses for who takes tables without entries back, and a way past him.
extension DomainCore: AddressOwner {
  package func claim(_ region: IOVARange) -> Bool {
    space.lockStore(insertions: 1)
    defer { space.unlockStore() }
    // No mapping, as it has no tag. What is cached is an allocation of the store's, and in the way.
    do throws(RangeStoreFailure) {
      try unsafe space.store.pointee.insert(RangeStore.Node(range: region, kind: .fixed))
      return true
    } catch { return false }
  }

  package func release(_ region: IOVARange) {
    space.lockStore()
    defer { space.unlockStore() }
    _ = unsafe space.store.pointee.remove(region.start)
  }

  /// Until ``resumeReclaim()`` nothing is claimed: a region whose table is being taken back is nobody's, and looks taken. Waits for
  /// who has claimed some. Functions of their own, so that who looks for an address counts no references.
  @inline(never)
  func holdReclaim() {
    guard let processOwned, let reclaim = processOwned.reclaim else { return }
    let left = reclaim.hold(kernel)
    if left.isEmpty { return }
    // The tables of these wait for the same invalidation.
    do throws(Errno) {
      try processOwned.invalidateAll()
      for region in left { release(region) }
    } catch { reclaim.keep(left) }
  }

  @inline(never)
  func resumeReclaim() { processOwned?.reclaim?.resume() }
}
