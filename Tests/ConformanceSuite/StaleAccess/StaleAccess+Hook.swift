import AddressSpace
import IOMMU
import IOMMUSimulation

// Around each invalidation: the mistake that is to be made, what another thread does at that moment, and a write of the device
// just as the invalidation completes.

extension StaleAccess {
  func before(_ call: inout InvalidationCall) {
    guard !isInside else { return }
    isInside = true
    defer { isInside = false }
    if !told.contains(call.pageTable) { told.append(call.pageTable) }
    if let meanwhile {
      self.meanwhile = nil
      attempt(meanwhile)
    }
    if let mutant = options.mutant { make(mutant, &call) }
  }

  private func make(_ mutant: InvalidationMutant, _ call: inout InvalidationCall) {
    guard mutant.isAboutOne else {
      _ = mutant.change(&call, told: told)
      return
    }
    guard isLazy || ending != nil, mistakesLeft > 0 else { return }
    var changed = call
    guard mutant.change(&changed, told: told), mutant != .syncBeforeStore || endingPlace != nil else { return }
    mistakesLeft -= 1
    guard mistakesLeft == 0 else { return }
    call = changed
    if mutant == .syncBeforeStore { restore() }
  }

  /// Writes the entries of the mapping that ends as they were.
  private func restore() {
    guard let ending, let endingPlace else { return }
    let iova = ending.address.rawValue, byteCount = UInt64(ending.inUse.count) * 4096
    if tables.mapHere(iova: iova, address: endingPlace, byteCount: byteCount, access: .readWrite) {
      restored = (iova, byteCount)
    }
  }

  func after() {
    guard !isInside else { return }
    isInside = true
    defer { isInside = false }
    if let ending { attempt { for page in ending.inUse { _ = try write(to: ending.address(of: page)) } } }
    if let (address, byteCount) = restored {
      restored = nil
      _ = tables.clearHere(iova: address, byteCount: byteCount)
    }
  }

  private func attempt(_ body: () throws -> Void) {
    do { try body() } catch { failure = error }
  }
}
