package import AddressSpace
import PageTables
import Synchronization

/// Page tables that this process owns on a VT-d: the first stage in its memory, over a second stage that the kernel owns.
///
/// One first stage for all physical IOMMUs, each with a nest parent and a nested HWPT of its own (``NestedTables``); invalidations go
/// to each. There is no vIOMMU: devices are known by the table that they are attached to, and what they do wrong is in
/// the kernel's log. Stage 2 is read-write throughout, as the kernel demands (erratum 772415), so that stage 1 alone keeps a device
/// from writing. Accessed and dirty flags are set beforehand: hardware never writes to a table. The sources are
/// `drivers/iommu/intel/nested.c` and chapters 3.6, 3.8 and 6.5 of D51397.
///
/// Not yet run on hardware: no emulator has `ECAP.NEST`, so that it is taken only when asked for.
package final class ProcessOwnedVTd: HardwareTables {
  package let interface = Interface.iommufd
  /// Registration knows files; what is mapped is registered memory.
  package let canMapFiles = false
  package var directCalls: DirectCalls? { nil }
  package let takesWritableMemoryOnly = true
  let descriptor: IOMMUFDDescriptor
  let identity: VTdIdentity
  /// That of ``stage1``, a step nearer.
  let memory: RegisteredMemory
  let stage1: OwnedStage1<FirstStageTable>
  /// To the nested page tables.
  let channel: CommandChannel
  private let nested: NestedTables
  /// The device that the translation was made with, until ``attach(_:)`` asks for it.
  private let first = Mutex<Attachment?>(nil)

  /// How many levels the tables have: 47 bits of addresses, as the upper half would have to be sign-extended.
  private static let levels: UInt8 = 4
  /// What devices write to interrupt, which is not translated. sysfs says so as well.
  static let interrupts = IOVARange(start: IOVA(0xfee0_0000), byteCount: 0x10_0000)!

  /// Over memory for tables with room for the first ones. Nothing is attached yet.
  private init(
    _ descriptor: IOMMUFDDescriptor, _ identity: VTdIdentity, _ stage2: Stage2, _ tables: PinnedTables
  ) {
    (self.descriptor, self.identity, memory) = (descriptor, identity, stage2.memory)
    let table = FirstStageTable(pool: tables.pool, levels: Self.levels, hasGiBLeaves: identity.hasGiBLeaves)!
    let data = Self.data(root: table.root)
    channel = CommandChannel(
      descriptor,
      .init(type: NestingTypes.vtdCommand, byteCount: MemoryLayout<VTdCommand>.size, waitsForEach: true),
      most: VTdPlan.capacity)
    nested = NestedTables(descriptor, stage2, data, channel.tags)
    stage1 = OwnedStage1(stage2, tables, table, channel)
  }

  /// `struct iommu_hwpt_vtd_s1`: no flags, so that requests have the user's privilege; the root's IPA; 48 bits, which is four levels.
  private static func data(root: UInt64) -> HWPTData {
    let bytes = [0, root, 48].flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } }
    return HWPTData(type: NestingTypes.vtdData, bytes: bytes)
  }

  deinit {
    // A fork does not have the tables.
    guard ProcessGuard.isOwner else { return stage1.tables.pool.abandon() }
    close()
    stage1.giveBackDeferred()
  }

  package var budget: InvalidationBudget { channel.budget }

  package var reusesTablesEarly: Bool {
    get { stage1.reusesTablesEarly }
    set { stage1.reusesTablesEarly = newValue }
  }

  var kernel: any Kernel { descriptor.kernel }

  /// The granule: no smaller than a page of either stage.
  package func pageSizes() throws(Errno) -> PageSizes {
    PageSizes(rawValue: max(try kernel.ioasRanges(descriptor.iommufd, ioas: descriptor.ioas).alignment, 4096))
  }

  /// The IOVA space: the lower half of what stage 1 translates. Nobody looks after it but this library.
  package func usableRanges() throws(Errno) -> IOVARanges {
    let all = IOVARange(start: IOVA(0), last: IOVA(stage1.table.last))!
    return IOVARanges([all]).subtracting(IOVARanges([Self.interrupts]))
  }

  package var invalidations: UInt64 { channel.counts.commands.load(ordering: .relaxed) }
  package var syncs: UInt64 { channel.counts.syncs.load(ordering: .relaxed) }
  package var systemCalls: UInt64 { channel.counts.systemCalls.load(ordering: .relaxed) }
  package var implicitRegistrations: UInt64 { channel.counts.implicit.load(ordering: .relaxed) }
  package var tableBytes: UInt64 { nested.isClosed ? 0 : UInt64(stage1.tables.readyByteCount) }
  package var reclaim: TableReclaim? { stage1.reclaim }
  package var gatheredRanges: UInt64 { channel.counts.ranges.load(ordering: .relaxed) }
}

