import IOMMU

/// A simulated SMMUv3: what its registers say it can, its caches, its queues, and a walker of the tables that a driver wrote.
///
/// Only streams with a stage 1 of the process's come here (``SimulatedIOMMU/makeDomain(over:_:unit:)``); domains of the kernel's
/// own have no tables in memory and translate without caches. Everything that is cached is served until a command drops it.
///
/// Written from the architecture (IHI 0070 and the VMSAv8-64 chapter of the Arm ARM). Not modelled: substreams, stalls, ATS,
/// PRI, hardware update of access and dirty state, TTB1, contiguous hints, 52-bit addresses, conflicts of entries of
/// different sizes. A transaction that faults makes one event, whatever its length; real hardware merges, QEMU makes one for
/// every 4 bytes.
struct SMMU {
  let registers: SMMURegisters
  /// Its number in the machine.
  let number: Int
  /// Stream table entries as they lie in memory.
  var streamTable: [UInt32: StreamTableEntry] = [:]
  var counters = SMMUCounters()

  // The caches.
  var tlb: SMMUTLB
  /// Tables below a table descriptor, by VMID, ASID, and the address that leads there.
  var walks: TaggedCache<TablePointer>
  var stage2: Stage2Cache
  /// No cache, but where the simulator found an area last.
  var lastArea = 0
  var entries: TaggedCache<StreamTableEntry>
  var contexts: TaggedCache<ContextDescriptor>

  // The queues, and what goes wrong with them on request.
  var commands: CommandQueue<Sent>
  var events: CommandQueue<SMMUEvent>
  var lostEvents = 0
  /// Commands that were refused, with the place where the queue stopped; the kernel's to report.
  var refused: [(consumer: UInt32, command: SMMUCommand)] = []
  var misbehaviour = Misbehaviour()
  /// Nanoseconds that producers waited and walks took, since the clock was charged last.
  var time: UInt64 = 0
  let costs: CostTable

  /// A command in the queue, and who put it there.
  struct Sent {
    var command: SMMUCommand
    var sender: SMMUCounters.Sender
  }

  /// What a table descriptor says, as the walk cache keeps it.
  struct TablePointer: BitwiseCopyable {
    /// The table, in stage 2.
    var table: UInt64
    /// What table descriptors on the way allow.
    var permissions: SimulatedIOMMU.Permissions
    var level: UInt8, granuleShift: UInt8
  }

  typealias Place = SimulatedIOMMU.Place

  init(_ machine: SimulatedMachine, number: Int) {
    (registers, self.number, costs) = (machine.smmu, number, machine.effectiveCosts)
    tlb = SMMUTLB(capacity: machine.iotlbEntryCount)
    walks = TaggedCache(
      capacity: machine.walkCacheEntryCount,
      empty: TablePointer(table: 0, permissions: [], level: 0, granuleShift: 0))
    stage2 = Stage2Cache(capacity: 16)
    entries = TaggedCache(capacity: machine.configurationCacheEntryCount, empty: StreamTableEntry(word0: 0, word1: 0))
    contexts = TaggedCache(capacity: machine.configurationCacheEntryCount, empty: ContextDescriptor.none)
    commands = CommandQueue(capacityShift: registers.commandQueueShift)
    events = CommandQueue(capacityShift: registers.eventQueueShift)
  }
}

// MARK: - Transactions

extension SMMU {
  /// Translates a request as a whole: every byte of it, or a refusal, for which an event may be in the queue.
  mutating func request(
    _ stream: UInt32, _ iova: UInt64, byteCount: Int, _ access: SimulatedIOMMU.Permissions,
    over domains: DomainTable
  ) throws(SimulatedIOMMU.Refusal) -> [SimulatedIOMMU.Segment] {
    do throws(SMMUFault) {
      return try SimulatedIOMMU.segments(iova, byteCount) { address throws(SMMUFault) in
        try translate(stream, address, access, over: domains)
      }
    } catch {
      record(error, stream, isWrite: access == .write)
      throw SimulatedIOMMU.Refusal(reason: error.reason, iova: error.address, hasEvent: true)
    }
  }

  /// Writes an event record; one that finds the queue full is lost.
  private mutating func record(_ fault: SMMUFault, _ stream: UInt32, isWrite: Bool) {
    guard fault.kind != nil, fault.isRecorded else { return }
    let isLost = misbehaviour.lostEvents > 0
    if isLost { misbehaviour.lostEvents -= 1 }
    if !isLost, events.put(SMMUEvent(fault, stream: stream, isWrite: isWrite)) {
      counters.events += 1
    } else {
      counters.lostEvents += 1
      lostEvents += 1
    }
  }

  /// Translates one address, by what is cached where it is.
  @inline(__always)
  mutating func translate(
    _ stream: UInt32, _ input: UInt64, _ access: SimulatedIOMMU.Permissions,
    over domains: DomainTable
  ) throws(SMMUFault) -> Place {
    let entry = try entry(stream, input)
    switch entry.configuration(registers) {
    case .abort: throw SMMUFault(kind: nil, address: input)
    case .illegal: throw SMMUFault(kind: .badSTE, address: input)
    case .stage2: return try bypass(entry, input, access, over: domains)
    case .nested: break
    }
    let context = try context(stream, entry, input, over: domains)
    let address = context.ignoresTopByte ? input & ~(0xff << 56) : input
    guard address >> UInt64(context.inputBits) == 0, !context.isDisabled else {
      throw SMMUFault(kind: .translation, address: input, isRecorded: context.recordsFaults)
    }
    let found: SMMUTLB.Entry
    if let cached = tlb.find(entry.vmid, context.asid, address) {
      counters.iotlb.hits += 1
      found = cached
    } else {
      counters.iotlb.misses += 1
      found = try walk(address, input, entry, context, over: domains)
    }
    let offset = address & (1 << UInt64(found.shift) - 1)
    guard found.stage1.contains(access) else {
      throw SMMUFault(kind: .permission, address: input, isRecorded: context.recordsFaults)
    }
    guard found.stage2.contains(access) else {
      throw SMMUFault(kind: .permission, address: input, isStage2: true, ipa: found.ipa + offset)
    }
    return Place(host: found.host + UInt(offset), byteCount: 1 << UInt64(found.shift) - offset)
  }

  /// Translates one address after another, as reads of a device; how many went through. What faults is not recorded.
  mutating func touch(
    _ stream: UInt32, _ addresses: [UInt64],
    over domains: DomainTable
  ) -> Int {
    var done = 0
    for address in addresses {
      if let place = try? translate(stream, address, .read, over: domains), place.byteCount > 0 { done += 1 }
    }
    return done
  }

  /// Stage 2 alone.
  private mutating func bypass(
    _ entry: StreamTableEntry, _ input: UInt64, _ access: SimulatedIOMMU.Permissions,
    over domains: DomainTable
  ) throws(SMMUFault) -> Place {
    guard let area = area(entry, input, over: domains) else {
      throw SMMUFault(kind: .translation, address: input, isStage2: true, ipa: input)
    }
    guard area.permissions.contains(access) else {
      throw SMMUFault(kind: .permission, address: input, isStage2: true, ipa: input)
    }
    // The last byte of an area is named, so that one at the top of the address space has a length.
    return Place(host: area.host + UInt(input - area.start), byteCount: area.last - input + 1)
  }
}
