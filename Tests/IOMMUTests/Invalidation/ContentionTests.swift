import AddressSpace
import AddressSpaceModels
import IOMMU
import IOMMUSimulation
import PageTables
import Synchronization
import Testing

/// Several producers at one simulated command queue: bounds, and what the budget makes of a crowd.
@Suite struct ContentionTests {
  private static let costs = CostTable.smmu300

  private static func plan(_ pages: UInt64, budget: Int) -> Int {
    var gather = Gather(tracksRanges: true), plan = SMMUPlan(.init(asid: 1, granule: 12, hasRanges: false))
    gather.add(0, pages << 12, leafShift: 12)
    plan.make(for: gather, budget: budget)
    return plan.count
  }

  /// By hand: a ticket, puts of 20 ns, commands of 20 ns, and a sync of 280.
  @Test func times() {
    var queue = ContendedQueue(capacityShift: 2, costs: Self.costs)
    #expect(queue.freeCount(at: 0) == 4)
    // Ticket 20, put 40, done 60; sync put 60, done 340.
    #expect(queue.submit(commands: 1, at: 0) == .init(end: 340))
    // Ticket 40, and behind the first's put at 60; put 80, 100 and 120, done 360, 380 and 660.
    #expect(queue.submit(commands: 2, at: 0) == .init(end: 660, stalls: 0))
    #expect(queue.freeCount(at: 339) == 0 && queue.freeCount(at: 340) == 1)
  }

  /// More commands than places: each waits for one.
  @Test func stalls() {
    var queue = ContendedQueue(capacityShift: 1, costs: Self.costs)
    let passage = queue.submit(commands: 4, at: 0)
    #expect(passage.stalls == 0, "the hardware is as fast as the producer")
    // Put at 120, behind the first's sync; the next finds the queue full until that is done, at 400.
    #expect(queue.submit(commands: 4, at: 0) == .init(end: 760, stalls: 1), "but not while it syncs")
    var sum = 0
    let accounts = queue.run(producers: 3, pause: 0) { _, _, _ in
      sum += 1
      return sum > 9 ? nil : 1
    }
    #expect(accounts.map(\.batches) == [3, 3, 3])
  }

  /// Pages of a piece: any number up to 1 GiB, and as many between two neighbouring powers of two as between any others.
  private static func piece(_ random: inout SplitMix64) -> UInt64 {
    let most = UInt64(1) << UInt64.random(in: 0...18, using: &random)
    return UInt64.random(in: most / 2 + 1...most, using: &random)
  }

  /// 1 TiB on a queue of 64 entries by 16 producers, in pieces of every size from 4 KiB to 1 GiB.
  ///
  /// A piece is put in by as many commands as there are places, or by one: so nobody waits for room, and for its sync as long as
  /// those need that are before it.
  @Test(arguments: [1, 2, 3] as [UInt64]) func aTebibyteInPieces(seed: UInt64) {
    let producers = 16, share: UInt64 = (1 << 40) / 16
    func unmapAll(_ budget: (Int) -> Int) -> (accounts: [ContendedQueue.Account], lead: Int) {
      var queue = ContendedQueue(capacityShift: 6, costs: Self.costs)
      var random = (0..<16).map { SplitMix64(seed: seed << 8 + UInt64($0)) }
      var done = [UInt64](repeating: 0, count: producers), turns = [Int](repeating: 0, count: producers), lead = 0
      let accounts = queue.run(producers: producers, pause: Self.costs.systemCall) { producer, free, _ in
        guard done[producer] < share else { return nil }
        let pages = min(Self.piece(&random[producer]), (share - done[producer]) >> 12)
        let waiting = turns.indices.filter { done[$0] < share }
        lead = max(lead, turns[producer] - waiting.map { turns[$0] }.min()!)
        turns[producer] += 1
        done[producer] += pages << 12
        return Self.plan(pages, budget: budget(free))
      }
      #expect(done.allSatisfy { $0 == share } && accounts.map(\.batches) == turns)
      return (accounts, lead)
    }
    let (accounts, lead) = unmapAll { InvalidationBudget.limit(freeSlots: $0) }
    #expect(accounts.allSatisfy { $0.commands <= 63 * $0.batches })
    // Each producer has one batch in the queue at most, and all of them have no more commands than there are entries.
    let bound = UInt64(64 + producers) * 2 * Self.costs.invalidation + UInt64(producers + 1) * Self.costs.sync
    let longest = accounts.map(\.longestWait).max()!
    print("an unmap of 1 TiB by 16 producers, seed \(seed): longest wait \(longest) ns of at most \(bound)")
    #expect(longest <= bound)
    #expect(accounts.map(\.stalls).reduce(0, +) <= accounts.map(\.batches).reduce(0, +))
    // Nobody starves: whoever is served has had no turn more than anybody else who has something left.
    #expect(lead <= 1)
    // Whoever does not look at the queue fills it, and everybody waits for room: nothing is bounded so.
    let careless = unmapAll { _ in 63 }.accounts
    #expect(careless.map(\.longestWait).max()! > bound)
    #expect(careless.map(\.stalls).reduce(0, +) > 100 * accounts.map(\.stalls).reduce(0, +))
  }

