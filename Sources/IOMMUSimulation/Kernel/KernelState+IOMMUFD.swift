import AddressSpace
import IOMMU

// iommufd's objects and page tables. Rules of `drivers/iommu/iommufd/{main,hw_pagetable}.c`.

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
    case .viommu(let viommu):
      guard viommu.users == 0 else { throw .busy }
      destroy(viommu, in: context)
    case .vdevice(let vdevice): destroy(vdevice, in: context)
    case .eventQueue(let queue):
      guard !queue.isOpen else { throw .busy }
      destroy(queue, in: context)
    }
  }

  func destroy(_ ioas: IOAS, in context: IOMMUFDContext) {
    for area in ioas.areas.removeAll() { drop(area.value) }
    context.objects[ioas.id] = nil
    ioasCount -= 1
  }

  /// Frees a page table that no device is in: its areas stay in the IOAS, unpinned when it was the last one.
  func destroy(_ table: HWPageTable, in context: IOMMUFDContext) {
    if let parent = table.parent { return destroy(nested: table, over: parent, in: context) }
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
  func makePageTable(
    for ioas: IOAS, unit: Int, isAutomatic: Bool, isNestParent: Bool = false, in context: IOMMUFDContext
  ) throws(Errno) -> HWPageTable {
    guard granule <= 4096 else { throw .invalidArgument }
    let domain = try iommu!.makeKernelDomain(unit: unit, isNestParent: isNestParent)
    let table = HWPageTable(ioas, domain, isAutomatic: isAutomatic)
    table.isNestParent = isNestParent
    // Stage 2 of an SMMU takes in as many bits as it puts out.
    let isStage2 = isNestParent && machine.hasVIOMMU
    let most = iommu!.apertureLast(of: domain),
      last = isStage2 ? min(most, 1 << UInt64(machine.smmu.outputBits) - 1) : most
    do throws(Errno) {
      for area in ioas.areas.areas { try checkAccess(area.value.permissions, in: table) }
      for area in ioas.areas.areas
      where (area.start | area.byteCount | UInt64(area.value.memory.address)) & (granule - 1) != 0 {
        throw .addressInUse
      }
      if last < .max { try ioas.reserve(Span64(start: last + 1, last: .max), for: table) }
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

  func hardwareInfo(_ descriptor: Int32, device: UInt32) throws(Errno) -> HardwareInfo {
    let context = try iommufdContext(descriptor)
    guard case .device? = context.objects[device], let kind = machine.iommu else { throw .noEntry }
    return HardwareRegisters(machine, kind).hardwareInfo
  }
}
