/// What a simulated SMMU keeps of stage 2 alone: the areas that were used last, by VMID.
///
/// Real hardware keeps pages. An area goes in and out of stage 2 as a whole, so that as a whole it can be stale or not.
struct Stage2Cache {
  struct Area {
    var vmid: UInt16
    var start: UInt64, last: UInt64
    var host: UInt
    var permissions: SimulatedIOMMU.Permissions
  }

  private var areas: [Area] = []
  private var next = 0
  /// The most areas.
  let capacity: Int

  init(capacity: Int) {
    precondition(capacity > 0, "a cache has at least one entry")
    self.capacity = capacity
  }

  /// The area that has an address. O(areas).
  @inline(__always)
  func find(_ vmid: UInt16, _ ipa: UInt64) -> Area? {
    for area in areas where area.start <= ipa && ipa <= area.last && area.vmid == vmid { return area }
    return nil
  }

  mutating func fill(_ area: Area) {
    if areas.count < capacity { return areas.append(area) }
    areas[next] = area
    next = (next + 1) % capacity
  }

  /// Drops the areas that a range touches, all of a VMID without one. O(areas).
  mutating func invalidate(_ vmid: UInt16, _ span: Span64 = Span64(start: 0, last: .max)) {
    areas.removeAll { $0.vmid == vmid && Span64(start: $0.start, last: $0.last).overlaps(span) }
    if areas.count < capacity { next = 0 }
  }

  mutating func removeAll() { (areas, next) = ([], 0) }
}