  /// 64 domains of 8 GiB each close at once, on one SMMU without range commands: an invalidation each and its sync.
  @Test func sixtyFourDomainsClose() throws {
    var description = SimulatedMachine.smmuv3Nested
    description.smmu.hasRangeInvalidation = false
    let names = (0..<64).map { "0000:0\($0 / 32 + 1):\($0 % 32 < 16 ? "0" : "1")\(String($0 % 16, radix: 16)).0" }
    description.devices = names.map { SimulatedDevice($0, ScratchModel()) }
    let machine = SimulatedHost(description)
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 32 << 20, alignment: 2 << 20)
    defer { unsafe memory.deallocate() }
    let host = UInt64(UInt(bitPattern: memory.baseAddress!))
    let devices = try names.map { try Device($0, on: machine.host, translation: .process) }
    for device in devices {
      let tables = device.dma.processOwned!
      _ = try tables.register(address: host, byteCount: 32 << 20, file: nil, areaByteCount: 32 << 20)
      for index in 0..<256 as Range<UInt64> {
        try tables.map(iova: 1 << 40 + index << 25, address: host, byteCount: 32 << 20, access: .readWrite)
      }
    }
    let before = machine.smmuCounters(), next = Atomic<Int>(0)
    // At once: a thread each.
    WorkerThreads.run(devices.count) {
      let index = next.wrappingAdd(1, ordering: .relaxed).oldValue
      if index < devices.count { devices[index].close() }
    }
    #expect(next.load(ordering: .relaxed) == devices.count)
    let after = machine.smmuCounters()
    #expect(after.process == before.process)
    #expect(after.kernel[.invalidateVMID] - before.kernel[.invalidateVMID] == 64)
    #expect(after.kernel.tlbInvalidations - before.kernel.tlbInvalidations == 64)
    // Two syncs each for the stream table entry, in two steps.
    let configuration = after.kernel[.invalidateSTE] - before.kernel[.invalidateSTE]
    let syncs = after.kernel.syncs - before.kernel.syncs
    #expect(syncs == 64 + configuration && configuration == 128)
    // What was sent, on a queue in time: each domain has its share, a batch for each sync, and all come at once.
    let sent = after.kernel.tlbInvalidations - before.kernel.tlbInvalidations + configuration
    var queue = ContendedQueue(capacityShift: 19, costs: Self.costs)
    var left = [Int](repeating: syncs / devices.count, count: devices.count)
    let accounts = queue.run(producers: devices.count, pause: 0) { producer, _, _ in
      left[producer] -= 1
      return left[producer] >= 0 ? sent / syncs : nil
    }
    #expect(accounts.map(\.commands).reduce(0, +) == sent && accounts.map(\.batches).reduce(0, +) == syncs)
    let longest = accounts.map(\.longestWait).max()!
    print("64 domains of 8 GiB close at once: longest wait \(longest) ns")
    #expect(longest <= 64 * (Self.costs.sync + 3 * Self.costs.invalidation))
  }

  /// Another domain floods the queue: less is put in, and the whole address space goes instead; when it is over, the budget comes
  /// back. What was unmapped is out of reach at every moment.
  @Test func aFloodedQueue() throws {
    var description = SimulatedMachine.smmuv3Nested
    description.smmu.hasRangeInvalidation = false
    let name = "0000:00:02.0", machine = SimulatedHost(description, devices: [name: ScratchModel()])
    let device = try Device(name, on: machine.host, translation: .process), dma = device.dma
    let budget = try #require(dma.processOwned as? ProcessOwnedSMMU).budget
    /// The commands of one unmap of 16 pages.
    func unmap() throws -> (byAddress: Int, byASID: Int) {
      let mapping = try dma.map(try dma.buffer(byteCount: 16 * 4096), .bidirectional), address = mapping.address
      #expect(machine.storm(16, from: name, at: address.rawValue) == 0)
      let before = machine.smmuCounters().process
      _ = try mapping.unmap()
      #expect(machine.storm(16, from: name, at: address.rawValue) == 16)
      let after = machine.smmuCounters().process
      return (
        after[.invalidateAddress] - before[.invalidateAddress], after[.invalidateASID] - before[.invalidateASID]
      )
    }
    #expect(try unmap() == (16, 0) && budget.limit == 63)
    machine.crowdCommandQueue(15)
    for _ in 0..<20 { _ = try unmap() }
    #expect(budget.limit == 1)
    #expect(try unmap() == (0, 1))
    machine.crowdCommandQueue(0)
    var unmaps = 0
    while budget.limit < 63, unmaps < 1000 {
      _ = try unmap()
      unmaps += 1
    }
    #expect(budget.limit == 63 && unmaps > 100)
    #expect(try unmap() == (16, 0))
    device.close()
  }
}
