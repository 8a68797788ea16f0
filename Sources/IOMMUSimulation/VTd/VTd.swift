import IOMMU

/// A simulated VT-d: what its registers say it can, its caches, its queue, and a walker of the tables that drivers wrote.
///
/// It stands where ``SMMU`` stands on an Arm machine, and is used in the same way: the kernel's side writes what describes a device
/// (``pasidTable``), ``request(_:_:byteCount:_:)`` translates for it, ``issue(_:from:)`` puts invalidations into the queue and
/// waits for them, ``counters`` tells what it all came to. All domains of a machine with one come here, the kernel's own as well: their
/// tables lie in memory (``DriverTable``) and are walked like the process's. Everything that is cached is served until a
/// descriptor drops it.
///
/// Written from the architecture (D51397): PASID table entries, first stage, second stage, and the first over the second, where
/// each table of the first and what its leaves lead to is found by the second. Not modelled: requests with a PASID, page
/// requests, device TLBs, supervisor's and execute requests, accessed flags in the second stage, the negative caching that
/// caching mode allows, what write buffers hold back.
struct VTd {
  let registers: VTdRegisters
  /// Its number in the machine.
  let number: Int
  /// PASID table entries as they lie in memory, by the requester id of the device.
  var pasidTable: [UInt32: PASIDEntry] = [:]
  var counters = VTdCounters()

  // The caches.
  /// Translations by the first stage, alone or nested, by domain and PASID.
  var iotlb: TranslationCache
  /// Translations by the second stage, of requests and of first-stage tables, by domain.
  var stage2: TranslationCache
  /// Tables below an entry of the first stage, and of the second.
  var firstWalks: TaggedCache<TablePointer>, secondWalks: TaggedCache<TablePointer>
  var entries: TaggedCache<PASIDEntry>

  // The queue and the fault recording registers, and what goes wrong with them on request.
  var descriptors: CommandQueue<Sent>
  var faults: [VTdFaultRecord] = []
  var lostFaults = 0
  var misbehaviour = Misbehaviour()
  /// Nanoseconds that producers waited and walks took, since the clock was charged last.
  var time: UInt64 = 0
  let costs: CostTable

  typealias TablePointer = SMMU.TablePointer

  /// A descriptor in the queue, and who put it there.
  struct Sent {
    var descriptor: VTdDescriptor
    var sender: VTdCounters.Sender
  }

  /// The PASID that requests without one have, `RID_PASID`; Linux takes 0.
  static let pasid: UInt16 = 0
  /// What devices write to interrupt is never translated.
  static let interrupts = Span64(start: 0xfee0_0000, last: 0xfeef_ffff)

  init(_ machine: SimulatedMachine, _ registers: VTdRegisters, number: Int) {
    (self.registers, self.number, costs) = (registers, number, machine.effectiveCosts)
    iotlb = TranslationCache(capacity: machine.iotlbEntryCount)
    stage2 = TranslationCache(capacity: machine.iotlbEntryCount)
    let empty = TablePointer(table: 0, permissions: [], level: 0, granuleShift: 12)
    firstWalks = TaggedCache(capacity: machine.walkCacheEntryCount, empty: empty)
    secondWalks = TaggedCache(capacity: machine.walkCacheEntryCount, empty: empty)
    entries = TaggedCache(capacity: machine.configurationCacheEntryCount, empty: PASIDEntry())
    precondition(
      machine.invalidationQueueShift >= 2, "a queue has room for a descriptor, its wait, and one that stays free")
    descriptors = CommandQueue(capacityShift: machine.invalidationQueueShift)
  }
}

// MARK: - Requests

extension VTd {
  /// Translates a request as a whole: every byte of it, or a refusal, which is in a fault recording register unless those are full.
  mutating func request(
    _ source: UInt32, _ iova: UInt64, byteCount: Int, _ access: SimulatedIOMMU.Permissions
  ) throws(SimulatedIOMMU.Refusal) -> [SimulatedIOMMU.Segment] {
    do throws(VTdFault) {
      return try SimulatedIOMMU.segments(iova, byteCount) { address throws(VTdFault) in
        try translate(source, address, access)
      }
    } catch {
      record(error, source, isWrite: access == .write)
      throw SimulatedIOMMU.Refusal(reason: error.simulated, iova: error.address, hasEvent: true)
    }
  }

