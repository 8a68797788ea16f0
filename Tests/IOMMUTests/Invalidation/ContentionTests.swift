import AddressSpace
import IOMMU
import IOMMUSimulation
import PageTables
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

  /// 1 TiB on a queue of 64 entries by 16 producers, in pieces of every size from 4 KiB to 1 GiB.
  ///
  /// A piece is put in by as many commands as there are places, or by one: so nobody waits for room, and for its sync as long as
  /// those need that are before it.
  @Test func aTebibyteInPieces() {
    let producers = 16, share: UInt64 = (1 << 40) / 16
    func unmapAll(_ budget: (Int) -> Int) -> [ContendedQueue.Account] {
      var queue = ContendedQueue(capacityShift: 6, costs: Self.costs)
      var done = [UInt64](repeating: 0, count: producers), turns = [UInt64](repeating: 0, count: producers)
      let accounts = queue.run(producers: producers, pause: Self.costs.systemCall) { producer, free, _ in
        guard done[producer] < share else { return nil }
        let pages = min(1 << (turns[producer] % 19), (share - done[producer]) >> 12)
        turns[producer] += 1
        done[producer] += pages << 12
        return Self.plan(pages, budget: budget(free))
      }
      #expect(done.allSatisfy { $0 == share })
      return accounts
    }
    let accounts = unmapAll { max($0 - 1, 1) }
    #expect(accounts.allSatisfy { $0.commands <= 63 * $0.batches })
    // Each producer has one batch in the queue at most, and all of them have no more commands than there are entries.
    let bound = UInt64(64 + producers) * 2 * Self.costs.invalidation + UInt64(producers + 1) * Self.costs.sync
    let longest = accounts.map(\.longestWait).max()!
    print("an unmap of 1 TiB by 16 producers: longest wait \(longest) ns of at most \(bound)")
    #expect(longest <= bound)
    #expect(accounts.map(\.stalls).reduce(0, +) <= accounts.map(\.batches).reduce(0, +))
    // Nobody starves: all have as many pieces, and are done at about the same time.
    #expect(Set(accounts.map(\.batches)).count == 1)
    #expect(accounts.map(\.end).min()! * 10 >= accounts.map(\.end).max()! * 9)
    // Whoever does not look at the queue fills it, and everybody waits for room.
    let careless = unmapAll { _ in 63 }
    #expect(careless.map(\.longestWait).max()! > longest * 2)
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
    let before = machine.smmuCounters()
    for device in devices { device.close() }
    let after = machine.smmuCounters()
    #expect(after.process == before.process)
    #expect(after.kernel[.invalidateVMID] - before.kernel[.invalidateVMID] == 64)
    #expect(after.kernel.tlbInvalidations - before.kernel.tlbInvalidations == 64)
    // Two syncs each for the stream table entry, in two steps.
    let configuration = after.kernel[.invalidateSTE] - before.kernel[.invalidateSTE]
    #expect(after.kernel.syncs - before.kernel.syncs == 64 + configuration && configuration == 128)
    var queue = ContendedQueue(capacityShift: 19, costs: Self.costs), left = [Int](repeating: 3, count: 64)
    let accounts = queue.run(producers: 64, pause: 0) { producer, _, _ in
      left[producer] -= 1
      return left[producer] >= 0 ? 1 : nil
    }
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
