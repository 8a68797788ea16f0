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
    try stage1.mapUnregistered(iova, address, byteCount, access, registered: access, for: self)
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
    var plan = SMMUPlan(shape)
    plan.make(for: gather, budget: budget.allows(byteCount) ? channel.commandLimit : 0)
    try stage1.finish(&gather, IOVARange(start: IOVA(iova), byteCount: byteCount)!) { () throws(Errno) in try send(plan)
    }
    return cleared
  }
}

// MARK: - Registration

extension ProcessOwnedSMMU {
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
