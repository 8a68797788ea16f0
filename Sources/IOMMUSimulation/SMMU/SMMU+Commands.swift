import IOMMU

// The command queue: putting commands in, and what the hardware does with them.

extension SMMU {
  /// How long the kernel waits for a sync before it gives up, `ARM_SMMU_POLL_TIMEOUT_US`.
  static let syncTimeout: UInt64 = 1_000_000_000

  /// Puts commands and a sync into the queue and waits until they are done; false when that took too long, and they are
  /// still in it.
  @discardableResult
  mutating func issue(_ batch: [SMMUCommand], from sender: SMMUCounters.Sender) -> Bool {
    if sender == .process, let crowd = misbehaviour.crowd {
      time += crowd.nanoseconds(costs)
      if crowd.leavesNoRoom(for: batch.count + 1, in: commands.capacity) { counters.queueStalls += 1 }
    }
    for command in batch + [.sync] {
      if commands.isFull {
        // A producer waits for room however long it takes.
        counters.queueStalls += 1
        time += misbehaviour.stall
        misbehaviour.stall = 0
        executeAll()
      }
      _ = commands.put(Sent(command: command, sender: sender))
    }
    counters.deepestQueue = max(counters.deepestQueue, commands.deepest)
    guard misbehaviour.stall < Self.syncTimeout else {
      misbehaviour.stall -= Self.syncTimeout
      time += Self.syncTimeout
      counters.syncTimeouts += 1
      return false
    }
    time += misbehaviour.stall
    misbehaviour.stall = 0
    executeAll()
    return true
  }

  private mutating func executeAll() {
    while true {
      let place = commands.consumer
      guard let sent = commands.take() else { return }
      if !execute(sent) {
        counters.illegalCommands += 1
        refused.append((place, sent.command))
      }
    }
  }

  /// Does what a command asks; false for `CERROR_ILL`, which does nothing.
  private mutating func execute(_ sent: Sent) -> Bool {
    let command = sent.command
    guard let opcode = command.opcode else { return false }
    counters.count(opcode, from: sent.sender)
    if opcode != .sync, loses(sent.sender) { return true }
    let vmid = command.vmid
    switch opcode {
    case .sync, .invalidateATC: break
    case .invalidateSTE:
      drop(command.stream, withEntry: true)
    case .invalidateAllConfiguration:
      entries.removeAll { _, _ in true }
      contexts.removeAll { _, _ in true }
    case .invalidateCD, .invalidateAllCDs:
      drop(command.stream, withEntry: false)
    case .invalidateAll: invalidate(SMMUTLB.Tag(vmid: vmid))
    case .invalidateASID: invalidate(SMMUTLB.Tag(vmid: vmid, asid: command.asid))
    case .invalidateAddress: return invalidate(SMMUTLB.Tag(vmid: vmid, asid: command.asid), command)
    case .invalidateAddressInAllASIDs: return invalidate(SMMUTLB.Tag(vmid: vmid), command)
    case .invalidateVMID:
      invalidate(SMMUTLB.Tag(vmid: vmid))
      stage2.invalidate(vmid)
    case .invalidateStage2:
      guard let span = command.span(hasRanges: registers.hasRangeInvalidation) else { return false }
      stage2.invalidate(vmid, span)
    case .invalidateEverything:
      tlb.removeAll()
      walks.removeAll { _, _ in true }
      stage2.removeAll()
    }
    return true
  }

  /// Whether this is the invalidation that shall be lost.
  private mutating func loses(_ sender: SMMUCounters.Sender) -> Bool {
    guard misbehaviour.losesInvalidation(from: sender) else { return false }
    counters.lostInvalidations += 1
    return true
  }

  /// Configuration of a stream: a stream table entry goes with the context descriptors that were found by it.
  private mutating func drop(_ stream: UInt32, withEntry: Bool) {
    if withEntry { entries.removeAll { key, _ in key.address == UInt64(stream) } }
    contexts.removeAll { key, _ in key.address == UInt64(stream) }
  }

  /// Everything of stage 1 of a VMID, or of an ASID of it; then, global entries stay.
  private mutating func invalidate(_ tag: SMMUTLB.Tag) {
    tlb.invalidate(tag)
    walks.removeAll { key, _ in Self.isTagged(key, tag) }
  }

  /// By address: leaves, and unless the command says leaf only, what is cached of tables on the way to them.
  private mutating func invalidate(_ tag: SMMUTLB.Tag, _ command: SMMUCommand) -> Bool {
    guard let span = command.span(hasRanges: registers.hasRangeInvalidation) else { return false }
    // At most 2^52, and as often as a process likes.
    let (sum, overflow) = counters.invalidatedBytes.addingReportingOverflow(span.last - span.start + 1)
    counters.invalidatedBytes = overflow ? .max : sum
    // Hints come with a granule, or not at all.
    let granule = command.granuleShift, level = granule == nil ? 0 : command.level
    tlb.invalidate(tag, span, level: level, granuleShift: granule)
    guard !command.isLeafOnly else { return true }
    walks.removeAll { key, pointer in
      guard Self.isTagged(key, tag), level == 0 || pointer.level < level else { return false }
      guard granule == nil || granule! == pointer.granuleShift else { return false }
      let shift = key.tag >> 32, start = key.address << shift
      return Span64(start: start, last: start | (1 << shift - 1)).overlaps(span)
    }
    return true
  }

  private static func isTagged(_ key: TaggedCache<TablePointer>.Key, _ tag: SMMUTLB.Tag) -> Bool {
    UInt16(truncatingIfNeeded: key.tag) == tag.vmid
      && (tag.asid == nil || tag.asid! == UInt16(truncatingIfNeeded: key.tag >> 16))
  }
}
