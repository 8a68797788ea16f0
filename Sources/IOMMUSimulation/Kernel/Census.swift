/// What exists in a simulated kernel because somebody made it. All zero again after everything was closed.
package struct Census: Hashable, Sendable, CustomStringConvertible {
  /// Open descriptors of device nodes.
  package var descriptors = 0
  /// iommufd objects.
  package var addressSpaces = 0, pageTables = 0
  /// vIOMMUs, vDEVICEs and event queues.
  package var nestingObjects = 0
  /// Mapped areas of all IOASes and containers.
  package var areas = 0
  /// Domains of the IOMMU.
  package var domains = 0
  /// Bytes pinned, by iommufd and by type1.
  package var pinnedBytes: UInt64 = 0
  /// Memory mappings, memory files and event descriptors of the process.
  package var memoryMappings = 0, memoryFiles = 0, events = 0

  package init() {}
  package var isEmpty: Bool { self == Census() }

  /// What is not zero.
  package var description: String {
    let counts: [(String, UInt64)] = [
      ("descriptors", UInt64(descriptors)), ("IOAS", UInt64(addressSpaces)), ("HWPT", UInt64(pageTables)),
      ("vIOMMU, vDEVICE, vEVENTQ", UInt64(nestingObjects)),
      ("areas", UInt64(areas)), ("domains", UInt64(domains)), ("pinned bytes", pinnedBytes),
      ("memory mappings", UInt64(memoryMappings)), ("memory files", UInt64(memoryFiles)),
      ("events", UInt64(events)),
    ]
    let left = counts.filter { $0.1 != 0 }.map { "\($0.1) \($0.0)" }
    return left.isEmpty ? "nothing left" : left.joined(separator: ", ")
  }
}

extension SimulatedKernel {
  /// Counts what exists now.
  package var census: Census {
    locked { state in
      var census = Census()
      census.descriptors = state.descriptors.files.count + state.eventQueues.count
      census.nestingObjects = state.nestingObjectCount
      (census.addressSpaces, census.pageTables) = (state.ioasCount, state.pageTableCount)
      census.areas = state.areaCount
      census.domains = state.iommu?.domainCount ?? 0
      census.pinnedBytes =
        (state.memoryLock.pinnedPages + state.memoryLock.processPages) * MemoryLock.pageByteCount
      census.memoryMappings = state.memory.mappingCount
      (census.memoryFiles, census.events) = (state.memory.files.count, state.memory.events.count)
      return census
    }
  }
}
