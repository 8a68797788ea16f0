import AddressSpace
import AddressSpaceModels
package import IOMMU
package import IOMMUSimulation

/// A random program that looks for stale access: it maps, has the device write, unmaps and maps anew, and the device then tries
/// the addresses that are gone.
///
/// The device writes through every page right before its unmap, so that the IOTLB has it; few pages are in use at a time, so that an
/// emulated IOTLB, which is emptied when it overflows, keeps them. After each unmap in strict mode a write to the old address must
/// reach nothing; in a lazy mode, after each drain. What is mapped must be reached, and nothing else.
///
/// Now and then a mapping fills a table of its own, which goes with its unmap, and another mapping takes a table at the same
/// moment or right after it: so it shows whether caches of the way to leaves were told, and whether tables are used again too early.
///
/// The memory is registered once: unregistering would flush everything, and hide what it looks for. One seed has one program.
package final class StaleAccess: @unchecked Sendable {
  /// What to run.
  package struct Options: Sendable {
    package var seed: UInt64
    package var steps: Int
    package var protection: Protection
    /// A mistake to make, and in which of the invalidations where it can be made, from 1 on.
    package var mutant: InvalidationMutant?
    package var nth = 1

    package init(seed: UInt64, steps: Int, _ protection: Protection = .strict, mutant: InvalidationMutant? = nil) {
      (self.seed, self.steps, self.protection, self.mutant) = (seed, steps, protection, mutant)
    }
  }

  /// What came of it.
  package struct Outcome: Sendable {
    package var steps = 0, writes = 0, unmaps = 0, drains = 0
    /// Mappings at the address of one that ended right before, and tables that went.
    package var reusedAddresses = 0, tables = 0
    /// What should not be, one line each. A mistake is looked for no longer once it shows.
    package var findings: [String] = []
    /// Follows from which pages each write has reached, and not from addresses, which may differ from run to run.
    package var digest: UInt64 = 0xcbf2_9ce4_8422_2325
  }

  let options: Options
  let dma: DMADomain
  let writer: any DeviceWriter
  let pages: MarkedPages
  let tables: any HardwareTables
  var random: SplitMix64
  var outcome = Outcome()
  var live: [Mapped] = []
  /// In a lazy mode: addresses whose mappings ended, and where they led.
  var dead: [(address: IOVA, page: Int)] = []
  /// The mapping that took a table last, and how many did.
  var neighbour: Mapped?
  var turn: UInt64 = 0

  // What the hook around invalidations goes by.
  /// The mapping whose unmap is under way.
  var ending: Mapped?
  /// Where in memory its entries lead, if all of them can be written again.
  var endingPlace: UInt64?
  /// The page tables or vIOMMUs that invalidations were for, in the order in which they were told first.
  var told: [UInt32] = []
  var isInside = false
  var mistakesLeft: Int
  /// Entries that were written again, as if they had not been cleared yet.
  var restored: (address: UInt64, byteCount: UInt64)?
  /// What another thread does before the invalidation under way.
  var meanwhile: (() throws -> Void)?
  var failure: (any Error)?

  private init(
    _ options: Options, _ dma: DMADomain, _ tables: any HardwareTables, _ writer: any DeviceWriter, _ pages: MarkedPages
  ) {
    (self.options, self.dma, self.tables, self.writer, self.pages) = (options, dma, tables, writer, pages)
    random = SplitMix64(seed: options.seed)
    mistakesLeft = options.nth
  }

  var isLazy: Bool { if case .lazy = options.protection { true } else { false } }
  /// Whether a mistake has shown.
  private var isDone: Bool { options.mutant != nil && !outcome.findings.isEmpty }

  /// Runs it on a device that was opened on `kernel`, and leaves nothing mapped.
  package static func run(
    _ options: Options, _ device: Device, _ writer: any DeviceWriter, on kernel: FaultingKernel
  ) throws -> Outcome {
    guard let tables = device.dma.processOwned as? any HardwareTables else {
      throw Failure("the page tables are not the process's")
    }
    let pages = try MarkedPages(kernel), program = StaleAccess(options, device.dma, tables, writer, pages)
    try program.dma.switchProtection(to: options.protection)
    let registration = try unsafe program.dma.register(unsafe: pages.memory.buffer)
    kernel.hookInvalidations(
      InvalidationHook(before: { program.before(&$0) }, after: { program.after() }))
    tables.reusesTablesEarly = options.mutant == .tablesReusedEarly
    defer {
      kernel.hookInvalidations(nil)
      tables.reusesTablesEarly = false
    }
    while program.outcome.steps < options.steps, !program.isDone { try program.step() }
    kernel.hookInvalidations(nil)
    program.live = []
    try program.dma.switchProtection(to: .strict)
    try registration.unregister()
    return program.outcome
  }

  private func step() throws {
    outcome.steps += 1
    if dead.count >= 16 { try drain() }
    if live.isEmpty { return try map() }
    switch Int.random(in: 0..<100, using: &random) {
    case ..<35: try live.count < 8 ? map() : end(Int.random(in: 0..<live.count, using: &random))
    case ..<50:
      let mapped = live.randomElement(using: &random)!
      try reach(mapped, mapped.inUse.randomElement(using: &random)!)
    case ..<72: try end(Int.random(in: 0..<live.count, using: &random))
    case ..<93: try remap()
    case ..<97: try useTable()
    default: try drain()
    }
  }

  /// Something is not as it should be.
  func find(_ text: String) {
    if outcome.findings.count < 20 { outcome.findings.append("step \(outcome.steps): \(text)") }
  }
}
