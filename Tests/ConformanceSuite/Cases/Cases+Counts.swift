import AddressSpace
import IOMMU

/// Operations between marks, each alone, so that the commands of the IOMMU can be counted in QEMU's trace.
///
/// `PHASE name n` says that what lies between `mark n` and the next `mark 0` belongs to that operation, and `SENT name tlbi sync`
/// what of it the process sent itself.
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
    let before = dma.statistics
    try environment.mark(number)
    try body()
    try environment.mark(0)
    let after = dma.statistics
    environment.say("SENT \(name) \(after.invalidations - before.invalidations) \(after.syncs - before.syncs)")
  }

  private final class UnsafeBox {
    let mapping: UnsafeMapping
    init(_ mapping: consuming UnsafeMapping) { self.mapping = mapping }
  }
}
