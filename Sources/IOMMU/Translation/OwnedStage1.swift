import AddressSpace
import PageTables
import Synchronization

/// A stage 1 that this process writes, with what is below it: registered memory in stage 2, and pinned memory for its tables.
///
/// What maps and unmaps come to in memory, whatever the format. Who owns it makes of a gather what its hardware understands, and
/// sends that.
final class OwnedStage1<Format: PageTable & ~Copyable>: Sendable {
  let stage2: Stage2
  let memory: RegisteredMemory
  let tables: PinnedTables
  let table: Format
  let channel: CommandChannel
  let reclaim = TableReclaim()
  private let deferred = DeferredTables()
  private let isCareless = Atomic<Bool>(false)

  init(_ stage2: Stage2, _ tables: PinnedTables, _ table: consuming Format, _ channel: CommandChannel) {
    (self.stage2, memory, self.tables, self.channel) = (stage2, stage2.memory, tables, channel)
    self.table = table
  }

  /// A mistake that a test has this make: tables are used again while hardware may walk them.
  var reusesTablesEarly: Bool {
    get { isCareless.load(ordering: .relaxed) }
    set { isCareless.store(newValue, ordering: .relaxed) }
  }

  /// Gives back what waits for an invalidation: no hardware walks here any more.
  func giveBackDeferred() { tables.pool.give(back: deferred.takeAll()) }
}

// MARK: - Maps

extension OwnedStage1 where Format: ~Copyable {
  /// With more tables, or over what was in the way. The table says each time what is missing, and has mapped nothing; what the first
  /// try has unlinked is dealt with here too.
  @inline(never)
  func mapAgain(
    _ iova: UInt64, _ ipa: UInt64, _ byteCount: UInt64, _ attributes: LeafAttributes, after first: MapOutcome? = nil,
    for owner: any ProcessOwnedTranslation
  ) throws(Errno) {
    var first = first
    while true {
      let ready = tables.readyByteCount
      switch first.take() ?? table.map(iova: iova, to: ipa, byteCount: byteCount, attributes: attributes) {
      case .mapped: return
      case .exists: throw .exists
      case .noTables:
        if !deferred.isEmpty {
          try owner.invalidateAll()
          continue
        }
        let reclaimed = reclaimTables(for: owner)
        if reclaimed == .enough { continue }
        channel.counts.systemCalls.wrappingAdd(1, ordering: .relaxed)
        do throws(Errno) { try tables.grow(beyond: ready) } catch { if reclaimed == .none { throw error } }
      case .mustInvalidate(let unlinked):
        do throws(Errno) { try owner.invalidate(iova: unlinked.iova, byteCount: unlinked.byteCount) } catch {
          // The addresses are anybody's next, while hardware may know of the old table there: it has to be the right one.
          table.relink(unlinked)
          throw error
        }
        tables.pool.give(back: table.takeApart(unlinked))
      }
    }
  }

  /// Registers memory for the mapping's life, where that may be.
  ///
  /// - Parameter registered: What the device may do with it as far as stage 2 knows: no less than `access`, and no more than
  ///   that where the hardware takes it.
  @inline(never)
  func mapUnregistered(
    _ iova: UInt64, _ address: UInt64, _ byteCount: UInt64, _ access: DMAAccess, registered: DMAAccess,
    for owner: any ProcessOwnedTranslation
  ) throws(Errno) {
    if memory.isRegistrationRequired { throw .notRegistered }
    guard let range = IOVARange(start: IOVA(iova), byteCount: byteCount) else { throw .overflow }
    channel.counts.systemCalls.wrappingAdd(1, ordering: .relaxed)
    let ipa = try stage2.enter(address, byteCount, registered)
    guard memory.own(range, ipa: ipa) else {
      stage2.leave(.init(iova: range, ipa: ipa))
      throw .noMemory
    }
    do throws(Errno) {
      try mapAgain(iova, ipa, byteCount, LeafAttributes(access, isOwned: true), for: owner)
    } catch {
      memory.disown(range)
      stage2.leave(.init(iova: range, ipa: ipa))
      throw error
    }
    channel.counts.implicit.wrappingAdd(1, ordering: .relaxed)
  }
}

// MARK: - Unmaps

extension OwnedStage1 where Format: ~Copyable {
  /// Clears whole mappings.
  @inline(__always)
  func clear(_ iova: UInt64, _ byteCount: UInt64, _ gather: inout Gather) throws(Errno) -> UInt64 {
    switch table.unmap(iova: iova, byteCount: byteCount, into: &gather) {
    case .unmapped(let cleared):
      if gather.sawOwned { memory.retireOwned(in: IOVARange(start: IOVA(iova), byteCount: byteCount)!) }
      return cleared
    // As an IOAS answers to a range that cuts a mapping.
    case .cuts: throw .noEntry
    }
  }

  /// Keeps tables that went until everything is invalidated.
  @inline(never)
  func keepForLater(_ removed: TableList) { deferred.add(removed, in: tables.pool) }

  /// After an unmap: has its invalidation sent; the tables that went can be used again then.
  func finish(
    _ gather: inout Gather, _ range: IOVARange, _ send: () throws(Errno) -> Void
  ) throws(Errno) {
    channel.counts.ranges.wrappingAdd(UInt64(gather.rangeCount), ordering: .relaxed)
    if gather.isLeafOnly { return try settle(range, send) }
    var removed = gather.takeTables()
    if reusesTablesEarly {
      tables.pool.give(back: removed)
      removed = TableList()
    }
    do throws(Errno) { try settle(range, send) } catch {
      deferred.add(removed, in: tables.pool)
      throw error
    }
    tables.pool.give(back: removed)
  }

  /// Has an invalidation of everything sent; all tables that went before can be used again then.
  func finishAll(_ send: () throws(Errno) -> Void) throws(Errno) {
    let removed = deferred.takeAll()
    do throws(Errno) { try settle(nil, send) } catch {
      deferred.add(removed, in: tables.pool)
      throw error
    }
    tables.pool.give(back: removed)
  }

  /// Has an invalidation of a range sent, nil for everything, and unregisters what only mappings in it had registered.
  func settle(_ range: IOVARange?, _ send: () throws(Errno) -> Void) throws(Errno) {
    let calls = try stage2.settle(range, send)
    channel.counts.systemCalls.wrappingAdd(calls, ordering: .relaxed)
  }
}

extension LeafAttributes {
  @inline(__always)
  init(_ access: DMAAccess, isOwned: Bool = false) {
    // As a number: a literal of several would be an array. What may be written may be read.
    self.init(rawValue: (access.canWrite ? 3 : 1) | (isOwned ? 8 : 0))
  }
}
