package import AddressSpace
import PageTables
import Synchronization

/// Page tables that this process owns on an SMMUv3: stage 1 in its memory, over a stage 2 that the kernel owns.
///
/// One stage 1 for all physical SMMUs, each with a nest parent, a vIOMMU and a nested HWPT of its own, and a VMID of its own
/// therefore; invalidations go to each. Devices are attached to nested HWPTs only, never to a parent or the IOAS. The sources
/// are `drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-iommufd.c` and Arm IHI 0070.
package final class ProcessOwnedSMMU: ProcessOwnedTranslation {
  package let interface = Interface.iommufd
  /// Registration knows files; what is mapped is registered memory.
  package let canMapFiles = false
  package var directCalls: DirectCalls? { nil }
  let descriptor: IOMMUFDDescriptor
  let identity: SMMUIdentity
  let stage2: Stage2
  let memory: RegisteredMemory
  let tables: PinnedTables
  let table: SMMUTable
  /// Where the context descriptor is.
  private let contextTable: Table
  let shape: SMMUPlan.Shape
  package let budget = InvalidationBudget(most: SMMUPlan.roundLength)
  let deferred = DeferredTables()
  let state: Mutex<State>
  /// Held while event queues are read.
  let reading = Mutex<Void>(())
  /// The vIOMMUs, to each of which commands go.
  let tags = HardwareTags()
  let counts = Counts()

  struct State {
    var slices: [SMMUSlice] = []
    /// The device that the translation was made with, until ``attach(_:)`` asks for it.
    var first: Attachment?
    /// Faults that nobody has asked for yet, by device.
    var faults: [PCIAddress: UnreadFaults] = [:]
    var isClosed = false
  }
  struct Counts: ~Copyable {
    let systemCalls = Atomic<UInt64>(0), commands = Atomic<UInt64>(0), syncs = Atomic<UInt64>(0)
    let implicit = Atomic<UInt64>(0), ranges = Atomic<UInt64>(0)

    /// Opening a device does not count.
    func reset() {
      systemCalls.store(0, ordering: .relaxed)
      commands.store(0, ordering: .relaxed)
      syncs.store(0, ordering: .relaxed)
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
    (self.descriptor, self.identity, self.stage2, self.tables) = (descriptor, identity, stage2, tables)
    memory = stage2.memory
    shape = SMMUPlan.Shape(asid: Self.asid, granule: tables.pool.granule.shift, hasRanges: identity.hasRanges)
    table = SMMUTable(pool: tables.pool, inputBits: Self.inputBits)!
    let context = SMMUContext(
      geometry: table.geometry, root: table.root, asid: Self.asid, outputBits: outputBits)
    contextTable = Self.write(context, tables.pool)
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
    tables.pool.give(back: deferred.takeAll())
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
    let all = IOVARange(start: IOVA(0), last: IOVA(table.last))!
    return IOVARanges([all]).subtracting(IOVARanges([Self.doorbells]))
  }

  package var invalidations: UInt64 { counts.commands.load(ordering: .relaxed) }
  package var syncs: UInt64 { counts.syncs.load(ordering: .relaxed) }
  package var systemCalls: UInt64 { counts.systemCalls.load(ordering: .relaxed) }
  package var implicitRegistrations: UInt64 { counts.implicit.load(ordering: .relaxed) }
  package var tableBytes: UInt64 { state.withLock { $0.isClosed } ? 0 : UInt64(tables.readyByteCount) }
  package var gatheredRanges: UInt64 { counts.ranges.load(ordering: .relaxed) }
}

// MARK: - Commands

extension ProcessOwnedSMMU {
  /// Sends a plan to each physical SMMU, each by a call that waits for it. On return it is done everywhere.
  ///
  /// When a call fails, the kernel counts commands of the round as done that it has not issued: everything is invalidated then.
  func send(_ plan: borrowing SMMUPlan) throws(Errno) {
    try tags.forEach { viommu throws(Errno) in
      do throws(Errno) { try send(plan, to: viommu) } catch {
        var everything = SMMUPlan(shape)
        everything.makeEverything()
        try send(everything, to: viommu)
      }
    }
  }

  private func send(_ plan: borrowing SMMUPlan, to viommu: UInt32) throws(Errno) {
    let count = plan.count, began = kernel.costClock()
    for index in 0..<count { assert(plan[index].isValid(asid: Self.asid, hasRanges: shape.hasRanges)) }
    counts.systemCalls.wrappingAdd(1, ordering: .relaxed)
    let done = try unsafe plan.withBytes { bytes throws(Errno) in
      try unsafe kernel.hwptInvalidate(
        descriptor.iommufd, pageTable: viommu, type: NestingTypes.smmuCommand, entries: bytes,
        byteCount: MemoryLayout<SMMUCommand>.size)
    }
    if done != count { throw .inputOutput }
    budget.note(commands: count, nanoseconds: kernel.costClock() &- began)
    counts.commands.wrappingAdd(UInt64(count), ordering: .relaxed)
    counts.syncs.wrappingAdd(1, ordering: .relaxed)
  }

  /// How many commands the next plan may have.
  var commandLimit: Int { min(budget.limit, budget.worthwhile) }

  package func invalidate(iova: UInt64, byteCount: UInt64) throws(Errno) {
    guard let range = IOVARange(start: IOVA(iova), byteCount: byteCount) else { throw .overflow }
    var plan = SMMUPlan(shape)
    let mask = UInt64(1) << UInt64(shape.granule) - 1, first = iova & ~mask
    plan.make(forAnythingIn: first, (range.last.rawValue - first) | mask &+ 1, budget: commandLimit)
    try settle(range, plan)
  }

  package func invalidateAll() throws(Errno) {
    var plan = SMMUPlan(shape)
    plan.makeEverything()
    let removed = deferred.takeAll()
    do throws(Errno) { try settle(nil, plan) } catch {
      deferred.add(removed, in: tables.pool)
      throw error
    }
    tables.pool.give(back: removed)
  }

  /// Sends a plan for a range, nil for everything, and unregisters what only mappings in it had registered.
  func settle(_ range: IOVARange?, _ plan: borrowing SMMUPlan) throws(Errno) {
    let calls = try stage2.settle(range) { () throws(Errno) in try send(plan) }
    counts.systemCalls.wrappingAdd(calls, ordering: .relaxed)
  }
}
