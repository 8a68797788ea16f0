package import AddressSpace
package import PageTables
import Synchronization

/// Page tables that this process owns on an SMMUv3: stage 1 in its memory, over a stage 2 that the kernel owns.
///
/// One stage 1 for all physical SMMUs, each with a nest parent, a vIOMMU and a nested HWPT of its own, and a VMID of its own
/// therefore; invalidations go to each. Devices are attached to nested HWPTs only, never to a parent or the IOAS. The sources
/// are `drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-iommufd.c` and Arm IHI 0070.
package final class ProcessOwnedSMMU: HardwareTables {
  package let interface = Interface.iommufd
  /// Registration knows files; what is mapped is registered memory.
  package let canMapFiles = false
  package var directCalls: DirectCalls? { nil }
  let descriptor: IOMMUFDDescriptor
  let identity: SMMUIdentity
  /// That of ``stage1``, a step nearer.
  let memory: RegisteredMemory
  let stage1: OwnedStage1<SMMUTable>
  /// To the vIOMMUs.
  let channel: CommandChannel
  /// Where the context descriptor is.
  private let contextTable: Table
  package let shape: SMMUPlan.Shape
  let state: Mutex<State>
  /// Held while event queues are read.
  let reading = Mutex<Void>(())

  struct State {
    var slices: [SMMUSlice] = []
    /// The device that the translation was made with, until ``attach(_:)`` asks for it.
    var first: Attachment?
    /// Faults that nobody has asked for yet, by device.
    var faults: [PCIAddress: UnreadFaults] = [:]
    /// The number that the next event of a vIOMMU's queue should have.
    var nextEvent: [UInt32: UInt32] = [:]
    var isClosed = false

    /// Drops the faults of devices that are not there any more: who is opened at such an address later is another.
    mutating func forgetFaults() {
      let members = slices.flatMap(\.members)
      faults = faults.filter { fault in members.contains { $0.address == fault.key } }
    }
  }

  /// How many bits of an IOVA are translated: four tables with a granule of 4 KiB.
  private static let inputBits: UInt8 = 48
  /// The only address space there is in a VMID; of the 8 bits that every SMMU has, with IDR0.ASID16 or without.
  static let asid: UInt16 = 1
  /// Where devices write their interrupts: the kernel's window of doorbells, which stage 1 maps one to one. The source is
  /// `MSI_IOVA_BASE` of `arm-smmu-v3.h`.
  static let doorbells = IOVARange(start: IOVA(0x800_0000), byteCount: 0x10_0000)!

  /// Over memory for tables with room for the first ones. Nothing is attached yet.
  init(
    _ descriptor: IOMMUFDDescriptor, _ identity: SMMUIdentity, _ stage2: Stage2, _ tables: PinnedTables,
    outputBits: UInt8
  ) {
    (self.descriptor, self.identity, memory) = (descriptor, identity, stage2.memory)
    channel = CommandChannel(
      descriptor,
      .init(type: NestingTypes.smmuCommand, byteCount: MemoryLayout<SMMUCommand>.size, waitsForEach: false),
      most: SMMUPlan.roundLength)
    shape = SMMUPlan.Shape(asid: Self.asid, granule: tables.pool.granule.shift, hasRanges: identity.hasRanges)
    let table = SMMUTable(pool: tables.pool, inputBits: Self.inputBits)!
    let context = SMMUContext(
      geometry: table.geometry, root: table.root, asid: Self.asid, outputBits: outputBits)
    contextTable = Self.write(context, tables.pool)
    stage1 = OwnedStage1(stage2, tables, table, channel)
    state = Mutex(State())
  }

  /// Takes a table's place for the context descriptor.
  private static func write(_ context: SMMUContext, _ pool: TablePool) -> Table {
    let place = pool.take()!
    for (index, word) in context.descriptor.enumerated() { place.write(word, at: index) }
    return place
  }

  deinit {
    // A fork does not have the tables.
    guard ProcessGuard.isOwner else { return tables.pool.abandon() }
    close()
    for index in 0..<8 { contextTable.write(0, at: index) }
    tables.pool.give(back: contextTable)
    stage1.giveBackDeferred()
  }

  var stage2: Stage2 { stage1.stage2 }
  private var tables: PinnedTables { stage1.tables }

  package var budget: InvalidationBudget { channel.budget }
  /// For tests, which look at what hardware reads.
  package var table: SMMUTable { _read { yield stage1.table } }

  package var reusesTablesEarly: Bool {
    get { stage1.reusesTablesEarly }
    set { stage1.reusesTablesEarly = newValue }
  }

  /// The IPA of the context descriptor.
  var contextAddress: UInt64 { tables.pool.address(of: contextTable) }

  var kernel: any Kernel { descriptor.kernel }

  /// The granule: no smaller than a page of either stage.
  package func pageSizes() throws(Errno) -> PageSizes {
    let second = try kernel.ioasRanges(descriptor.iommufd, ioas: descriptor.ioas).alignment
    return PageSizes(rawValue: max(second, UInt64(1) << UInt64(shape.granule)))
  }

  /// The IOVA space: what stage 1 translates, but for the doorbells. Nobody looks after it but this library.
  package func usableRanges() throws(Errno) -> IOVARanges {
    let all = IOVARange(start: IOVA(0), last: IOVA(stage1.table.last))!
    return IOVARanges([all]).subtracting(IOVARanges([Self.doorbells]))
  }

  package var invalidations: UInt64 { channel.counts.commands.load(ordering: .relaxed) }
  package var syncs: UInt64 { channel.counts.syncs.load(ordering: .relaxed) }
  package var systemCalls: UInt64 { channel.counts.systemCalls.load(ordering: .relaxed) }
  package var implicitRegistrations: UInt64 { channel.counts.implicit.load(ordering: .relaxed) }
  package var tableBytes: UInt64 { state.withLock { $0.isClosed } ? 0 : UInt64(tables.readyByteCount) }
  package var reclaim: TableReclaim? { stage1.reclaim }
  package var gatheredRanges: UInt64 { channel.counts.ranges.load(ordering: .relaxed) }
}

