import AddressSpace
import IOMMU

// iommufd: objects, page tables and devices. Numbers and rules of `drivers/iommu/iommufd`.

extension KernelState {
  func iommufdContext(_ descriptor: Int32) throws(Errno) -> IOMMUFDContext {
    guard let file = descriptors.files[descriptor] else { throw .badDescriptor }
    guard case .iommufd(let context) = file else { throw .notTypewriter }
    return context
  }

  func ioas(_ descriptor: Int32, _ id: UInt32) throws(Errno) -> IOAS {
    guard case .ioas(let ioas)? = try iommufdContext(descriptor).objects[id] else { throw .noEntry }
    return ioas
  }

  func ioasAllocate(_ descriptor: Int32) throws(Errno) -> UInt32 {
    let context = try iommufdContext(descriptor)
    let ioas = IOAS()
    ioas.id = context.add(.ioas(ioas))
    ioasCount += 1
    return ioas.id
  }

  func iommufdDestroy(_ descriptor: Int32, _ id: UInt32) throws(Errno) {
    let context = try iommufdContext(descriptor)
    switch context.objects[id] {
    case nil: throw .noEntry
    case .device: throw .busy
    case .ioas(let ioas):
      guard ioas.pageTables.isEmpty else { throw .busy }
      destroy(ioas, in: context)
    case .pageTable(let table):
      guard table.users == 0 else { throw .busy }
      destroy(table, in: context)
    }
  }

  func destroy(_ ioas: IOAS, in context: IOMMUFDContext) {
    for area in ioas.areas.removeAll() { drop(area.value) }
    context.objects[ioas.id] = nil
    ioasCount -= 1
  }

  /// Frees a page table that no device is in: its areas stay in the IOAS, unpinned when it was the last one.
  func destroy(_ table: HWPageTable, in context: IOMMUFDContext) {
    let ioas = table.ioas
    ioas.pageTables.removeAll { $0 === table }
    for area in ioas.areas.areas {
      iommu!.unmap(table.domain, startingAt: area.start, freesTables: true)
      if ioas.pageTables.isEmpty { unpin(area.value) }
    }
    ioas.release(reservedFor: table)
    if ioas.pageTables.isEmpty { ioas.alignment = 1 }
    iommu!.destroy(table.domain)
    context.objects[table.id] = nil
    pageTableCount -= 1
  }

  /// A page table for a device, with all that the IOAS maps; nothing is left behind when it fails.
  func makePageTable(for ioas: IOAS, isAutomatic: Bool, in context: IOMMUFDContext) throws(Errno)
    -> HWPageTable
  {
    guard granule <= 4096 else { throw .invalidArgument }
    let table = HWPageTable(ioas, iommu!.makeDomain(), isAutomatic: isAutomatic)
    do throws(Errno) {
      for area in ioas.areas.areas
      where (area.start | area.byteCount | UInt64(area.value.memory.address)) & (granule - 1) != 0 {
        throw .addressInUse
      }
      if iommu!.apertureLast < .max {
        try ioas.reserve(Span64(start: iommu!.apertureLast + 1, last: .max), for: table)
      }
      try fill(table)
    } catch {
      ioas.release(reservedFor: table)
      iommu!.destroy(table.domain)
      throw error
    }
    ioas.alignment = max(ioas.alignment, granule)
    ioas.pageTables.append(table)
    table.id = context.add(.pageTable(table))
    pageTableCount += 1
    return table
  }

  private func fill(_ table: HWPageTable) throws(Errno) {
    let ioas = table.ioas
    var done = 0
    do throws(Errno) {
      for area in ioas.areas.areas {
        try pin(area.value)
        done += 1
        enter(area.value, Span64(start: area.start, last: area.last), in: table)
      }
    } catch {
      for area in ioas.areas.areas.prefix(done) {
        iommu!.unmap(table.domain, startingAt: area.start, freesTables: false)
        if ioas.pageTables.isEmpty { unpin(area.value) }
      }
      throw error
    }
  }

  func enter(_ area: IOAS.Area, _ span: Span64, in table: HWPageTable) {
    iommu!.map(
      table.domain, span, to: area.memory.address, area.permissions, pageByteCount: area.memory.pageByteCount)
  }

  func hwptAllocate(
    _ descriptor: Int32, flags: UInt32, device: UInt32, pageTable: UInt32
  ) throws(Errno) -> UInt32 {
    let context = try iommufdContext(descriptor)
    // 4 is FAULT_ID_VALID, which is only looked at with a fault id; 8 is PASID.
    guard flags & ~0xf == 0 else { throw .notSupported }
    guard case .device? = context.objects[device] else { throw .noEntry }
    guard let object = context.objects[pageTable] else { throw .invalidArgument }
    guard case .ioas(let ioas) = object else { throw .invalidArgument }
    // Nesting, dirty tracking, faults and PASIDs are not simulated: as on hardware that has none.
    guard flags == 0 else { throw .notSupported }
    return try makePageTable(for: ioas, isAutomatic: false, in: context).id
  }

