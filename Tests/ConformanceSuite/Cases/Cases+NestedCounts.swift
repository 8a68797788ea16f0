import AddressSpace
import IOMMU
import IOMMUSimulation

/// What only tables of the process have: operations between marks, as in ``counts``.
extension Cases {
  static let nestedCounts: [ConformanceCase] = [
    ConformanceCase(.counts, "count/nested-close_100000") { environment in
      let device = try environment.open(environment.devices.edu)
      let maps = try LiveMaps(device.dma, environment, count: 100_000)
      try phase("close_100000", 12, environment, device.dma) { device.close() }
      maps.drop()
    },
    ConformanceCase(.counts, "count/nested-close_shared") { environment in
      let first = try environment.open(environment.devices.edu)
      let second = try environment.open(environment.devices.secondEdu, sharing: first.dma)
      let maps = try LiveMaps(second.dma, environment, count: 64)
      try phase("close_shared", 13, environment, first.dma) { second.close() }
      maps.drop()
      first.close()
    },
    ConformanceCase(.counts, "count/nested-register_64") { environment in
      let device = try environment.open(environment.devices.edu)
      // No two of them are neighbours.
      let memory = try HostMemory(environment.kernel, byteCount: 128 * 4096)
      try phase("register_64", 14, environment, device.dma) {
        let registrations = try (0..<64).map { index in
          let page = unsafe UnsafeRawBufferPointer(start: memory.base + index * 8192, count: 4096)
          return Registered(try unsafe device.dma.register(unsafe: page))
        }
        for registration in registrations { try registration.end() }
      }
      device.close()
    },
    ConformanceCase(.counts, "count/nested-blocks_63") { try blocks("blocks_63", 15, 63, $0) },
    ConformanceCase(.counts, "count/nested-blocks_64") { try blocks("blocks_64", 16, 64, $0) },
  ]

  /// One unmap of so many blocks of 2 MiB, on an SMMU that says it knows no commands for ranges.
  private static func blocks(_ name: String, _ number: UInt8, _ count: UInt64, _ environment: Environment) throws {
    let kernel = FaultingKernel(environment.kernel)
    kernel.hideRangeInvalidation()
    let device = try environment.asking(kernel).open(environment.devices.edu)
    guard let tables = device.dma.processOwned as? ProcessOwnedSMMU else { throw Failure("No tables of the process") }
    // An emulated SMMU takes so long for a command that everything would be invalidated long before a round is full.
    tables.budget.hold(at: SMMUPlan.roundLength)
    let memory = try HostMemory(environment.kernel, byteCount: 2 << 20), start: UInt64 = 0x4000_0000
    let registration = try unsafe device.dma.register(unsafe: memory.buffer)
    // The same memory over and over. By the tables themselves: a domain unmaps an area of 32 MiB at a time.
    for index in 0..<count {
      try tables.map(
        iova: start + index << 21, address: memory.address, byteCount: 2 << 20, access: .readWrite)
    }
    try phase(name, number, environment, device.dma) {
      try expectEqual(try tables.unmap(iova: start, byteCount: count << 21), count << 21, "bytes")
    }
    try registration.unregister()
    device.close()
  }

  /// Mappings of one page that was registered.
  private final class LiveMaps {
    private final class Item {
      let mapping: UnsafeMapping
      init(_ mapping: consuming UnsafeMapping) { self.mapping = mapping }
    }
    private let memory: HostMemory
    private let registration: Registered
    private var items: [Item] = []

    init(_ dma: DMADomain, _ environment: Environment, count: Int) throws {
      memory = try HostMemory(environment.kernel, byteCount: 4096)
      registration = Registered(try unsafe dma.register(unsafe: memory.buffer))
      items.reserveCapacity(count)
      for _ in 0..<count { items.append(Item(try unsafe dma.map(unsafe: memory.buffer, .bidirectional))) }
    }

    func drop() { items = [] }
  }

  private final class Registered {
    private var registration: Registration?
    init(_ registration: consuming Registration) { self.registration = consume registration }
    func end() throws { if let registration = registration.take() { try registration.unregister() } }
  }
}
