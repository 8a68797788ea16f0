/// What a simulated SMMU keeps of stage 2 alone: the areas that were used last, by VMID.
///
/// Real hardware keeps pages. An area goes in and out of stage 2 as a whole, so that as a whole it can be stale or not.
struct Stage2Cache {
  struct Area {
    var vmid: UInt16
    var start: UInt64
    /// What the last address is away from the first.
    private var reach: UInt64
    var host: UInt
    var permissions: SimulatedIOMMU.Permissions

    init(vmid: UInt16, start: UInt64, last: UInt64, host: UInt, permissions: SimulatedIOMMU.Permissions) {
      (self.vmid, self.start, reach, self.host) = (vmid, start, last - start, host)
      self.permissions = permissions
    }

    var last: UInt64 { start + reach }

    /// By one comparison of addresses, which seldom says yes: each of two would say no in an order that cannot be predicted.
    @inline(__always)
    func contains(_ vmid: UInt16, _ ipa: UInt64) -> Bool { ipa &- start <= reach && self.vmid == vmid }
  }

  private var areas: [Area] = []
  private var next = 0
  /// The one that was found last: tables lie together.
  private var recent = 0
  /// The most areas.
  let capacity: Int

  init(capacity: Int) {
    precondition(capacity > 0, "a cache has at least one entry")
    self.capacity = capacity
  }

  /// The area that has an address. O(areas), O(1) for the one that was found last.
  @inline(__always)
  mutating func find(_ vmid: UInt16, _ ipa: UInt64) -> Area? {
    if recent < areas.count, areas[recent].contains(vmid, ipa) { return areas[recent] }
    return search(vmid, ipa)
  }

  @inline(never)
  private mutating func search(_ vmid: UInt16, _ ipa: UInt64) -> Area? {
    guard let found = areas.firstIndex(where: { $0.contains(vmid, ipa) }) else { return nil }
    recent = found
    return areas[found]
  }

  mutating func fill(_ area: Area) {
    if areas.count < capacity { return areas.append(area) }
    areas[next] = area
    next = next + 1 == capacity ? 0 : next + 1
  }

  /// Drops the areas that a range touches, all of a VMID without one. O(areas).
  mutating func invalidate(_ vmid: UInt16, _ span: Span64 = Span64(start: 0, last: .max)) {
    areas.removeAll { $0.vmid == vmid && Span64(start: $0.start, last: $0.last).overlaps(span) }
    if areas.count < capacity { next = 0 }
  }

  mutating func removeAll() { (areas, next) = ([], 0) }
}
