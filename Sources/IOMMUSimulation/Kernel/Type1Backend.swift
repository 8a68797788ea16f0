import AddressSpace
import IOMMU

/// The type1 back end of a container: mappings, and the domain that all its groups share, one for each SMMU.
final class Type1Backend {
  struct Entry {
    let memory: PinnedMemory
    let permissions: SimulatedIOMMU.Permissions
  }

  let isVersion2: Bool
  let isNoIOMMU: Bool
  var entries = AreaMap<Entry>()
  var available: UInt32
  /// By the number of the IOMMU: made with its first group, gone with the last group of all.
  var domains: [Int: SimulatedIOMMU.DomainID] = [:]
  var groups: [GroupState] = []

  init(isVersion2: Bool, isNoIOMMU: Bool, limit: UInt32) {
    (self.isVersion2, self.isNoIOMMU, available) = (isVersion2, isNoIOMMU, limit)
  }
}

// Rules of `drivers/vfio/vfio_iommu_type1.c`.

extension KernelState {
  /// The back end of a container, EINVAL before SET_IOMMU.
  private func backend(_ descriptor: Int32) throws(Errno) -> Type1Backend {
    guard let backend = try container(descriptor).backend else { throw .invalidArgument }
    guard !backend.isNoIOMMU else { throw .notTypewriter }
    return backend
  }

  /// Puts a group into the back end's domain: EPERM when interrupts are not isolated, EINVAL when existing mappings
  /// lie where the group's devices have reserved regions.
  func attach(_ group: GroupState, to backend: Type1Backend) throws(Errno) {
    guard !backend.isNoIOMMU else { return backend.groups.append(group) }
    let reserved = group.members.flatMap { reservedRegions(of: $0) }
    for area in backend.entries.areas {
      let span = Span64(start: area.start, last: area.last)
      guard !reserved.contains(where: { $0.span.overlaps(span) }) else { throw .invalidArgument }
    }
    guard machine.isolatesInterrupts || machine.allowsUnsafeInterrupts else {
      log.add(
        "vfio_iommu_type1_attach_group: No interrupt remapping support.  Use the module param "
          + "\"allow_unsafe_interrupts\" to enable VFIO IOMMU support on this platform", at: clock.now)
      throw .notPermitted
    }
    let domain = try domain(of: backend, for: group)
    for member in group.members { iommu!.attach(member.address, to: domain) }
    backend.groups.append(group)
  }

  /// The devices leave first, then, with the last group, all mappings: no command for any of them.
  func detach(_ group: GroupState, from backend: Type1Backend) {
    backend.groups.removeAll { $0 === group }
    guard !backend.domains.isEmpty else { return }
    for member in group.members { iommu!.block(member.address) }
    guard backend.groups.isEmpty else { return }
    for area in backend.entries.removeAll().reversed() { remove(area, from: backend) }
    for domain in backend.domains.values { iommu!.destroy(domain) }
    backend.domains = [:]
  }

  /// The domain for a group, with all that is mapped. A domain of an SMMU is for that one alone.
  private func domain(of backend: Type1Backend, for group: GroupState) throws(Errno) -> SimulatedIOMMU.DomainID {
    let unit = machine.iommu == .smmuv3 ? group.members.first?.unit ?? 0 : 0
    if let domain = backend.domains[unit] { return domain }
    let domain = try iommu!.makeKernelDomain(unit: unit)
    backend.domains[unit] = domain
    for area in backend.entries.areas {
      enter(area.value, Span64(start: area.start, last: area.last), in: domain)
    }
    return domain
  }

  private func enter(_ entry: Type1Backend.Entry, _ span: Span64, in domain: SimulatedIOMMU.DomainID) {
    iommu!.map(
      domain, span, to: entry.memory.address, entry.permissions, pageByteCount: entry.memory.pageByteCount)
  }

  func vfioContainerInfo(_ descriptor: Int32) throws(Errno) -> VFIOContainerInfo {
    let backend = try backend(descriptor)
    return VFIOContainerInfo(
      pageSizes: type1PageSizes, ranges: usableSpans(backend).map(\.range),
      availableEntries: backend.available)
  }

  /// All sizes from the smallest on: type1 reports what it can split.
  private var type1PageSizes: UInt64 { machine.pageSizes & ~4095 | (granule < 4096 ? 4096 : 0) }

  private func usableSpans(_ backend: Type1Backend) -> [Span64] {
    let reserved = backend.groups.flatMap(\.members).flatMap { reservedRegions(of: $0) }
    // The software window is excluded as well: mappings there would hide the doorbell.
    return Span64.complement(of: reserved.map(\.span), in: Span64(start: 0, last: iommu!.apertureLast))
  }

