import AddressSpace
import IOMMU
import IOMMUSimulation

/// Operations between marks, each alone, so that the commands of the IOMMU can be counted in QEMU's trace.
///
/// `PHASE name n` says that what lies between `mark n` and the next `mark 0` belongs to that operation, and `SENT name tlbi sync`
/// what of it the process sent itself. On tables of the process `EXPECT name …` says which commands are right, by opcode, as
/// ``ExpectedCommands/text`` has them. The simulated SMMUv3 is held to the same right here.
extension Cases {
  static let counts: [ConformanceCase] = [
    ConformanceCase(.counts, "count/unmap_1") { try count("unmap_1", 1, $0, pages: 1) },
    ConformanceCase(.counts, "count/unmap_64") { try count("unmap_64", 2, $0, pages: 64) },
    ConformanceCase(.counts, "count/unmap_512") { try count("unmap_512", 3, $0, pages: 512) },
    ConformanceCase(.counts, "count/unmap_1024") { try count("unmap_1024", 4, $0, pages: 1024) },
    ConformanceCase(.counts, "count/unmap_list_64") { environment in
      let device = try environment.open(environment.devices.edu)
      var list = ScatterList(capacity: 64)
      for _ in 0..<64 { list.append(try device.dma.buffer(byteCount: 4096)) }
      // Neighbours in memory: one area, as a mapping of 64 pages.
      var mapped: MappedList? = try device.dma.map(list, .bidirectional)
      try expectEqual(
        device.dma.statistics.systemCalls, environment.calls(1, process: 0), "system calls to map the list")
      try phase("unmap_list_64", 5, environment, device.dma) { _ = try mapped.take()!.unmap() }
      try expectEqual(
        device.dma.statistics.systemCalls, environment.calls(2, process: 1), "system calls after the unmap")
    },
    ConformanceCase(.counts, "count/close_64") { environment in
      let device = try environment.open(environment.devices.edu)
      var list: [UnsafeBox] = []
      let memory = try HostMemory(environment.kernel, byteCount: 64 * 4096)
      // Counted apart: in caching mode every map flushes, as what was not present may be cached there.
      try phase("map_64", 7, environment, device.dma) {
        for index in 0..<64 {
          let page = unsafe UnsafeRawBufferPointer(start: memory.base + index * 4096, count: 4096)
          list.append(UnsafeBox(try unsafe device.dma.map(unsafe: page, .bidirectional)))
        }
      }
      try phase("close_64", 6, environment, device.dma) { device.close() }
      list.removeAll()
    },
  ]

  /// One mapping of so many pages, unmapped at once.
  private static func count(_ name: String, _ number: UInt8, _ environment: Environment, pages: Int) throws {
    let device = try environment.open(environment.devices.edu)
    var mapping: Mapping? = try device.dma.map(try device.dma.buffer(byteCount: pages * 4096), .bidirectional)
    let before = device.dma.statistics.systemCalls
    try phase(name, number, environment, device.dma) { _ = try mapping.take()!.unmap() }
    try expectEqual(device.dma.statistics.systemCalls - before, 1, "system calls")
  }

  static func phase(
    _ name: String, _ number: UInt8, _ environment: Environment, _ dma: DMADomain, _ body: () throws -> Void
  ) throws {
    environment.say("PHASE \(name) \(number)")
    let before = dma.statistics, counters = environment.simulated?.smmuCounters()
    try environment.mark(number)
    try body()
    try environment.mark(0)
    let after = dma.statistics
    environment.say("SENT \(name) \(after.invalidations - before.invalidations) \(after.syncs - before.syncs)")
    guard environment.translation == .process, let expected = expected[name] else { return }
    environment.say("EXPECT \(name) \(expected.text)")
    guard environment.nestsOnSMMU, let counters, let machine = environment.simulated else { return }
    try expected.expect(from: counters, to: machine.smmuCounters())
  }

  /// On tables of the process, on an SMMUv3.
  private static let expected: [String: ExpectedCommands] = [
    // One range command whatever the pages, where tables went as well.
    "unmap_1": ExpectedCommands(process: [.invalidateAddress: 1, .sync: 1], pages: 1),
    "unmap_64": ExpectedCommands(process: [.invalidateAddress: 1, .sync: 1], pages: 64),
    "unmap_512": ExpectedCommands(process: [.invalidateAddress: 1, .sync: 1], pages: 512),
    "unmap_1024": ExpectedCommands(process: [.invalidateAddress: 1, .sync: 1], pages: 1024),
    "unmap_list_64": ExpectedCommands(process: [.invalidateAddress: 1, .sync: 1], pages: 64),
    // The memory is the caller's and is pinned map by map; nothing is cached of what was not there.
    "map_64": ExpectedCommands(),
    // Nothing from the process, and the whole tag once by the kernel at the last detach; no invalidation after it.
    "close_64": ExpectedCommands(kernel: [.invalidateVMID: 1, .sync: 1]),
    "close_100000": ExpectedCommands(kernel: [.invalidateVMID: 1, .sync: 1]),
    // The tag stays in use.
    "close_shared": ExpectedCommands(process: [.invalidateASID: 1, .sync: 1]),
    // 255 entries a flush.
    "lazy_10000": ExpectedCommands(process: [.invalidateASID: 40, .sync: 40]),
    // For each area what is cached of stage 2, and all of stage 1 after it.
    "register_64": ExpectedCommands(kernel: [.invalidateStage2: 64, .invalidateAll: 64, .sync: 128]),
    // Without commands for ranges one a block, as long as a round has room.
    "blocks_63": ExpectedCommands(process: [.invalidateAddress: 63, .sync: 1], pages: 63),
    "blocks_64": ExpectedCommands(process: [.invalidateASID: 1, .sync: 1]),
  ]

  private final class UnsafeBox {
    let mapping: UnsafeMapping
    init(_ mapping: consuming UnsafeMapping) { self.mapping = mapping }
  }
}
