import AddressSpace

/// What debug mode knows of the address of a fault.
extension DebugTracker {
  /// The mapping that is live there, the last that ended there, and the nearest live one, by their pages.
  ///
  /// - Complexity: O(n) in the number of mappings.
  func mappings(at address: IOVA) -> (live: DebugRecord?, ended: DebugRecord?, nearest: DebugRecord?) {
    locked { state in
      let live = state.live.values.first { $0.pages(granuleMask).contains(address.rawValue) }
      let ended = (state.ended[state.nextEnded...] + state.ended[..<state.nextEnded])
        .last { $0.record.pages(granuleMask).contains(address.rawValue) }?.record
      if let live { return (live, ended, nil) }
      let nearest = state.live.values.min { $0.gap(to: address, granuleMask) < $1.gap(to: address, granuleMask) }
      return (nil, ended, nearest)
    }
  }

  /// A mapping as a story tells it.
  func details(_ record: DebugRecord) -> Fault.MappingDetails {
    let now = kernel.now()
    func ago(_ time: UInt64) -> Duration { .nanoseconds(Int64(clamping: now > time ? now - time : 0)) }
    var details = Fault.MappingDetails(
      range: IOVARange(start: record.address, byteCount: UInt64(max(record.byteCount, 1)))!)
    details.what = record.what.rawValue
    details.memory = UInt(record.memory)
    details.direction = record.access.canRead ? record.access.canWrite ? .bidirectional : .toDevice : .fromDevice
    (details.thread, details.mappedAgo, details.mappedAt) = (record.thread, ago(record.mappedTime), record.mappedAt)
    if record.unmappedTime > 0 {
      (details.end, details.endedAgo, details.unmappedAt) = (.unmapped, ago(record.unmappedTime), record.unmappedAt)
    }
    return details
  }
}

extension DebugRecord {
  /// Bytes between its pages and an address outside of them.
  func gap(to address: IOVA, _ granuleMask: UInt64) -> UInt64 {
    let pages = pages(granuleMask)
    return address.rawValue < pages.lowerBound
      ? pages.lowerBound - address.rawValue - 1 : address.rawValue &- pages.upperBound
  }
}
