import AddressSpace
import IOMMU
import IOMMUSimulation

/// What a simulated SMMUv3 says of the library's addresses and commands, and how fast it is itself.
enum SimulatedCaches {
  private static let address = "0000:01:00.0"

  private static func machine(_ change: (inout SimulatedMachine) -> Void = { _ in }) -> SimulatedHost {
    var machine = SimulatedMachine.smmuv3Nested
    machine.devices = [SimulatedDevice(address, EduModel(addressBits: 64))]
    change(&machine)
    return SimulatedHost(machine)
  }

  private static func open(_ machine: SimulatedHost) throws -> Device {
    try Device(address, on: machine.host, interface: .iommufd, translation: .process)
  }

  private static func touch(_ machine: SimulatedHost, _ addresses: [UInt64]) throws {
    let done = machine.kernel.deviceLooksUp(PCIAddress(address)!, addresses)
    if done != addresses.count { throw Failure(description: "\(addresses.count - done) accesses faulted") }
  }

  // MARK: - The simulator's own speed

  /// `sim_hit`, `sim_miss`: translations a second, in millions: all in the IOTLB, or each by a walk of four levels.
  static func speed(misses: Bool) throws -> Measurement {
    let machine = machine {
      $0.iotlbEntryCount = misses ? 1 : 128
      $0.walkCacheEntryCount = misses ? 1 : 64
    }
    let device = try open(machine), dma = device.dma, count = 64
    var mappings: [Held] = [], addresses: [UInt64] = []
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: count * 4096, alignment: 4096)
    defer { unsafe memory.deallocate() }
    // As one area of the second stage, so that only walks of the first are measured.
    let registration = try unsafe dma.register(unsafe: UnsafeRawBufferPointer(memory))
    for index in 0..<count {
      let page = unsafe UnsafeRawBufferPointer(rebasing: memory[index * 4096..<(index + 1) * 4096])
      // A region of the first table each, so that no table is shared but that one.
      let place = misses ? IOVA(1 << 39 * UInt64(index + 1)) : nil
      mappings.append(Held(try unsafe dma.map(unsafe: page, .toDevice, at: place)))
      addresses += mappings[index].addresses
    }
    let before = machine.smmuCounters()
    let ring = Array(repeating: addresses, count: 512).flatMap { $0 }
    var rates: [Double] = []
    for round in 0...AllocatorPairs.rounds {
      let began = cpuTime()
      try touch(machine, ring)
      if round > 0 { rates.append(Double(ring.count) * 1000 / Double(cpuTime() - began)) }
    }
    let counters = machine.smmuCounters(), all = ring.count * (AllocatorPairs.rounds + 1)
    let reads = counters.descriptorReads - before.descriptorReads
    guard misses ? reads == all * 4 : reads <= count * 4 else {
      throw Failure(description: "\(reads) descriptors were read for \(all) translations")
    }
    for mapping in mappings { try mapping.end() }
    try registration.unregister()
    device.close()
    return Measurement(
      value: median(rates), anchor: "descriptors read a translation", anchorValue: Double(reads) / Double(all),
      repeats: rates.count)
  }

  // MARK: - Counts

  /// `list_commands`: invalidation commands of a descriptor of 64 pages, unmapped as a list, against one unmap a page.
  static func listCommands() throws -> Measurement {
    let machine = machine(), device = try open(machine), dma = device.dma
    var before = machine.smmuCounters().process.tlbInvalidations
    for _ in 0..<64 { _ = try dma.map(try dma.buffer(byteCount: 4096), .fromDevice).unmap() }
    let single = Double(machine.smmuCounters().process.tlbInvalidations - before)
    var list = ScatterList()
    for _ in 0..<64 { list.append(try dma.buffer(byteCount: 4096)) }
    let mapped = try dma.map(list, .fromDevice)
    before = machine.smmuCounters().process.tlbInvalidations
    _ = try mapped.unmap()
    let together = Double(machine.smmuCounters().process.tlbInvalidations - before)
    device.close()
    return Measurement(value: together / single, anchor: "of one unmap a page", anchorValue: single, repeats: 1)
  }

  /// `collateral`: bytes that commands name for each byte that is unmapped, of single mappings of all lengths up to 4 MiB.
  static func collateral() throws -> Measurement {
    let machine = machine(), device = try open(machine), dma = device.dma
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 4 << 20, alignment: 4096)
    defer { unsafe memory.deallocate() }
    let registration = try unsafe dma.register(unsafe: UnsafeRawBufferPointer(memory))
    var byteCount = 0, commands = 0
    let before = machine.smmuCounters()
    for pages in Array(1...64) + Array(stride(from: 65, through: 1024, by: 7)) {
      let part = unsafe UnsafeRawBufferPointer(rebasing: memory[0..<pages * 4096])
      try unsafe dma.map(unsafe: part, .toDevice).unmap()
      byteCount += pages * 4096
      commands += 1
    }
    let counters = machine.smmuCounters(), named = counters.invalidatedBytes - before.invalidatedBytes
    guard counters.process[.invalidateASID] == before.process[.invalidateASID] else {
      throw Failure(description: "a whole tag was invalidated")
    }
    try registration.unregister()
    device.close()
    return Measurement(
      value: Double(named) / Double(byteCount), anchor: "commands an unmap",
      anchorValue: Double(counters.process.tlbInvalidations - before.process.tlbInvalidations) / Double(commands),
      repeats: 1)
  }

  /// `l3_misses`: misses of the last level's tables a page, a ring of descriptors of 64 pages each in one piece against page by
  /// page.
  static func lastTables() throws -> Measurement {
    let (together, apart) = (try RingOfPages(isWhole: true).run(), try RingOfPages(isWhole: false).run())
    return Measurement(
      value: together / apart, anchor: "misses a page in one piece \(thousandths(together)), page by page",
      anchorValue: apart, repeats: 1)
  }

  private static func thousandths(_ value: Double) -> String {
    let text = "\(Int(value * 1000))"
    return "0." + String(repeating: "0", count: max(0, 3 - text.count)) + text
  }

  /// Workload W1: a ring of 2,048 descriptors of 64 pages that the device fills in turn, and short sends between them.
  ///
  /// Page by page, each page comes back when its flow is done with it, so that the ring is an aged one: any of its pages may be the
  /// next. All descriptors share a piece of memory: where that lies is no matter here.
  @safe
  private struct RingOfPages {
    private static let descriptors = 2048, pages = 64
    let isWhole: Bool
    private let machine = SimulatedCaches.machine()
    private let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: pages * 4096, alignment: 4096)

    init(isWhole: Bool) { self.isWhole = isWhole }

    func run() throws -> Double {
      defer { unsafe memory.deallocate() }
      let device = try SimulatedCaches.open(machine), dma = device.dma
      let registration = try unsafe dma.register(unsafe: UnsafeRawBufferPointer(memory))
      var random = Random(seed: 1), ring: [[Held]] = [], sends: [Held] = []
      var touched = 0, before = SMMUCounters()
      for turn in 0..<5 * Self.descriptors {
        if turn == 2 * Self.descriptors { before = machine.smmuCounters() }
        if turn % 3 == 0 { try send(dma, &sends, &random) }
        if ring.count < Self.descriptors {
          ring.append(try post(dma))
          continue
        }
        var done = ring.removeFirst()
        try SimulatedCaches.touch(machine, done.flatMap { $0.addresses })
        if turn >= 2 * Self.descriptors { touched += Self.pages }
        if !isWhole {
          for index in done.indices {
            let other = Int(random.next(UInt64(ring.count))), place = Int(random.next(UInt64(Self.pages)))
            (done[index], ring[other][place]) = (ring[other][place], done[index])
          }
        }
        for mapping in done { try mapping.end() }
        ring.append(try post(dma))
      }
      let misses = machine.smmuCounters().lastTables.misses - before.lastTables.misses
      for mapping in ring.flatMap({ $0 }) + sends { try mapping.end() }
      try registration.unregister()
      device.close()
      return Double(misses) / Double(touched)
    }

    private func post(_ dma: DMADomain) throws -> [Held] {
      if isWhole { return [Held(try unsafe dma.map(unsafe: UnsafeRawBufferPointer(memory), .fromDevice))] }
      return try (0..<Self.pages).map { page in
        let part = unsafe UnsafeRawBufferPointer(rebasing: memory[page * 4096..<(page + 1) * 4096])
        return Held(try unsafe dma.map(unsafe: part, .fromDevice))
      }
    }

    private func send(_ dma: DMADomain, _ sends: inout [Held], _ random: inout Random) throws {
      let length = Int(1 + random.next(16)) * 4096
      sends.append(
        Held(try unsafe dma.map(unsafe: UnsafeRawBufferPointer(rebasing: memory[0..<length]), .toDevice)))
      if sends.count > 64 { try sends.remove(at: Int(random.next(8))).end() }
    }

    /// Numbers that are the same on every machine.
    private struct Random {
      private var state: UInt64
      init(seed: UInt64) { state = seed }

      mutating func next(_ bound: UInt64) -> UInt64 {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return (state >> 33) % bound
      }
    }
  }

  /// A mapping in an array, which does not hold what cannot be copied.
  private final class Held {
    private var mapping: UnsafeMapping?
    /// Of each page.
    let addresses: [UInt64]

    init(_ mapping: consuming UnsafeMapping) {
      let (first, byteCount) = (mapping.address.rawValue, UInt64(mapping.byteCount))
      addresses = stride(from: 0, to: byteCount, by: 4096).map { first + $0 }
      self.mapping = .some(mapping)
    }

    func end() throws { try mapping.take()!.unmap() }
  }
}