// MARK: - Commands

extension ProcessOwnedSMMU {
  /// Sends a plan to each physical SMMU, each by a call that waits for it. On return it is done everywhere.
  ///
  /// Every command is looked at before: of a call with one that the kernel refuses, nobody knows what was done. One command for
  /// everything goes in the place of such a plan.
  package func send(_ plan: borrowing SMMUPlan) throws(Errno) {
    let everything = SMMUCommand.addressSpace(Self.asid), isValid = plan.isValid(as: shape)
    try unsafe plan.withBytes { commands throws(Errno) in
      try unsafe withUnsafeBytes(of: everything) { everything throws(Errno) in
        try unsafe channel.send(isValid ? commands : everything, orElse: everything)
      }
    }
  }

  /// Sends a plan to one of them.
  func send(_ plan: borrowing SMMUPlan, to viommu: UInt32) throws(Errno) {
    try unsafe plan.withBytes { commands throws(Errno) in try unsafe channel.send(commands, to: viommu) }
  }

  package func invalidate(iova: UInt64, byteCount: UInt64) throws(Errno) {
    guard let range = IOVARange(start: IOVA(iova), byteCount: byteCount) else { throw .overflow }
    var plan = SMMUPlan(shape)
    let mask = UInt64(1) << UInt64(shape.granule) - 1, first = iova & ~mask
    plan.make(forAnythingIn: first, (range.last.rawValue - first) | mask &+ 1, budget: channel.commandLimit)
    try stage1.settle(range) { () throws(Errno) in try send(plan) }
  }

  package func invalidateAll() throws(Errno) {
    var plan = SMMUPlan(shape)
    plan.makeEverything()
    try stage1.finishAll { () throws(Errno) in try send(plan) }
  }
}
