package import AddressSpace
import Synchronization

/// Page tables that this process owns, in the flat format of simulated machines, over a stage 2 that the kernel owns.
///
/// Stage 2 is an IOAS in which memory is registered (pinned) at IPAs of the library's choice; stage 1 leads from IOVAs to IPAs
/// and is one ``FlatTable`` for all physical IOMMUs, each with a nest parent and a nested HWPT of its own. Devices are
/// attached to the nested HWPT only, never to the parent or the IOAS.
package final class ProcessOwnedFlat: ProcessOwnedTranslation {
  package let interface = Interface.iommufd
  /// Registration knows files; what is mapped is registered memory.
  package let canMapFiles = false
  package var directCalls: DirectCalls? { nil }
  let descriptor: IOMMUFDDescriptor
  let table: FlatTable
  let stage2: Stage2
  let memory: RegisteredMemory
  /// The nested HWPTs.
  private let tags = HardwareTags()
  private let nested: NestedTables
  /// A range is one command.
  package let budget = InvalidationBudget(most: 1)
  private let counts = Counts()

  private struct Counts: ~Copyable {
    let systemCalls = Atomic<UInt64>(0), invalidations = Atomic<UInt64>(0), implicit = Atomic<UInt64>(0)
  }

  /// Opens `/dev/iommu`, or takes over `descriptor`, and makes an address space for stage 2 and an empty stage 1.
  package init(kernel: any Kernel, descriptor: Int32? = nil) throws(DMAError) {
    self.descriptor = try IOMMUFDDescriptor(kernel: kernel, descriptor: descriptor)
    do throws(RangeStoreFailure) {
      table = try FlatTable(granule: .fourKiB)
      stage2 = try Stage2(self.descriptor)
    } catch {
      kernel.close(self.descriptor.iommufd)
      throw DMAError(.outOfMemory, "open", detail: "\(error)")
    }
    memory = stage2.memory
    nested = NestedTables(self.descriptor, stage2, FlatFormat.data(table), tags)
  }

  deinit { close() }

  package func attach(_ target: AttachTarget) throws(DMAError) -> Attachment { try nested.join(target) }
  package func detach(_ attachment: Attachment) { nested.detach(attachment) }
  package func close() { nested.close() }

  var kernel: any Kernel { descriptor.kernel }

  package func pageSizes() throws(Errno) -> PageSizes {
    let ranges = try kernel.ioasRanges(descriptor.iommufd, ioas: descriptor.ioas)
    return PageSizes(rawValue: max(ranges.alignment, 4096))
  }

  /// The IOVA space. The flat format has as many input bits as the stage 2 below it, and what is reserved for a device is
  /// reserved at both stages: so IOVA_RANGES, which is about IPAs, tells of IOVAs too.
  package func usableRanges() throws(Errno) -> IOVARanges {
    IOVARanges(try kernel.ioasRanges(descriptor.iommufd, ioas: descriptor.ioas).ranges)
  }

  package var invalidations: UInt64 { counts.invalidations.load(ordering: .relaxed) }
  /// The kernel waits once for each call, and each call is one command here.
  package var syncs: UInt64 { invalidations }
  package var systemCalls: UInt64 { counts.systemCalls.load(ordering: .relaxed) }
  package var implicitRegistrations: UInt64 { counts.implicit.load(ordering: .relaxed) }
}

// MARK: - The data path

extension ProcessOwnedFlat {
  package func map(iova: UInt64, address: UInt64, byteCount: UInt64, access: DMAAccess) throws(Errno) {
    guard let ipa = memory.ipa(of: address, byteCount: byteCount) else {
      return try mapUnregistered(iova, address, byteCount, access)
    }
    guard table.insert(.init(iova: iova, byteCount: byteCount, ipa: ipa, access: access)) else { throw .exists }
  }

  package func map(iova: UInt64, file: Int32, start: UInt64, byteCount: UInt64, access: DMAAccess) throws(Errno) {
    throw .notTypewriter
  }

  /// Registers memory for the mapping's life, where that may be, with no more access than the mapping has.
  @inline(never)
  private func mapUnregistered(_ iova: UInt64, _ address: UInt64, _ byteCount: UInt64, _ access: DMAAccess)
    throws(Errno)
  {
    if memory.isRegistrationRequired { throw .notRegistered }
    counts.systemCalls.wrappingAdd(1, ordering: .relaxed)
    let ipa = try stage2.enter(address, byteCount, access)
    let entry = FlatTable.Entry(iova: iova, byteCount: byteCount, ipa: ipa, access: access, ownsMemory: true)
    guard table.insert(entry) else {
      stage2.leave(.init(iova: entry.range, ipa: ipa))
      throw .exists
    }
    counts.implicit.wrappingAdd(1, ordering: .relaxed)
  }

  package func clear(iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64 {
    guard let range = IOVARange(start: IOVA(iova), byteCount: byteCount) else { throw .overflow }
    var cleared: UInt64 = 0
    while let entry = try table.removeFirst(in: range) {
      cleared += entry.byteCount
      if entry.ownsMemory { memory.retire(.init(iova: entry.range, ipa: entry.ipa)) }
    }
    return cleared
  }

  package func unmap(iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64 {
    let cleared = try clear(iova: iova, byteCount: byteCount)
    if cleared > 0 {
      if budget.allows(byteCount) { try invalidate(iova: iova, byteCount: byteCount) } else { try invalidateAll() }
    }
    return cleared
  }

  package func invalidate(iova: UInt64, byteCount: UInt64) throws(Errno) {
    guard let range = IOVARange(start: IOVA(iova), byteCount: byteCount) else { throw .overflow }
    let first = iova >> 12, last = range.last.rawValue >> 12
    try invalidate(.init(address: first << 12, pageCount: last - first + 1), range)
  }

  package func invalidateAll() throws(Errno) { try invalidate(.everything, nil) }

  private func invalidate(_ command: FlatFormat.Command, _ range: IOVARange?) throws(Errno) {
    let calls = try stage2.settle(range) { () throws(Errno) in try send(command) }
    counts.systemCalls.wrappingAdd(calls, ordering: .relaxed)
  }

  /// One command for each physical IOMMU, each by a call that waits for it.
  private func send(_ command: FlatFormat.Command) throws(Errno) {
    try tags.forEach { id throws(Errno) in
      counts.systemCalls.wrappingAdd(1, ordering: .relaxed)
      let done = try unsafe withUnsafeBytes(of: command) { bytes throws(Errno) in
        try unsafe kernel.hwptInvalidate(
          descriptor.iommufd, pageTable: id, type: FlatFormat.dataType, entries: bytes, byteCount: bytes.count)
      }
      if done != 1 { throw .inputOutput }
      counts.invalidations.wrappingAdd(1, ordering: .relaxed)
    }
  }
}

extension FlatTable.Entry {
  var range: IOVARange { IOVARange(start: IOVA(iova), byteCount: byteCount)! }
}

// MARK: - Registration

extension ProcessOwnedFlat {
  package var requiresRegistration: Bool {
    get { memory.isRegistrationRequired }
    set { memory.isRegistrationRequired = newValue }
  }

  package func register(
    address: UInt64, byteCount: UInt64, file: Int32?, areaByteCount: UInt64
  ) throws(Errno) -> (areas: Int, fileAreas: Int) {
    try stage2.register(address: address, byteCount: byteCount, file: file, areaByteCount: areaByteCount)
  }

  package func hide(address: UInt64) { memory.hide(address) }

  package func unregister(address: UInt64) throws(Errno) { try stage2.unregister(address: address) }

  package func giveUp(address: UInt64) { stage2.giveUp(address: address) }
}
