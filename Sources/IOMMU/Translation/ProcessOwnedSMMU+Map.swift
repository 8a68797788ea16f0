import AddressSpace
import PageTables
import Synchronization

// The data path: stores into the tables, and for an unmap at once the commands that its gather asks for.

extension ProcessOwnedSMMU {
  package func map(iova: UInt64, address: UInt64, byteCount: UInt64, access: DMAAccess) throws(Errno) {
    guard let ipa = memory.ipa(of: address, byteCount: byteCount) else {
      return try mapUnregistered(iova, address, byteCount, access)
    }
    let attributes = LeafAttributes(access)
    if case .mapped = table.map(iova: iova, to: ipa, byteCount: byteCount, attributes: attributes) { return }
    try mapAgain(iova, ipa, byteCount, attributes)
  }

  package func map(iova: UInt64, file: Int32, start: UInt64, byteCount: UInt64, access: DMAAccess) throws(Errno) {
    throw .notTypewriter
  }

  package func mapHere(iova: UInt64, address: UInt64, byteCount: UInt64, access: DMAAccess) -> Bool {
    guard let ipa = memory.knownIPA(of: address, byteCount: byteCount) else { return false }
    if case .mapped = table.map(iova: iova, to: ipa, byteCount: byteCount, attributes: LeafAttributes(access)) {
      return true
    }
    return false
  }

  package func clearHere(iova: UInt64, byteCount: UInt64) -> UInt64? { table.clear(iova: iova, byteCount: byteCount) }

  /// With more tables, or over what was in the way. The table says each time what is missing, and has mapped nothing.
  @inline(never)
  func mapAgain(_ iova: UInt64, _ ipa: UInt64, _ byteCount: UInt64, _ attributes: LeafAttributes) throws(Errno) {
    while true {
      let ready = tables.readyByteCount
      switch table.map(iova: iova, to: ipa, byteCount: byteCount, attributes: attributes) {
      case .mapped: return
      case .exists: throw .exists
      case .noTables:
        if !deferred.isEmpty {
          try invalidateAll()
          continue
        }
        counts.systemCalls.wrappingAdd(1, ordering: .relaxed)
        try tables.grow(beyond: ready)
      case .mustInvalidate(let unlinked):
        do throws(Errno) { try invalidate(iova: unlinked.iova, byteCount: unlinked.byteCount) } catch {
          deferred.add(unlinked.tables, in: tables.pool)
          throw error
        }
        tables.pool.give(back: unlinked.tables)
      }
    }
  }

  /// Registers memory for the mapping's life, with no more access than the mapping has.
  @inline(never)
  private func mapUnregistered(
    _ iova: UInt64, _ address: UInt64, _ byteCount: UInt64, _ access: DMAAccess
  ) throws(Errno) {
    guard let range = IOVARange(start: IOVA(iova), byteCount: byteCount) else { throw .overflow }
    counts.systemCalls.wrappingAdd(1, ordering: .relaxed)
    let ipa = try stage2.enter(address, byteCount, access)
    guard memory.own(range, ipa: ipa) else {
      stage2.leave(.init(iova: range, ipa: ipa))
      throw .noMemory
    }
    do throws(Errno) {
      try mapAgain(iova, ipa, byteCount, LeafAttributes(access, isOwned: true))
    } catch {
      memory.disown(range)
      stage2.leave(.init(iova: range, ipa: ipa))
      throw error
    }
    counts.implicit.wrappingAdd(1, ordering: .relaxed)
  }

  /// Ranges are not tracked: whoever puts an invalidation off makes one of everything.
  package func clear(iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64 {
    var gather = Gather(tracksRanges: false)
    let cleared = try clear(iova, byteCount, &gather)
    if !gather.isLeafOnly { keepForLater(gather.takeTables()) }
    return cleared
  }

  @inline(never)
  private func keepForLater(_ removed: TableList) { deferred.add(removed, in: tables.pool) }

  package func unmap(iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64 {
    var gather = Gather(tracksRanges: true)
    let cleared = try clear(iova, byteCount, &gather)
    if cleared > 0 || !gather.isLeafOnly { try invalidate(&gather, iova, byteCount) }
    return cleared
  }

  @inline(__always)
  private func clear(_ iova: UInt64, _ byteCount: UInt64, _ gather: inout Gather) throws(Errno) -> UInt64 {
    switch table.unmap(iova: iova, byteCount: byteCount, into: &gather) {
    case .unmapped(let cleared):
      if gather.sawOwned { memory.retireOwned(in: IOVARange(start: IOVA(iova), byteCount: byteCount)!) }
      return cleared
    // As an IOAS answers to a range that cuts a mapping.
    case .cuts: throw .noEntry
    }
  }

  private func invalidate(_ gather: inout Gather, _ iova: UInt64, _ byteCount: UInt64) throws(Errno) {
    counts.ranges.wrappingAdd(UInt64(gather.rangeCount), ordering: .relaxed)
    var plan = SMMUPlan(shape)
    plan.make(for: gather, budget: budget.allows(byteCount) ? commandLimit : 0)
    let range = IOVARange(start: IOVA(iova), byteCount: byteCount)!
    if gather.isLeafOnly { return try settle(range, plan) }
    try settle(range, plan, removing: gather.takeTables())
  }

  /// The same where tables went, which may be used again once it is done.
  @inline(never)
  private func settle(_ range: IOVARange, _ plan: borrowing SMMUPlan, removing unlinked: TableList) throws(Errno) {
    var removed = unlinked
    if reusesTablesEarly {
      tables.pool.give(back: removed)
      removed = TableList()
    }
    do throws(Errno) { try settle(range, plan) } catch {
      deferred.add(removed, in: tables.pool)
      throw error
    }
    tables.pool.give(back: removed)
  }
}

extension LeafAttributes {
  @inline(__always)
  init(_ access: DMAAccess, isOwned: Bool = false) {
    // As a number: a literal of several would be an array. What may be written may be read.
    self.init(rawValue: (access.canWrite ? 3 : 1) | (isOwned ? 8 : 0))
  }
}

// MARK: - Registration

extension ProcessOwnedSMMU {
  package func register(
    address: UInt64, byteCount: UInt64, file: Int32?, areaByteCount: UInt64
  ) throws(Errno) -> (areas: Int, fileAreas: Int) {
    try stage2.register(address: address, byteCount: byteCount, file: file, areaByteCount: areaByteCount)
  }

  package func hide(address: UInt64) { memory.hide(address) }

  package func unregister(address: UInt64) throws(Errno) { try stage2.unregister(address: address) }

  package func giveUp(address: UInt64) { stage2.giveUp(address: address) }
}
