import AddressSpace
import IOMMU
import PageTables

// Around each invalidation: the mistake that is to be made, what another thread does at that moment, and a write of the device
// just as the invalidation completes.

extension StaleAccess {
  func before(_ words: inout [UInt64]) {
    guard !isInside else { return }
    isInside = true
    defer { isInside = false }
    if let meanwhile {
      self.meanwhile = nil
      attempt(meanwhile)
    }
    if let mutant = options.mutant { make(mutant, &words) }
  }

  private func make(_ mutant: InvalidationMutant, _ words: inout [UInt64]) {
    guard mutant.isAboutOne else {
      _ = mutant.change(&words)
      return
    }
    guard isLazy || ending != nil, mistakesLeft > 0 else { return }
    var changed = words
    guard mutant.change(&changed), mutant != .syncBeforeStore || endingPlace != nil else { return }
    mistakesLeft -= 1
    guard mistakesLeft == 0 else { return }
    words = changed
    if mutant == .syncBeforeStore { restore() }
  }

  /// Writes the entries of the mapping that ends as they were.
  private func restore() {
    guard let ending, let smmu, let endingPlace else { return }
    let byteCount = UInt64(ending.inUse.count) * 4096
    _ = smmu.table.map(
      iova: ending.address.rawValue, to: endingPlace, byteCount: byteCount, attributes: [.readable, .writable])
    restored = (ending.address.rawValue, byteCount)
  }

  func after() {
    guard !isInside else { return }
    isInside = true
    defer { isInside = false }
    if let ending { attempt { for page in ending.inUse { _ = try write(to: ending.address(of: page)) } } }
    if let (address, byteCount) = restored {
      restored = nil
      var gather = Gather(tracksRanges: false)
      _ = smmu?.table.unmap(iova: address, byteCount: byteCount, into: &gather)
    }
  }

  private func attempt(_ body: () throws -> Void) {
    do { try body() } catch { failure = error }
  }
}
