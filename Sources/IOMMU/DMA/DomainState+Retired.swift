import AddressSpace

/// Addresses that wait for a flush, of mappings that the store knows.
extension DomainState {
  /// A mapping ends, but its address stays taken until the flush.
  mutating func retire(_ iova: IOVA, byteCount: UInt64) {
    if let host = store.setTag(0, at: iova) { unindex(iova, host: host) }
    noteEnded(iova, byteCount: byteCount)
    statistics.unmaps &+= 1
    statistics.liveMappings &-= 1
    statistics.liveBytes &-= byteCount
    statistics.queuedBytes &+= byteCount
  }

  /// A gap between two parts of a list waits with them, as addresses that were in use: a flush frees it, so that it is no
  /// more in the way than they are.
  mutating func retireGap(_ start: IOVA) {
    guard let gap = store.find(containing: start), gap.start == start else { return }
    store.replace(start, with: RangeStore.Node(range: gap.range, kind: .allocation))
    statistics.queuedBytes &+= gap.byteCount
  }

  /// The addresses of a node that was retired are free; how many.
  mutating func releaseRetired(_ iova: IOVA) -> UInt64? {
    guard let node = release(iova) else { return nil }
    statistics.queuedBytes &-= node.byteCount
    return node.byteCount
  }
}
