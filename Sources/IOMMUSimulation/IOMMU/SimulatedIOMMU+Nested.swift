import IOMMU

// Domains of two stages: the process's table over a domain that the kernel fills, with an IOTLB in front of both.

extension SimulatedIOMMU {
  /// Stage 1 of a domain, and the domain that is its stage 2.
  struct Nesting {
    let parent: DomainID
    let table: FlatTable
  }

  /// A domain whose stage 1 is the process's.
  mutating func makeDomain(over parent: DomainID, _ table: FlatTable) throws(Errno) -> DomainID {
    let id = try makeDomain(unit: unit(of: parent))
    domains[id]!.nesting = Nesting(parent: parent, table: table)
    domains[parent]!.children.insert(id)
    return id
  }

  /// Drops what is cached of a page range, or of the whole tag, as a command of the process asks.
  mutating func invalidate(_ id: DomainID, _ command: FlatFormat.Command) {
    if command == .everything {
      iotlb.invalidate(id)
    } else {
      // From the 4 KiB that commands count in to the pages that entries are of.
      let first = command.address >> 12, last = first + (command.pageCount - 1), larger = UInt64(pageShift - 12)
      iotlb.invalidate(id, pages: first >> larger...last >> larger)
    }
    count { $0.processInvalidations += 1 }
  }

  /// The process waits for its commands.
  mutating func countSync() { count { $0.processSyncs += 1 } }

  /// What changes in stage 2 may be cached in entries of both stages: the kernel flushes those of all domains over it.
  mutating func invalidateChildren(of id: DomainID) {
    let attached = domains[id]!.children.filter { domains[$0]?.members.isEmpty == false }
    for child in attached { iotlb.invalidate(child) }
    if !attached.isEmpty { count { $0.invalidations += 1 } }
  }

  /// Translates a request page by page: from the cache, else by both stages, which fills it.
  mutating func translate(
    _ id: DomainID, _ nesting: Nesting, _ iova: UInt64, byteCount: Int, _ access: Permissions
  ) throws(Refusal) -> [Segment] {
    var segments: [Segment] = []
    var (address, left) = (iova, UInt64(byteCount))
    let mask = UInt64(1) << UInt64(pageShift) - 1
    while left > 0 {
      guard address <= apertureLast else { throw Refusal(reason: .addressSize, iova: address) }
      let entry = try entry(id, nesting, address, access)
      guard entry.permissions.contains(access) else { throw Refusal(reason: .permission, iova: address) }
      let offset = address & mask, length = min(left, mask + 1 - offset)
      segments.append(Segment(host: entry.host + UInt(offset), byteCount: Int(length)))
      left -= length
      let (next, overflow) = address.addingReportingOverflow(length)
      guard left == 0 || !overflow else { throw Refusal(reason: .addressSize, iova: address) }
      address = next
    }
    return segments
  }

  /// What is not there is not cached.
  private mutating func entry(
    _ id: DomainID, _ nesting: Nesting, _ address: UInt64, _ access: Permissions
  ) throws(Refusal) -> IOTLB.Entry {
    let page = address >> UInt64(pageShift)
    if let entry = iotlb.entry(id, page: page) {
      count { $0.cacheHits += 1 }
      return entry
    }
    count { $0.cacheMisses += 1 }
    let start = page << UInt64(pageShift)
    guard let first = nesting.table.entry(at: start),
      let second = domains[nesting.parent]?.table.area(at: first.ipa + (start - first.iova))
    else { throw Refusal(reason: .notMapped, iova: address) }
    var permissions = Permissions(rawValue: first.access.rawValue)
    // First-stage tables have no write-only pages.
    if permissions.contains(.write) { permissions.insert(.read) }
    permissions.formIntersection(second.value.permissions)
    let host = second.value.host + UInt(first.ipa + (start - first.iova) - second.start)
    let entry = IOTLB.Entry(host: host, permissions: permissions)
    if permissions.contains(access) { iotlb.fill(id, page: page, entry) }
    return entry
  }
}