  private mutating func record(_ fault: VTdFault, _ source: UInt32, isWrite: Bool) {
    let isLost = misbehaviour.lostEvents > 0
    if isLost { misbehaviour.lostEvents -= 1 }
    guard !isLost, faults.count < registers.faultRegisterCount else {
      counters.lostFaults += 1
      lostFaults += 1
      return
    }
    counters.faults += 1
    faults.append(VTdFaultRecord(fault, source: source, isWrite: isWrite, isScalable: registers.hasScalableMode))
  }

  /// Translates one address, by what is cached where it is.
  @inline(__always)
  mutating func translate(
    _ source: UInt32, _ input: UInt64, _ access: SimulatedIOMMU.Permissions
  ) throws(VTdFault) -> SimulatedIOMMU.Place {
    let entry = try entry(source, input)
    guard input < Self.interrupts.start || input > Self.interrupts.last else {
      throw VTdFault(reason: .interruptAddress, address: input)
    }
    if entry.kind == .secondStage { return try translateBySecond(entry, input, access) }
    // Above the half that is used, every bit is as the highest of it.
    let bits = entry.firstStageLevels == 4 ? 47 as UInt64 : 56
    let sign = Int64(bitPattern: input) >> Int64(bits)
    guard sign == 0 || sign == -1 else { throw VTdFault(reason: .notCanonical, address: input) }
    var found: TranslationCache.Entry
    if let cached = iotlb.find(entry.domain, Self.pasid, input) {
      counters.iotlb.hits += 1
      found = cached
    } else {
      counters.iotlb.misses += 1
      found = try walk(entry, input, isWrite: access == .write)
    }
    guard found.stage1.contains(access) else { throw VTdFault(reason: .firstNoWrite, address: input) }
    guard found.stage2.contains(access) else { throw VTdFault(reason: .secondPermission, address: input) }
    if access == .write, !found.stage1.contains(.dirty) { found = try walkForWriting(entry, input) }
    return found.place(of: input)
  }

  /// The second stage alone: of the kernel's domains.
  private mutating func translateBySecond(
    _ entry: PASIDEntry, _ input: UInt64, _ access: SimulatedIOMMU.Permissions
  ) throws(VTdFault) -> SimulatedIOMMU.Place {
    let isScalable = registers.hasScalableMode
    guard input <= registers.secondStageLast else {
      throw VTdFault(reason: isScalable ? .beyondHardware : .beyondWidth, address: input)
    }
    let missing: VTdReason = isScalable ? .secondPermission : access == .write ? .noWrite : .noRead
    let found: TranslationCache.Entry
    if let cached = stage2.find(entry.domain, 0, input) {
      counters.iotlb.hits += 1
      found = cached
    } else {
      counters.iotlb.misses += 1
      guard let walked = walkSecond(entry, input) else {
        throw VTdFault(reason: missing, address: input, isAbsent: true)
      }
      found = walked
    }
    guard found.stage2.contains(access) else { throw VTdFault(reason: missing, address: input) }
    return found.place(of: input)
  }

  /// The PASID table entry of a device; only a good one is kept.
  @inline(__always)
  private mutating func entry(_ source: UInt32, _ input: UInt64) throws(VTdFault) -> PASIDEntry {
    if let slot = entries.find(tag: 0, address: UInt64(source)) {
      counters.configurationCache.hits += 1
      return entries[slot]
    }
    counters.configurationCache.misses += 1
    let entry = pasidTable[source] ?? PASIDEntry()
    if let reason = entry.fault(registers) { throw VTdFault(reason: reason, address: input) }
    entries.fill(tag: 0, address: UInt64(source), entry)
    return entry
  }
}

extension VTd {
  /// As `SimulatedKernel/translate(_:rounds:for:)`.
  mutating func translate(_ addresses: [UInt64], rounds: Int, _ source: UInt32) -> Int {
    var count = 0
    do throws(VTdFault) {
      for _ in 0..<rounds {
        for address in addresses { count += try translate(source, address, .write).byteCount > 0 ? 1 : 0 }
      }
    } catch { return count }
    return count
  }
}

extension TranslationCache.Entry {
  /// Where an address in it lies.
  @inline(__always)
  func place(of address: UInt64) -> SimulatedIOMMU.Place {
    let offset = address & (1 << UInt64(shift) - 1)
    return SimulatedIOMMU.Place(host: host + UInt(offset), byteCount: 1 << UInt64(shift) - offset)
  }
}

extension SimulatedIOMMU.Permissions {
  /// Beside the right to write: the leaf's dirty flag is set, so that a write need not look at it.
  static let dirty = SimulatedIOMMU.Permissions(rawValue: 4)
}
