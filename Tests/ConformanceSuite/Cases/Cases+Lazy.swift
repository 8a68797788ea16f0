import AddressSpace
import IOMMU

/// Unmaps that wait for a flush, as a device sees them.
extension Cases {
  static let lazyModes: [ConformanceCase] = FlushQueueOptions.Topology.allCases.flatMap { topology in
    let name = topology == .single ? "single" : "per-cpu"
    // Nothing but drain() flushes in these cases.
    let protection = Protection.lazy(FlushQueueOptions(topology, timeout: .seconds(1000)))
    return [
      ConformanceCase(.dma, "lazy/\(name)-drained-faults") { environment in
        let driver = try EduDriver(environment.devices.edu, environment), dma = driver.device.dma
        try dma.switchProtection(to: protection)
        let memory = try HostMemory(environment.kernel, byteCount: 4096)
        memory.fill(0x11)
        let mapping = try unsafe dma.map(unsafe: memory.buffer, .bidirectional, at: IOVA(0x6400_0000))
        let address = mapping.address
        try driver.load(address, byteCount: 64)
        memory.fill(0x22)
        try mapping.unmap()
        try driver.store(address, byteCount: 64)
        try expectEqual(
          memory.bytes(0..<64), [UInt8](repeating: 0x11, count: 64), "before the drain the device still reaches it")
        memory.fill(0x33)
        try dma.drain()
        let oracle = try FaultOracle(environment)
        try oracle.expectFault(environment.devices.edu, address) { try driver.store(address, byteCount: 8) }
        try expectEqual(memory.bytes(0..<64), [UInt8](repeating: 0x33, count: 64), "after the drain")
      },
      ConformanceCase(.dma, "lazy/\(name)-not-given-out-again") { environment in
        let driver = try EduDriver(environment.devices.edu, environment), dma = driver.device.dma
        try dma.switchProtection(to: protection)
        var seen: Set<IOVA> = []
        for _ in 0..<100 {
          let mapping = try dma.map(try dma.buffer(byteCount: 5000), .toDevice)
          try expect(seen.insert(mapping.address).inserted, "\(mapping.address) was given out twice before the drain")
          _ = try mapping.unmap()
        }
        try expectEqual(dma.statistics.queuedBytes, 100 * 8192, "bytes that wait")
        try dma.drain()
        // Tables of the process have the arena pinned, mapped or not.
        let arena = environment.translation == .process ? dma.statistics.arenaBytes : 0
        try expectEqual(try Belongings(environment).pinnedBytes, arena, "bytes pinned after the drain")
        let mapping = try dma.map(try dma.buffer(byteCount: 5000), .toDevice)
        // Debug mode has addresses wait longer.
        let mayBeNew = dma.debugOptions != nil
        try expect(mayBeNew || seen.contains(mapping.address), "\(mapping.address) is new, though all are free")
        _ = try mapping.unmap()
      },
      ConformanceCase(.dma, "lazy/\(name)-list-waits-as-one") { environment in
        let driver = try EduDriver(environment.devices.edu, environment), dma = driver.device.dma
        try dma.switchProtection(to: protection)
        try dma.setConstraints(DMAConstraints(boundary: PageSize(shift: 13)))
        let memory = try HostMemory(environment.kernel, byteCount: 8192)
        memory.fill(0x11)
        var list = try buffers(dma, [4096])
        // Begins on the boundary: a gap lies before it.
        unsafe list.append(unsafe: memory.buffer)
        let mapped = try dma.map(list, .bidirectional), address = mapped.address(ofBufferAt: 1)
        try expectEqual(mapped.byteCount, 4 * 4096, "bytes of the range")
        try driver.load(address, byteCount: 64)
        memory.fill(0x22)
        let calls = dma.statistics.systemCalls
        _ = try mapped.unmap()
        try expectEqual(dma.statistics.systemCalls, calls, "system calls after the unmap")
        try driver.store(address, byteCount: 64)
        try expectEqual(
          memory.bytes(0..<64), [UInt8](repeating: 0x11, count: 64), "before the drain the device still reaches it")
        try dma.drain()
        try expectEqual(
          dma.statistics.systemCalls, calls + environment.calls(1, process: 2), "system calls after the drain")
        let arena = environment.translation == .process ? dma.statistics.arenaBytes : 0
        try expectEqual(try Belongings(environment).pinnedBytes, arena, "bytes pinned after the drain")
        let oracle = try FaultOracle(environment)
        try oracle.expectFault(environment.devices.edu, address) { try driver.store(address, byteCount: 8) }
      },
    ]
  }
}