// MARK: - Set-up

extension ProcessOwnedVTd {
  /// Makes the translation with a device that is bound, which is attached to it then and which ``attach(_:)`` will return.
  ///
  /// When this throws nothing is left but the address space and the binding: the kernel may own the tables there.
  static func make(_ descriptor: IOMMUFDDescriptor, _ target: AttachTarget) throws(NestingRefusal) -> ProcessOwnedVTd {
    let device = target.bound!
    let identity = try identity(descriptor, device.id)
    if let reason = identity.refusal { throw NestingRefusal(reason) }
    let stage2: Stage2
    do throws(RangeStoreFailure) { stage2 = try Stage2(descriptor) } catch { throw NestingRefusal("open", .noMemory) }
    let unsupported =
      "The kernel nests on no VT-d in legacy mode (intel_iommu=sm_on); IOMMU_HWPT_ALLOC answers EOPNOTSUPP"
    return try descriptor.withNestParent(device.id, unsupported: unsupported) { parent throws(NestingRefusal) in
      let (tables, _) = try PinnedTables.make(descriptor, stage2) { $0 <= 4096 ? .fourKiB : nil }
      let translation = ProcessOwnedVTd(descriptor, identity, stage2, tables)
      do throws(NestingRefusal) { try translation.begin(with: device, target, parent: parent) } catch {
        translation.nested.abandon(translation.first.withLock { $0 })
        throw error
      }
      return translation
    }
  }

  private static func identity(
    _ descriptor: IOMMUFDDescriptor, _ device: UInt32
  ) throws(NestingRefusal) -> VTdIdentity {
    let info: HardwareInfo
    do throws(Errno) { info = try descriptor.kernel.hardwareInfo(descriptor.iommufd, device: device) } catch {
      throw NestingRefusal("IOMMU_GET_HW_INFO", error)
    }
    guard let identity = VTdIdentity(info) else { throw NestingRefusal("The IOMMU is not a VT-d") }
    return identity
  }

  /// The first table, the device; and whether the kernel takes the commands, which are timed for later ones.
  private func begin(with device: BoundDevice, _ target: AttachTarget, parent: UInt32) throws(NestingRefusal) {
    let attachment = try nested.begin(with: device, target, parent: parent)
    first.withLock { $0 = attachment }
    do throws(Errno) {
      try channel.calibrate(several: 2) { count throws(Errno) in
        var plan = VTdPlan(largestOrder: identity.largestOrder)
        plan.repeatPage(0, count: count)
        try send(plan)
      }
      try invalidateAll()
    } catch { throw NestingRefusal("IOMMU_HWPT_INVALIDATE", error) }
    channel.counts.reset()
  }

  package func attach(_ target: AttachTarget) throws(DMAError) -> Attachment {
    let known = first.withLock { first -> Attachment? in
      guard let known = first, target.bound?.id == known.deviceID else { return nil }
      first = nil
      return known
    }
    if let known { return known }
    return try nested.join(target) { id throws(DMAError) in
      do throws(NestingRefusal) {
        if let reason = try Self.identity(descriptor, id).refusal(joining: identity) { throw NestingRefusal(reason) }
      } catch { throw error.joining(target, kernel) }
    }
  }

  package func detach(_ attachment: Attachment) { nested.detach(attachment) }
  package func close() { nested.close() }
}

// MARK: - The data path

extension ProcessOwnedVTd {
  package func map(iova: UInt64, address: UInt64, byteCount: UInt64, access: DMAAccess) throws(Errno) {
    guard let ipa = memory.ipa(of: address, byteCount: byteCount) else {
      return try mapUnregistered(iova, address, byteCount, access)
    }
    let attributes = LeafAttributes(access)
    let outcome = stage1.table.map(iova: iova, to: ipa, byteCount: byteCount, attributes: attributes)
    if case .mapped = outcome { return }
    try mapAgain(iova, ipa, byteCount, attributes, after: outcome)
  }

