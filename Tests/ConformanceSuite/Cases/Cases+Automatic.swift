import AddressSpace
import IOMMU

/// Maps that are kept for reuse, as a device sees them.
extension Cases {
  private static var protection: Protection {
    var options = AutomaticOptions()
    // Nothing but a drain ends what is kept in these cases.
    (options.isInvalidationDear, options.cacheTimeout) = (true, .seconds(1000))
    return .automatic(options)
  }

  static let automatic: [ConformanceCase] = [
    ConformanceCase(.dma, "automatic/kept-then-drained-faults") { environment in
      let driver = try EduDriver(environment.devices.edu, environment), dma = driver.device.dma
      try dma.switchProtection(to: protection)
      var buffer = try dma.buffer(byteCount: 4096)
      for offset in stride(from: 0, to: 64, by: 8) { buffer.store(UInt64(offset), at: offset) }
      let first = try dma.map(buffer, .bidirectional), address = first.address
      try driver.load(address, byteCount: 64)
      buffer = try first.unmap()
      buffer.store(UInt64.max, at: 0)
      let calls = dma.statistics.systemCalls
      let second = try dma.map(buffer, .bidirectional)
      if dma.calibration?.choice == .mapCache {
        try expectEqual(second.address, address, "the address of the second map")
        try expectEqual(dma.statistics.systemCalls, calls, "system calls after it")
      }
      // What the device had read before comes back, over what was stored meanwhile.
      try driver.store(second.address, byteCount: 64)
      buffer = try second.unmap()
      try expectEqual(buffer.load(at: 0, as: UInt64.self), 0, "the first word")
      try expectEqual(buffer.load(at: 56, as: UInt64.self), 56, "the last word")
      try dma.drain()
      try expectEqual(dma.statistics.cachedBytes, 0, "bytes that are kept")
      let oracle = try FaultOracle(environment)
      try oracle.expectFault(environment.devices.edu, address) { try driver.store(address, byteCount: 8) }
    },
    ConformanceCase(.dma, "automatic/pins-until-drained") { environment in
      let driver = try EduDriver(environment.devices.edu, environment), dma = driver.device.dma
      try dma.switchProtection(to: protection)
      for _ in 0..<100 {
        let buffer = try dma.map(try dma.buffer(byteCount: 5000), .toDevice).unmap()
        _ = try dma.map(buffer, .toDevice).unmap()
      }
      try expectEqual(dma.statistics.cachedBytes, 0, "bytes that are kept of buffers that were dropped")
      let buffer = try dma.map(try dma.buffer(byteCount: 5000), .toDevice).unmap()
      let arena = environment.translation == .process ? dma.statistics.arenaBytes : 0
      if arena == 0 { try expectEqual(try Belongings(environment).pinnedBytes, 8192, "bytes pinned while it is kept") }
      try dma.drain()
      try expectEqual(try Belongings(environment).pinnedBytes, arena, "bytes pinned after the drain")
      _ = consume buffer
    },
  ]
}
