import AddressSpace

/// What the lock of a domain's store of addresses guards.
@safe
struct DomainState: ~Copyable {
  private let storePointer: UnsafePointer<RangeStore>
  /// What the store does not know: the mappings at addresses of ``DomainCore/space``.
  let records: MappingTable
  /// Mappings by host address; made by the first ``DMADomain/translate(_:byteCount:)-(UnsafeRawPointer,_)``.
  var hosts = HostIndex()
  /// Of what the slots do not count.
  var statistics = DMAStatistics()
  /// The most that was ever told of ``DMAStatistics/maps``.
  private var mapsTold: UInt64 = 0
  /// Mappings that the store knew. The others leave their names in ``records``.
  private(set) var ended = EndedMappings()
  /// In debug mode: addresses that wait, and the gaps behind mappings.
  var held: HeldAddresses?

  /// What mappings can get, for messages and ``DMADomain/usableRanges``.
  var usable: IOVARanges

  init(
    usable: IOVARanges, store: UnsafePointer<RangeStore>, records: MappingTable, held: HeldAddresses?
  ) {
    self.usable = usable
    self.held = held
    self.records = records
    unsafe storePointer = unsafe store
  }

  /// The occupied addresses. Mappings that are longer than 2 MiB, in parts or at an address that somebody chose have their host
  /// address for a tag; allocations without one are in ``records``, or cached, or wait for a flush.
  var store: RangeStore {
    @inline(__always) _read { yield unsafe storePointer.pointee }
  }

  /// The statistics to show. A map is counted before its kernel call and taken back if that fails: who has seen it must
  /// not see fewer afterwards.
  mutating func report(_ counts: DomainSlots.Counts, _ processOwned: (any ProcessOwnedTranslation)?) -> DMAStatistics {
    var copy = statistics
    copy.liveMappings += Int(truncatingIfNeeded: counts.maps &- counts.unmaps)
    mapsTold = max(mapsTold, copy.maps &+ counts.maps)
    copy.maps = mapsTold
    copy.unmaps &+= counts.unmaps
    copy.systemCalls &+= counts.systemCalls
    copy.liveBytes &+= counts.liveBytes
    copy.queuedBytes &+= counts.queuedBytes
    if let processOwned {
      copy.systemCalls += processOwned.systemCalls
      (copy.invalidations, copy.syncs) = (processOwned.invalidations, processOwned.syncs)
      copy.implicitRegistrations = processOwned.implicitRegistrations
      copy.gatheredRanges = processOwned.gatheredRanges
      copy.tableBytes = processOwned.tableBytes
    }
    return copy
  }

  /// The addresses of a node that somebody uses: what is mapped there, or a node of a reservation's or a list's; nil for what is
  /// cached, waits for a flush, or for nobody.
  private func use(_ node: RangeStore.Node) -> IOVARange? { node.isTaken ? node.range : mapping(node) }

  /// What is mapped at the addresses of a node; nil for what is cached, waits for a flush, or is no mapping's.
  func mapping(_ node: RangeStore.Node) -> IOVARange? {
    node.isMapping ? node.range : records.range(containing: node.start, isLive: true)
  }

  /// The lowest addresses in use of which one is above `limit`: a mapping's, or a reservation's.
  func use(above limit: UInt64) -> IOVARange? {
    if let node = store.find(containing: IOVA(limit)), let range = use(node), range.last.rawValue > limit {
      return range
    }
    var from = limit
    while from < .max, let node = store.next(from: IOVA(from + 1)) {
      if let range = use(node) { return range }
      from = node.range.last.rawValue
    }
    return nil
  }

  /// The mapping that an address lies in, or else the last that it lay in, of those that ended lately.
  func mapping(at address: IOVA) -> Fault.Mapping? {
    if let range = records.range(containing: address, isLive: true) { return .init(range: range, isLive: true) }
    if let node = store.find(containing: address), node.isMapping { return .init(range: node.range, isLive: true) }
    let range = records.range(containing: address, isLive: false) ?? ended.range(containing: address)
    return range.map { .init(range: $0, isLive: false) }
  }

  /// Notes that a mapping of the store's ends, or a part of it. What ended there before it is of no interest any more.
  mutating func noteEnded(_ start: IOVA, byteCount: UInt64) {
    ended.append(start, byteCount: byteCount)
    if let range = IOVARange(start: start, byteCount: byteCount) { records.forgetEnded(in: range) }
  }
}
