import IOMMU

/// The IOMMU of a simulated machine: domains, which device is in which, translation, and what it had to invalidate.
///
/// Everything above it (iommufd, type1) speaks of domains and never of how they translate. A domain is a flat map that
/// the kernel owns and that translates at once; or a table of the process's over such a map, with an IOTLB in front; or a stage 1
/// in the format of an ``SMMU``, which walks it; or on a machine with a ``VTd`` tables in memory, whoever owns them. The verbs are the
/// same five: make, map, unmap, attach, translate.
struct SimulatedIOMMU {
  /// One translation context: the page table of a HWPT or of a type1 container.
  struct DomainID: Hashable {
    /// Never used again.
    let number: Int
    /// What hardware knows it by: a VMID, which all that an SMMU nests over a parent has from that, or a VT-d's domain id. Another
    /// has it when this one is gone.
    let tag: UInt16
  }

  /// What a device may do with an area.
  struct Permissions: OptionSet {
    let rawValue: UInt8
    static let read = Permissions(rawValue: 1), write = Permissions(rawValue: 2)
  }

  /// A piece of host memory that a translated request reaches.
  struct Segment {
    let host: UInt
    let byteCount: Int
  }

  /// Why a request was not translated, and the first address that was not.
  struct Refusal: Error {
    let reason: SimulatedFault.Reason
    let iova: UInt64
    /// Whether the hardware tells the kernel of it by an event record, or has a reason not to.
    var hasEvent = false
  }

  struct Mapping {
    /// Address in this process.
    let host: UInt
    let permissions: Permissions
    /// Bytes of the pages behind it, which decides what leaves can map it.
    let pageByteCount: UInt64
  }

  struct Domain {
    var table = AreaMap<Mapping>()
    /// Stage 1 over another domain; nil where the table above is all there is.
    var nesting: Nesting?
    /// The same in an SMMU's format.
    var hardware: HardwareNesting?
    /// The same in a VT-d's.
    var vtd: VTdNesting?
    /// What a VT-d walks of a domain of the kernel's own: the first stage, or the second.
    var table1: (any DriverTable)?, table2: (any DriverTable)?
    /// The IOMMU that it is for.
    var unit = 0
    /// Domains that have this one as stage 2.
    var children: Set<DomainID> = []
    var members: Set<PCIAddress> = []
  }

  let kind: SimulatedMachine.IOMMUKind
  private let addressBits: Int
  private let cachingMode: Bool
  /// First-stage tables have no write-only pages: what may be written may be read.
  private let writeImpliesRead: Bool
  private(set) var counters = SimulatedCounters()
  var domains = DomainTable()
  private var domainOf: [PCIAddress: DomainID] = [:]
  /// The SMMUs, where the machine has such.
  var smmus: [SMMU] = []
  /// The VT-ds, where they are simulated as hardware, and memory for their tables.
  var vtds: [VTd] = []
  var driverTables: DriverTables?
  private let units: [PCIAddress: Int]
  private var nextDomain = 1
  /// Tags of the domains that there are, and the last that there can be.
  private var tags: Set<UInt16> = []
  private let lastTag: UInt16
  var iotlb: IOTLB
  /// The bits of an address within a page.
  let pageShift: Int