  func vfioMap(
    _ descriptor: Int32, flags: UInt32, address: UInt64, iova: UInt64, byteCount: UInt64
  ) throws(Errno) {
    let backend = try backend(descriptor)
    guard flags & ~7 == 0, byteCount > 0 else { throw .invalidArgument }
    let (last, overflow) = iova.addingReportingOverflow(byteCount - 1)
    guard !overflow, !address.addingReportingOverflow(byteCount - 1).overflow else { throw .overflow }
    // 4 is UPDATE_VADDR, which takes an entry that was invalidated before; there is none.
    guard (flags & 3 != 0) != (flags & 4 != 0) else { throw .invalidArgument }
    guard (byteCount | iova | address) & (type1Granule - 1) == 0 else { throw .invalidArgument }
    let existing = backend.entries.first(in: iova, through: last)
    guard flags & 4 == 0 else { throw existing == nil ? .noEntry : .invalidArgument }
    guard existing == nil else { throw .exists }
    guard backend.available > 0 else { throw .noSpace }
    let span = Span64(start: iova, last: last)
    guard usableSpans(backend).contains(where: { $0.contains(span) }) else { throw .invalidArgument }
    try lock(span, address: address, flags: flags, in: backend)
  }

  private var type1Granule: UInt64 { max(granule, 4096) }

  private func lock(_ span: Span64, address: UInt64, flags: UInt32, in backend: Type1Backend) throws(Errno) {
    let memory = PinnedMemory(address: address, byteCount: span.last - span.start + 1)
    if memoryLock.exceeds(memory.pageCount, on: .process) {
      log.add("vfio_pin_pages_remote: RLIMIT_MEMLOCK (\(memoryLock.limit)) exceeded", at: clock.now)
    } else {
      try memory.faultIn(forWriting: flags & 2 != 0)
    }
    try memoryLock.lockForProcess(memory.pageCount)
    self.memory.pin(memory)
    var permissions: SimulatedIOMMU.Permissions = []
    if flags & 1 != 0 { permissions.insert(.read) }
    if flags & 2 != 0 { permissions.insert(.write) }
    let entry = Type1Backend.Entry(memory: memory, permissions: permissions)
    for domain in backend.domains.values { enter(entry, span, in: domain) }
    backend.entries.insert(span.start, through: span.last, entry)
    backend.available -= 1
    areaCount += 1
  }

  /// Unmaps every entry inside a range and says how many bytes that was, 0 when there was none. Version 2 refuses a
  /// range that cuts an entry; version 1 unmaps all of an entry whose beginning the range holds.
  func vfioUnmap(_ descriptor: Int32, flags: UInt32, iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64 {
    let backend = try backend(descriptor)
    // 1 is GET_DIRTY_BITMAP without tracking, 4 UPDATE_VADDR: neither is simulated.
    guard flags & ~2 == 0, iova & (type1Granule - 1) == 0 else { throw .invalidArgument }
    var last = UInt64.max
    if flags & 2 != 0 {
      guard iova == 0, byteCount == 0 else { throw .invalidArgument }
    } else {
      guard byteCount > 0, byteCount & (type1Granule - 1) == 0 else { throw .invalidArgument }
      let (sum, overflow) = iova.addingReportingOverflow(byteCount - 1)
      guard !overflow else { throw .overflow }
      last = sum
    }
    if backend.isVersion2 && flags & 2 == 0 { try checkEnds(iova, last, of: backend) }
    if !backend.isVersion2, let area = backend.entries.area(at: iova), area.start < iova { return 0 }
    let areas = backend.entries.removeAll(from: iova, through: last)
    // Backwards, as the IOMMU's own table is an array too.
    for area in areas.reversed() { remove(area, from: backend) }
    return areas.reduce(0) { $0 &+ $1.byteCount }
  }

  private func checkEnds(_ iova: UInt64, _ last: UInt64, of backend: Type1Backend) throws(Errno) {
    if let area = backend.entries.area(at: iova), area.start != iova { throw .invalidArgument }
    if let area = backend.entries.area(at: last), area.last != last { throw .invalidArgument }
  }

  private func remove(_ area: AreaMap<Type1Backend.Entry>.Area, from backend: Type1Backend) {
    for domain in backend.domains.values { iommu!.unmap(domain, startingAt: area.start, freesTables: false) }
    memoryLock.unlockForProcess(area.value.memory.pageCount)
    memory.unpin(area.value.memory)
    backend.available += 1
    areaCount -= 1
  }
}