  @inline(never)
  private func mapAgain(
    _ iova: UInt64, _ ipa: UInt64, _ byteCount: UInt64, _ attributes: LeafAttributes, after outcome: MapOutcome
  ) throws(Errno) {
    try stage1.mapAgain(iova, ipa, byteCount, attributes, after: outcome, for: self)
  }

  @inline(never)
  private func mapUnregistered(
    _ iova: UInt64, _ address: UInt64, _ byteCount: UInt64, _ access: DMAAccess
  ) throws(Errno) {
    try stage1.mapUnregistered(iova, address, byteCount, access, registered: .readWrite, for: self)
  }

  package func map(iova: UInt64, file: Int32, start: UInt64, byteCount: UInt64, access: DMAAccess) throws(Errno) {
    throw .notTypewriter
  }

  package var shortWay: ShortWay { ShortWay(known: memory.known, pages: stage1.table.writer) }

  package func mapHere(iova: UInt64, address: UInt64, byteCount: UInt64, access: DMAAccess) -> Bool {
    guard let ipa = memory.known.ipa(of: address, byteCount: byteCount) else { return false }
    return stage1.table.mapPages(iova: iova, to: ipa, byteCount: byteCount, attributes: LeafAttributes(access))
  }

  package func clearHere(iova: UInt64, byteCount: UInt64) -> UInt64? {
    stage1.table.clear(iova: iova, byteCount: byteCount)
  }

  /// Ranges are not tracked: whoever puts an invalidation off makes one of everything.
  package func clear(iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64 {
    var gather = Gather(tracksRanges: false)
    let cleared = try stage1.clear(iova, byteCount, &gather)
    if !gather.isLeafOnly { stage1.keepForLater(gather.takeTables()) }
    return cleared
  }

  package func unmap(iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64 {
    var gather = Gather(tracksRanges: true)
    let cleared = try stage1.clear(iova, byteCount, &gather)
    guard cleared > 0 || !gather.isLeafOnly else { return cleared }
    var plan = VTdPlan(largestOrder: identity.largestOrder)
    plan.make(for: gather, budget: budget.allows(byteCount) ? channel.commandLimit : 0)
    try stage1.finish(&gather, IOVARange(start: IOVA(iova), byteCount: byteCount)!) { () throws(Errno) in try send(plan)
    }
    return cleared
  }

  package func invalidate(iova: UInt64, byteCount: UInt64) throws(Errno) {
    guard let range = IOVARange(start: IOVA(iova), byteCount: byteCount) else { throw .overflow }
    var plan = VTdPlan(largestOrder: identity.largestOrder)
    let first = iova & ~0xfff
    plan.make(forAnythingIn: first, (range.last.rawValue - first) | 0xfff &+ 1, budget: channel.commandLimit)
    try stage1.settle(range) { () throws(Errno) in try send(plan) }
  }

  package func invalidateAll() throws(Errno) {
    var plan = VTdPlan(largestOrder: identity.largestOrder)
    plan.makeEverything()
    try stage1.finishAll { () throws(Errno) in try send(plan) }
  }

  /// Sends a plan to each nested page table, each by a call that waits for it. On return it is done everywhere.
  ///
  /// Every command is looked at before: of one that is no aligned block the kernel would make another range. One command for
  /// everything goes in the place of such a plan.
  package func send(_ plan: borrowing VTdPlan) throws(Errno) {
    let everything = VTdCommand.everything, isValid = plan.isValid
    try unsafe plan.withBytes { commands throws(Errno) in
      try unsafe withUnsafeBytes(of: everything) { everything throws(Errno) in
        try unsafe channel.send(isValid ? commands : everything, orElse: everything)
      }
    }
  }

  package var requiresRegistration: Bool {
    get { memory.isRegistrationRequired }
    set { memory.isRegistrationRequired = newValue }
  }

  package func register(
    address: UInt64, byteCount: UInt64, file: Int32?, areaByteCount: UInt64
  ) throws(Errno) -> (areas: Int, fileAreas: Int) {
    try stage1.stage2.register(address: address, byteCount: byteCount, file: file, areaByteCount: areaByteCount)
  }

  package func hide(address: UInt64) { memory.hide(address) }

  package func unregister(address: UInt64) throws(Errno) { try stage1.stage2.unregister(address: address) }

  package func giveUp(address: UInt64) { stage1.stage2.giveUp(address: address) }
}