  init(_ machine: SimulatedMachine, _ kind: SimulatedMachine.IOMMUKind) {
    self.kind = kind
    lastTag = kind == .smmuv3 && !machine.smmu.has16BitVMIDs ? 255 : .max
    if kind == .smmuv3 { smmus = (0..<machine.unitCount).map { SMMU(machine, number: $0) } }
    let registers = machine.effectiveVTdRegisters
    if let registers {
      vtds = (0..<machine.unitCount).map { VTd(machine, registers, number: $0) }
      driverTables = DriverTables()
    }
    units = Dictionary(
      machine.devices.compactMap { device in PCIAddress(device.address).map { ($0, device.iommuUnit) } },
      uniquingKeysWith: { first, _ in first })
    cachingMode = registers == nil && machine.cachingMode
    iotlb = IOTLB(capacity: machine.iotlbEntryCount)
    pageShift = max(machine.pageSizes.trailingZeroBitCount, 12)
    let isFirstStage = kind == .vtd && (registers?.prefersFirstStage ?? machine.usesFirstStage)
    writeImpliesRead = kind == .smmuv3 || isFirstStage
    // The upper half of a first-stage table is for addresses with the sign extended, which the kernel does not use.
    let bits = isFirstStage ? machine.addressBits - 1 : machine.addressBits
    let last = registers.map { isFirstStage ? $0.firstStageLast : $0.secondStageLast }
    addressBits = last.map { 64 - $0.leadingZeroBitCount } ?? bits
  }

  /// Changes the counters.
  mutating func count(_ change: (inout SimulatedCounters) -> Void) { change(&counters) }

  /// Highest address that a domain translates.
  var apertureLast: UInt64 { addressBits >= 64 ? .max : (1 << UInt64(addressBits)) - 1 }
  var domainCount: Int { domains.count }
}

// MARK: - Domains

extension SimulatedIOMMU {
  /// An empty domain with no device in it, under the lowest tag that is free, or that of its parent. ENOSPC where none is free, as
  /// `ida_alloc_range` answers the driver.
  mutating func makeDomain(unit: Int = 0, sharing tag: UInt16? = nil) throws(Errno) -> DomainID {
    guard let tag = tag ?? (1...lastTag).first(where: { !tags.contains($0) }) else { throw .noSpace }
    tags.insert(tag)
    let id = DomainID(number: nextDomain, tag: tag)
    nextDomain += 1
    domains[id] = Domain()
    domains[id]!.unit = unit
    return id
  }

  /// Frees a domain that no device is in; its table goes without a command, since no tag is live.
  mutating func destroy(_ id: DomainID) {
    assert(domains[id]?.members.isEmpty == true)
    if let parent = domains[id]?.parent { domains[parent]?.children.remove(id) }
    if domains[id]?.hardware == nil { tags.remove(id.tag) }
    domains[id] = nil
  }

  /// Puts a device into a domain, out of the one it was in.
  mutating func attach(_ device: PCIAddress, to id: DomainID) {
    let old = domainOf[device]
    guard old != id else { return }
    domainOf[device] = id
    domains[id]!.members.insert(device)
    reconfigure(device, from: old, to: id)
    leave(device, old)
  }

  /// Leaves a device blocked: every request of it faults.
  mutating func block(_ device: PCIAddress) {
    guard let old = domainOf.removeValue(forKey: device) else { return }
    reconfigure(device, from: old, to: nil)
    leave(device, old)
  }

  private mutating func reconfigure(_ device: PCIAddress, from old: DomainID?, to new: DomainID?) {
    if vtds.isEmpty { configure(device, from: old, to: new) } else { configureVTd(device, from: old, to: new) }
  }

  /// When the last device leaves, the driver flushes the domain's tag, once.
  private mutating func leave(_ device: PCIAddress, _ old: DomainID?) {
    guard let old else { return }
    domains[old]!.members.remove(device)
    // A VT-d's driver flushes with each device.
    guard vtds.isEmpty, domains[old]!.members.isEmpty, !flushHardwareTag(of: old) else { return }
    iotlb.invalidate(old)
    counters.invalidations += 1
  }

  func domain(of device: PCIAddress) -> DomainID? { domainOf[device] }
  /// The number of the IOMMU that translates for a device.
  func unit(of device: PCIAddress) -> Int { units[device] ?? 0 }
  /// Whether a device is in a domain, or in one that has it as stage 2.
  func isAttached(_ id: DomainID) -> Bool {
    guard let domain = domains[id] else { return false }
    return !domain.members.isEmpty || domain.children.contains { domains[$0]?.members.isEmpty == false }
  }
}

