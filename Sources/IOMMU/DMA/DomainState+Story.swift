import AddressSpace

/// Where the address of a fault lies, by the tables that the domain has anyway: nothing is kept for it while all goes well.
extension DomainState {
  /// Where an address lies, as far as the tables tell.
  struct Finding {
    var place: Fault.Story.Place
    /// The mapping that it lies in or lay in.
    var mapping: Fault.MappingDetails?
    /// The nearest live one, where it lies in none.
    var near: IOVARange?
    /// Whether it is a gap behind a mapping, whatever was there before; one of a reservation may be what a link has left.
    var isBehind = false
  }

  /// Where an address lies.
  ///
  /// - Complexity: O(log n), and O(``Limits/storyNodes``) where nothing is mapped there.
  func find(_ address: IOVA) -> Finding {
    if let live = live(at: address) { return Finding(place: .live, mapping: live) }
    let node = store.find(containing: address), near = neighbour(of: address)
    let isGap = node?.kind == .guard && node?.auxiliary != RangeStore.Node.heldMark
    if isGap, node?.auxiliary == RangeStore.Node.gapMark { return Finding(place: .gap, near: near, isBehind: true) }
    if let range = records.range(containing: address, isLive: false) ?? ended.range(containing: address) {
      var mapping = Fault.MappingDetails(range: range)
      mapping.end = .unmapped
      return Finding(place: .ended, mapping: mapping, near: near)
    }
    if isGap { return Finding(place: .gap, near: near) }
    guard usable.contains(IOVARange(start: address, last: address)!) else { return Finding(place: .unusable) }
    let isBeside = near.map { $0.gap(to: address) < Limits.storyReach } ?? false
    return Finding(place: isBeside ? .beside : .nowhere, near: near)
  }

  private func live(at address: IOVA) -> Fault.MappingDetails? {
    if let range = records.range(containing: address, isLive: true) { return details(range) }
    guard let node = store.find(containing: address), node.isMapping else { return nil }
    return details(node.range)
  }

  /// What the tables know of a mapping that is live.
  func details(_ range: IOVARange) -> Fault.MappingDetails {
    var details = Fault.MappingDetails(range: range)
    let tag = store.find(containing: range.start).flatMap { $0.isMapping ? $0.tag : nil }
    details.memory = (records.translate(range.start, byteCount: 1) ?? tag).map { UInt($0) }
    return details
  }

  /// The nearest live mapping to an address that is in none; of two at one distance the one below, past whose end a device may
  /// have run. Addresses that are cached or wait lie between: so many are looked at on either side, and no more.
  private func neighbour(of address: IOVA) -> IOVARange? {
    let (below, above) = (below(address), above(address))
    guard let below, let above else { return below ?? above }
    return above.gap(to: address) < below.gap(to: address) ? above : below
  }

  private func below(_ address: IOVA) -> IOVARange? {
    var from = address
    for _ in 0..<Limits.storyNodes {
      guard let node = store.previous(below: from) else { return nil }
      if let range = mapping(node) { return range }
      from = node.start
    }
    return nil
  }

  private func above(_ address: IOVA) -> IOVARange? {
    var from = address
    for _ in 0..<Limits.storyNodes {
      guard let node = store.next(from: from) else { return nil }
      if let range = mapping(node) { return range }
      guard let next = node.range.last.advanced(by: 1) else { return nil }
      from = next
    }
    return nil
  }
}

extension IOVARange {
  /// Bytes between the range and an address outside of it: 0 for the one next to it on either side.
  func gap(to address: IOVA) -> UInt64 {
    address > last ? address.rawValue - last.rawValue - 1 : start.rawValue - address.rawValue - 1
  }
}