  func hardwareInfo(_ descriptor: Int32, device: UInt32) throws(Errno) -> HardwareInfo {
    let context = try iommufdContext(descriptor)
    guard case .device? = context.objects[device], let kind = machine.iommu else { throw .noEntry }
    return HardwareRegisters(machine, kind).hardwareInfo
  }
}

// MARK: - Devices

extension KernelState {
  func claim(_ group: GroupState, for owner: DMAOwner) throws(Errno) {
    guard group.hostDriven.isEmpty else { throw .notPermitted }
    if group.ownerCount > 0 {
      guard case .iommufd = owner, group.owner == owner else { throw .notPermitted }
    } else if group.members.contains(where: { !$0.spec.directRegions.isEmpty }) {
      // The claim blocks the group's DMA, which firmware forbade.
      throw .invalidArgument
    }
    group.owner = owner
    group.ownerCount += 1
  }

  func disclaim(_ group: GroupState) {
    group.ownerCount -= 1
    if group.ownerCount == 0 { group.owner = nil }
  }

  /// The part of VFIO_DEVICE_BIND_IOMMUFD that is iommufd's.
  func bind(_ device: DeviceState, to context: IOMMUFDContext) throws(Errno) -> UInt32 {
    guard let group = device.group else { throw .noDevice }
    guard device.spec.isCoherent else { throw .invalidArgument }
    guard machine.isolatesInterrupts || machine.allowsUnsafeInterrupts else { throw .notPermitted }
    try claim(group, for: .iommufd(ObjectIdentifier(context)))
    context.references += 1
    return context.add(.device(device))
  }

  func unbind(_ device: DeviceState, id: UInt32, from context: IOMMUFDContext) {
    detach(device, in: context)
    context.objects[id] = nil
    disclaim(device.group!)
    release(context)
  }

  /// Attaches a device, or moves it: to a page table, or to an IOAS, which finds or makes one.
  func attach(_ device: DeviceState, to id: UInt32, in context: IOMMUFDContext) throws(Errno) -> UInt32 {
    guard let object = context.objects[id] else { throw .noEntry }
    switch object {
    case .device: throw .invalidArgument
    case .pageTable(let table):
      try move(device, to: table, in: context)
      return table.id
    case .ioas(let ioas):
      if let table = ioas.pageTables.first(where: \.isAutomatic) {
        try move(device, to: table, in: context)
        return table.id
      }
      let table = try makePageTable(for: ioas, isAutomatic: true, in: context)
      do throws(Errno) {
        try move(device, to: table, in: context)
      } catch {
        destroy(table, in: context)
        throw error
      }
      return table.id
    }
  }

  /// The whole group moves. A first attach joins the page table that the group is in, and no other.
  private func move(_ device: DeviceState, to table: HWPageTable, in context: IOMMUFDContext) throws(Errno) {
    let group = device.group!
    let isReplacement = group.attached.contains { $0 === device }
    if let current = group.pageTable, current !== table, !isReplacement { throw .invalidArgument }
    let newcomers = isReplacement ? group.attached : [device]
    let old = group.pageTable
    if old?.ioas !== table.ioas || !isReplacement {
      try reserveRegions(of: newcomers, in: table.ioas)
    }
    for member in group.members { iommu!.attach(member.address, to: table.domain) }
    group.pageTable = table
    if isReplacement {
      if let old, old !== table {
        if old.ioas !== table.ioas { newcomers.forEach { old.ioas.release(reservedFor: $0) } }
        old.users -= newcomers.count
        table.users += newcomers.count
        destroyIfUnused(old, in: context)
      }
    } else {
      group.attached.append(device)
      table.users += 1
    }
  }

  private func reserveRegions(of devices: [DeviceState], in ioas: IOAS) throws(Errno) {
    do throws(Errno) {
      for device in devices {
        for region in reservedRegions(of: device) { try ioas.reserve(region.span, for: device) }
      }
    } catch {
      devices.forEach { ioas.release(reservedFor: $0) }
      throw error
    }
  }

  /// Leaves a device blocked when it was the last of its group; nothing happens when it is not attached.
  func detach(_ device: DeviceState, in context: IOMMUFDContext) {
    guard let group = device.group, let table = group.pageTable,
      let index = group.attached.firstIndex(where: { $0 === device })
    else { return }
    group.attached.remove(at: index)
    if group.attached.isEmpty {
      for member in group.members { iommu!.block(member.address) }
      group.pageTable = nil
    }
    table.ioas.release(reservedFor: device)
    table.users -= 1
    destroyIfUnused(table, in: context)
  }

  private func destroyIfUnused(_ table: HWPageTable, in context: IOMMUFDContext) {
    if table.isAutomatic && table.users == 0 { destroy(table, in: context) }
  }

  /// Lets go of an iommufd; the last reference frees all objects, page tables before what they stand on.
  func release(_ context: IOMMUFDContext) {
    context.references -= 1
    guard context.references == 0 else { return }
    let objects = context.objects.values
    for case .pageTable(let table) in objects { destroy(table, in: context) }
    for case .ioas(let ioas) in objects { destroy(ioas, in: context) }
  }
}