// MARK: - Maps

extension SimulatedIOMMU {
  /// Maps an area. With caching mode the driver flushes once for each run of contiguous pages; the simulator takes
  /// no two base pages to be contiguous.
  mutating func map(
    _ id: DomainID, _ span: Span64, to host: UInt, _ permissions: Permissions, pageByteCount: UInt64
  ) {
    let effective = writeImpliesRead && permissions.contains(.write) ? permissions.union(.read) : permissions
    let mapping = Mapping(host: host, permissions: effective, pageByteCount: pageByteCount)
    domains[id]!.table.insert(span.start, through: span.last, mapping)
    enterVTd(id, span, to: host, permissions, pageByteCount: pageByteCount)
    counters.maps += 1
    let pages = Int(clamping: (span.last - span.start) / pageByteCount + 1)
    counters.pages += pages
    if cachingMode && isAttached(id) { counters.flushesOnMap += pages }
  }

  /// Unmaps one area as mapped. While a device is in the domain that is one invalidation; an SMMU adds one for each
  /// table of base pages that an iommufd unmap frees, because its driver unmaps 2 MiB at a time and flushes the walk. Over a
  /// stage 2 one more flushes what is cached of both stages.
  mutating func unmap(_ id: DomainID, startingAt start: UInt64, freesTables: Bool) {
    guard let area = domains[id]!.table.remove(startingAt: start) else { return }
    counters.unmaps += 1
    counters.pages += Int(clamping: (area.last - area.start) / area.value.pageByteCount + 1)
    let span = Span64(start: area.start, last: area.last)
    if !vtds.isEmpty { return leaveVTd(id, span) }
    guard isAttached(id) else { return }
    var blocks: [Span64] = []
    if kind == .smmuv3, freesTables, area.value.pageByteCount < Self.blockByteCount {
      blocks = Span64.wholeBlocks(of: Self.blockByteCount, in: span)
    }
    if invalidateHardware(over: id, span, blocks) { return }
    counters.invalidations += 1 + blocks.count
    invalidateChildren(of: id)
  }

  private static var blockByteCount: UInt64 { 2 << 20 }
}

// MARK: - Translation

extension SimulatedIOMMU {
  /// Translates a request as a whole: every byte of it, or a refusal. O(log n + areas touched).
  mutating func translate(
    _ device: PCIAddress, _ iova: UInt64, byteCount: Int, _ access: Permissions
  ) throws(Refusal) -> [Segment] {
    guard byteCount > 0 else { return [] }
    guard let id = domainOf[device], let domain = domains[id] else {
      throw Refusal(reason: .blocked, iova: iova)
    }
    if !vtds.isEmpty {
      return try vtds[unit(of: device)].request(UInt32(device.requesterID), iova, byteCount: byteCount, access)
    }
    if domain.hardware != nil {
      return try smmus[domain.unit].request(
        UInt32(device.requesterID), iova, byteCount: byteCount, access, over: domains)
    }
    if let nesting = domain.nesting { return try translate(id, nesting, iova, byteCount: byteCount, access) }
    var segments: [Segment] = []
    var (address, left) = (iova, UInt64(byteCount))
    while left > 0 {
      guard address <= apertureLast else { throw Refusal(reason: .addressSize, iova: address) }
      guard let area = domain.table.area(at: address) else {
        throw Refusal(reason: .notMapped, iova: address)
      }
      guard area.value.permissions.contains(access) else { throw Refusal(reason: .permission, iova: address) }
      let offset = address - area.start
      let length = min(left, area.byteCount - offset)
      segments.append(Segment(host: area.value.host + UInt(offset), byteCount: Int(length)))
      left -= length
      let (next, overflow) = address.addingReportingOverflow(length)
      guard left == 0 || !overflow else { throw Refusal(reason: .addressSize, iova: address) }
      address = next
    }
    return segments
  }
}
