import IOMMU

// Nested page tables on VT-d, which take no vIOMMU, and what a VT-d says. Rules of `drivers/iommu/iommufd/hw_pagetable.c`,
// `drivers/iommu/intel/nested.c` and `drivers/iommu/intel/dmar.c`.

extension KernelState {
  /// A page table whose stage 1 is the process's, straight over a nest parent.
  func makeVTdNested(
    over parent: HWPageTable, flags: UInt32, _ data: HWPTData?, in context: IOMMUFDContext
  ) throws(Errno) -> UInt32 {
    // Whether there is data is compared with its type before anything is looked up; a fault queue and PASIDs are the core's to allow.
    if let data, (data.type == 0) != data.bytes.isEmpty { throw .invalidArgument }
    guard let data, data.type != 0, flags & ~0xc == 0 else { throw .notSupported }
    guard parent.isNestParent else { throw .invalidArgument }
    guard flags & ~8 == 0, data.type == NestingTypes.vtdData else { throw .notSupported }
    let domain = try iommu!.makeDomain(over: parent.domain, try VTdStage1(data.bytes))
    let nested = HWPageTable(parent.ioas, domain, isAutomatic: false)
    nested.parent = parent
    parent.users += 1
    nested.id = context.add(.pageTable(nested))
    pageTableCount += 1
    return nested.id
  }

  /// Entries are done one after the other, each with a wait of its own; one that makes no sense stops them.
  func invalidateVTd(_ table: HWPageTable, type: UInt32, _ bytes: [UInt8], byteCount: Int) throws(Errno) -> Int {
    guard type == NestingTypes.vtdCommand else { throw .invalidArgument }
    invalidation = InvalidationProgress()
    defer { deliverEvents() }
    for start in stride(from: 0, to: bytes.count - byteCount + 1, by: byteCount) {
      let entry = bytes[start..<start + byteCount]
      guard byteCount >= 24 else { throw .invalidArgument }
      guard entry.dropFirst(24).allSatisfy({ $0 == 0 }) else { throw .tooBig }
      func word(_ offset: Int, _ length: Int = 8) -> UInt64 {
        (0..<length).reduce(0) { $0 | UInt64(entry[start + offset + $1]) << UInt64($1 * 8) }
      }
      let (address, pages, flags) = (word(0), word(8), word(16, 4))
      guard flags & ~1 == 0, word(20, 4) == 0 else { throw .notSupported }
      guard address & 4095 == 0, pages != .max || address == 0 else { throw .invalidArgument }
      // As the kernel computes it: all pages are all addresses but one page, and no page at all is nearly all.
      let last = address &+ pages << 12 &- 1
      iommu!.invalidateVTd(table.domain, VTdBlock(covering: address, last), leafOnly: flags & 1 == 1)
      invalidation.handled += 1
      invalidation.issued += 1
    }
    return invalidation.handled
  }

  /// A nest parent on VT-d takes no memory that may only be read (erratum 772415, which the driver assumes everywhere): EINVAL.
  func checkAccess(_ permissions: SimulatedIOMMU.Permissions, in table: HWPageTable) throws(Errno) {
    guard machine.effectiveVTdRegisters != nil, table.isNestParent, !permissions.contains(.write) else { return }
    log.add(
      "DMAR: Read-only mapping is disallowed on the domain which serves as the parent in a nested configuration, due to HW "
        + "errata (ERRATA_772415_SPR17)", at: clock.now)
    throw .invalidArgument
  }

  /// What the driver's interrupt thread does: reads the fault recording registers, and makes them free again.
  func deliverVTdFaults() {
    for unit in iommu!.vtds.indices where !iommu!.vtds[unit].misbehaviour.holdsEvents {
      let lines = FaultLines(machine: machine, unit: unit), now = clock.now
      let isOverflow = iommu!.vtds[unit].lostFaults > 0
      for record in iommu!.vtds[unit].faults {
        let device = devices.keys.first { UInt32($0.requesterID) == record.source }
        for line in lines.lines(record, device: device?.description ?? "?", isOverflow: isOverflow) {
          log.add(line, at: now)
        }
      }
      if isOverflow, iommu!.vtds[unit].faults.isEmpty { log.add("DMAR: DRHD: handling fault status reg 1", at: now) }
      (iommu!.vtds[unit].faults, iommu!.vtds[unit].lostFaults) = ([], 0)
    }
  }
}
