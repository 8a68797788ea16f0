import IOMMU

// iommufd's devices: who owns a group's DMA, binding, attaching. Rules of `drivers/iommu/iommufd/device.c`.

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
    if let vdevice = device.vdevice { destroy(vdevice, in: context) }
    context.objects[id] = nil
    disclaim(device.group!)
    release(context)
  }

  /// Attaches a device, or moves it: to a page table, or to an IOAS, which finds or makes one.
  func attach(_ device: DeviceState, to id: UInt32, in context: IOMMUFDContext) throws(Errno) -> UInt32 {
    guard let object = context.objects[id] else { throw .noEntry }
    switch object {
    case .device, .viommu, .vdevice, .eventQueue: throw .invalidArgument
    case .pageTable(let table):
      try move(device, to: table, in: context)
      return table.id
    case .ioas(let ioas):
      // A domain of an SMMU is for that one alone.
      let isUsable = { (table: HWPageTable) in
        table.isAutomatic && (self.machine.iommu != .smmuv3 || self.iommu!.unit(of: table.domain) == device.unit)
      }
      if let table = ioas.pageTables.first(where: isUsable) {
        try move(device, to: table, in: context)
        return table.id
      }
      let table = try makePageTable(for: ioas, unit: device.unit, isAutomatic: true, in: context)
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
    try checkAttach(group, to: table)
    if old?.ioas !== table.ioas || !isReplacement {
      try reserveRegions(of: newcomers, in: table.ioas)
    }
    for member in group.members { iommu!.attach(member.address, to: table.domain) }
    noteEvents(of: group, in: table)
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
      noteEvents(of: group, in: nil)
      group.pageTable = nil
    }
    table.ioas.release(reservedFor: device)
    table.users -= 1
    destroyIfUnused(table, in: context)
  }

  private func destroyIfUnused(_ table: HWPageTable, in context: IOMMUFDContext) {
    if table.isAutomatic && table.users == 0 { destroy(table, in: context) }
  }

  /// Lets go of an iommufd; the last reference frees all objects, each before what it stands on.
  func release(_ context: IOMMUFDContext) {
    context.references -= 1
    guard context.references == 0 else { return }
    let objects = context.objects.values
    for case .pageTable(let table) in objects where table.parent != nil { destroy(table, in: context) }
    for case .eventQueue(let queue) in objects { destroy(queue, in: context) }
    for case .viommu(let viommu) in objects { destroy(viommu, in: context) }
    for case .pageTable(let table) in objects where table.parent == nil { destroy(table, in: context) }
    for case .ioas(let ioas) in objects { destroy(ioas, in: context) }
  }
}
