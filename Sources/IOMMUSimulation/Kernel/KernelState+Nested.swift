import IOMMU

// iommufd's nested page tables and their invalidation. Rules of `drivers/iommu/iommufd/hw_pagetable.c`, and of
// `drivers/iommu/intel/nested.c` for the commands, whose form the flat format has.

extension KernelState {
  func hwptAllocate(
    _ descriptor: Int32, flags: UInt32, device: UInt32, pageTable: UInt32, data: HWPTData?
  ) throws(Errno) -> UInt32 {
    let context = try iommufdContext(descriptor)
    // 4 is FAULT_ID_VALID, which is only looked at with a fault id; 8 is PASID.
    guard flags & ~0xf == 0 else { throw .notSupported }
    guard case .device(let device)? = context.objects[device] else { throw .noEntry }
    switch context.objects[pageTable] {
    case .ioas(let ioas)?:
      guard data == nil else { throw .notSupported }
      // Dirty tracking, faults and PASIDs are not simulated, and nesting not everywhere: as on hardware that has none.
      let canNest = machine.nests || machine.hasSMMUStages || machine.effectiveVTdRegisters?.nests == true
      guard flags == 0 || (flags == HWPTFlags.nestParent && canNest) else { throw .notSupported }
      let isNestParent = flags == HWPTFlags.nestParent
      return try makePageTable(
        for: ioas, unit: device.unit, isAutomatic: false, isNestParent: isNestParent, in: context
      ).id
    case .pageTable(let parent)? where machine.effectiveVTdRegisters != nil:
      return try makeVTdNested(over: parent, flags: flags, data, in: context)
    case .pageTable(let parent)?:
      guard let data, flags == 0 else { throw .notSupported }
      guard parent.isNestParent else { throw .invalidArgument }
      guard data.type == FlatFormat.dataType, machine.nests else { throw .notSupported }
      return try makeNested(over: parent, try FlatFormat.table(data.bytes), in: context)
    case .viommu(let viommu)?:
      guard let data, !data.bytes.isEmpty else { throw .notSupported }
      return try makeNested(over: viommu, for: device, flags: flags, data, in: context)
    case .device?, .vdevice?, .eventQueue?, nil: throw .invalidArgument
    }
  }

  private func makeNested(over parent: HWPageTable, _ table: FlatTable, in context: IOMMUFDContext) throws(Errno)
    -> UInt32
  {
    let domain = try iommu!.makeDomain(over: parent.domain, table)
    let nested = HWPageTable(parent.ioas, domain, isAutomatic: false)
    nested.parent = parent
    parent.users += 1
    nested.id = context.add(.pageTable(nested))
    pageTableCount += 1
    return nested.id
  }

  /// Frees a nested table: its parent keeps stage 2.
  func destroy(nested: HWPageTable, over parent: HWPageTable, in context: IOMMUFDContext) {
    iommu!.destroy(nested.domain)
    if let viommu = nested.viommu { viommu.users -= 1 } else { parent.users -= 1 }
    context.objects[nested.id] = nil
    pageTableCount -= 1
  }

  /// Commands are done one after the other; one that makes no sense stops them.
  func hwptInvalidate(
    _ descriptor: Int32, _ id: UInt32, type: UInt32, _ commands: [FlatFormat.Command]
  ) throws(Errno) -> Int {
    let context = try iommufdContext(descriptor)
    guard let object = context.objects[id] else { throw .noEntry }
    guard case .pageTable(let table) = object, table.parent != nil, table.viommu == nil else { throw .invalidArgument }
    guard type == FlatFormat.dataType else { throw .invalidArgument }
    defer { if !commands.isEmpty { iommu!.countSync() } }
    for command in commands {
      guard command.flags & ~1 == 0, command.reserved == 0 else { throw .notSupported }
      guard command.address & 4095 == 0, command.pageCount > 0 else { throw .invalidArgument }
      let pagesLeft = (1 << 52) - command.address >> 12
      guard command == .everything || command.pageCount <= pagesLeft else { throw .invalidArgument }
      iommu!.invalidate(table.domain, command)
    }
    return commands.count
  }
}
