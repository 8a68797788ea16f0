import IOMMU

// The invalidation queue: putting descriptors in, and what the hardware does with them.

extension VTd {
  /// How many descriptors the driver puts in before a wait, at most: `QI_MAX_BATCHED_DESC_COUNT`.
  private static let driverBatchLength = 16
  /// The same, or what a smaller queue takes with the wait and the slot that tells full from empty.
  private var batchLength: Int { min(Self.driverBatchLength, descriptors.capacity - 2) }

  /// Puts descriptors into the queue, a wait behind each batch of them, and waits until they are done: the driver never
  /// gives up. Returns the waits.
  @discardableResult
  mutating func issue(_ batch: [VTdDescriptor], from sender: VTdCounters.Sender) -> Int {
    var waits = 0
    for start in stride(from: 0, to: batch.count, by: batchLength) {
      if start > 0, batchLength < Self.driverBatchLength { counters.queueStalls += 1 }
      let end = min(start + batchLength, batch.count)
      if sender == .process { wait(toPutIn: end - start) }
      for descriptor in batch[start..<end] + [.wait] {
        _ = descriptors.put(Sent(descriptor: descriptor, sender: sender))
      }
      counters.deepestQueue = max(counters.deepestQueue, descriptors.deepest)
      time += misbehaviour.stall
      misbehaviour.stall = 0
      while let sent = descriptors.take() {
        if !execute(sent) { counters.illegalDescriptors += 1 }
      }
      waits += 1
    }
    return waits
  }

  /// What others have put in before takes its time, and room: the driver looks for as much as the descriptors take, with the
  /// wait and the slot that stays free.
  private mutating func wait(toPutIn count: Int) {
    guard let others = misbehaviour.crowd else { return }
    let crowd = Misbehaviour.Crowd(batches: others.batches, commands: min(others.commands, batchLength))
    time += crowd.nanoseconds(costs)
    if crowd.leavesNoRoom(for: count + 2, in: descriptors.capacity) { counters.queueStalls += 1 }
  }

  /// Does what a descriptor asks; false for one that makes no sense, which does nothing.
  private mutating func execute(_ sent: Sent) -> Bool {
    let descriptor = sent.descriptor
    guard let opcode = descriptor.opcode else { return false }
    counters.count(descriptor, opcode, from: sent.sender)
    if opcode != .wait, misbehaviour.losesInvalidation(from: sent.sender) {
      counters.lostInvalidations += 1
      return true
    }
    switch opcode {
    case .wait, .deviceTLB, .interruptEntries: return true
    case .contextCache, .pasidCache: return dropEntries(descriptor, opcode)
    case .iotlb: return invalidateDomain(descriptor)
    case .pasidIOTLB: return invalidatePASID(descriptor)
    }
  }

  /// Configuration: of everything, of a domain, or of one entry.
  private mutating func dropEntries(_ descriptor: VTdDescriptor, _ opcode: VTdOpcode) -> Bool {
    switch (opcode, descriptor.granularity) {
    case (.contextCache, 1), (.pasidCache, 3): entries.removeAll { _, _ in true }
    case (.contextCache, 2), (.pasidCache, 0): entries.removeAll { _, entry in entry.domain == descriptor.domain }
    case (.contextCache, 3): entries.removeAll { key, _ in key.address == UInt64(descriptor.source) }
    case (.pasidCache, 1):
      entries.removeAll { _, entry in entry.domain == descriptor.domain && descriptor.pasid == UInt32(Self.pasid) }
    default: return false
    }
    return true
  }

  /// By second-stage addresses. What is made of both stages goes with any page of its domain: it is not known by those addresses.
  private mutating func invalidateDomain(_ descriptor: VTdDescriptor) -> Bool {
    switch descriptor.granularity {
    case 1:
      iotlb.removeAll()
      stage2.removeAll()
      firstWalks.removeAll { _, _ in true }
      secondWalks.removeAll { _, _ in true }
    case 2: drop(descriptor.domain)
    case 3:
      guard registers.hasPageSelectiveInvalidation, descriptor.addressMask <= UInt64(registers.maximumAddressMask)
      else {
        return false
      }
      iotlb.invalidate(.init(domain: descriptor.domain))
      stage2.invalidate(.init(domain: descriptor.domain), descriptor.span)
      Self.drop(&firstWalks, descriptor.domain)
      if !descriptor.isLeafOnly { Self.drop(&secondWalks, descriptor.domain, descriptor.span) }
    default: return false
    }
    return true
  }

  private mutating func drop(_ domain: UInt16) {
    iotlb.invalidate(.init(domain: domain))
    stage2.invalidate(.init(domain: domain))
    Self.drop(&firstWalks, domain)
    Self.drop(&secondWalks, domain)
  }

  /// By first-stage addresses: leaves, and without the hint tables on the way to them. Linux does not look at MAMV here, nor
  /// does this.
  private mutating func invalidatePASID(_ descriptor: VTdDescriptor) -> Bool {
    let isOurs = descriptor.pasid == UInt32(Self.pasid)
    let tag = TranslationCache.Tag(domain: descriptor.domain, space: Self.pasid)
    switch descriptor.granularity {
    case 2:
      guard isOurs else { break }
      iotlb.invalidate(tag)
      Self.drop(&firstWalks, descriptor.domain)
    case 3:
      guard isOurs else { break }
      iotlb.invalidate(tag, descriptor.span)
      if !descriptor.isLeafOnly { Self.drop(&firstWalks, descriptor.domain, descriptor.span) }
    default: return false
    }
    return true
  }

  private static func drop(
    _ walks: inout TaggedCache<TablePointer>, _ domain: UInt16, _ span: Span64 = Span64(start: 0, last: .max)
  ) {
    walks.removeAll { key, _ in
      guard UInt16(truncatingIfNeeded: key.tag) == domain else { return false }
      let shift = key.tag >> 32, start = key.address << shift
      return Span64(start: start, last: start | (1 << shift - 1)).overlaps(span)
    }
  }
}
