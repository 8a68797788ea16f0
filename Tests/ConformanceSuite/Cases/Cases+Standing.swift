import AddressSpace
import IOMMU

/// Memory that is mapped once for all, as a device sees it.
extension Cases {
  static let standing: [ConformanceCase] = [
    ConformanceCase(.dma, "persistent/no-call") { environment in
      let driver = try EduDriver(environment.devices.edu, environment), dma = driver.device.dma
      try dma.switchProtection(to: .persistent)
      var buffer = try dma.buffer(byteCount: 4096)
      for offset in stride(from: 0, to: 64, by: 8) { buffer.store(UInt64(offset) &* 0x1234_5678_9abc, at: offset) }
      let (calls, pinned) = (dma.statistics.systemCalls, try Belongings(environment).pinnedBytes)
      for _ in 0..<100 { buffer = try dma.map(buffer, .bidirectional).unmap() }
      let mapping = try dma.map(buffer, .bidirectional)
      try driver.load(mapping.address, byteCount: 64)
      try driver.store(mapping.address + 1024, byteCount: 64)
      buffer = try mapping.unmap()
      for offset in stride(from: 0, to: 64, by: 8) {
        let sent = buffer.load(at: offset, as: UInt64.self), received = buffer.load(at: 1024 + offset, as: UInt64.self)
        try expectEqual(received, sent, "what came back")
      }
      try expectEqual(dma.statistics.systemCalls, calls, "system calls after 101 maps and unmaps")
      try expectEqual(try Belongings(environment).pinnedBytes, pinned, "bytes pinned after them")
    },
    ConformanceCase(.dma, "persistent/switched-away-faults") { environment in
      let driver = try EduDriver(environment.devices.edu, environment), dma = driver.device.dma
      try dma.switchProtection(to: .persistent)
      let live = try dma.map(try dma.buffer(byteCount: 64), .bidirectional), address = live.address
      try dma.switchProtection(to: .strict)
      try driver.load(address, byteCount: 64)
      try expectEqual(dma.statistics.persistentBytes, dma.statistics.arenaBytes, "bytes kept for a live mapping")
      var buffer = try live.unmap()
      buffer.store(UInt64(0x1234))
      let oracle = try FaultOracle(environment)
      try oracle.expectFault(environment.devices.edu, address) { try driver.store(address, byteCount: 8) }
      let found = buffer.load(as: UInt64.self)
      try expectEqual(found, 0x1234, "a buffer after its unmap")
      let arena = environment.translation == .process ? dma.statistics.arenaBytes : 0
      try expectEqual(try Belongings(environment).pinnedBytes, arena, "bytes pinned after the last unmap")
    },
    ConformanceCase(.dma, "persistent/registered-memory") { environment in
      let driver = try EduDriver(environment.devices.edu, environment), dma = driver.device.dma
      try dma.switchProtection(to: .persistent)
      let memory = try HostMemory(environment.kernel, byteCount: 65536)
      let bytes = pattern(7, 64)
      memory.store(bytes, at: 100)
      let before = try Belongings(environment).pinnedBytes
      let registration = try unsafe dma.register(unsafe: memory.buffer)
      try expectEqual(try Belongings(environment).pinnedBytes - before, 65536, "bytes pinned by the registration")
      let calls = dma.statistics.systemCalls
      let source = unsafe UnsafeRawBufferPointer(rebasing: memory.buffer[100..<164])
      let target = unsafe UnsafeRawBufferPointer(rebasing: memory.buffer[40960..<45056])
      let from = try unsafe dma.map(unsafe: source, .toDevice), to = try unsafe dma.map(unsafe: target, .fromDevice)
      try driver.load(from.address, byteCount: 64)
      try driver.store(to.address, byteCount: 64)
      try from.unmap()
      try to.unmap()
      try expectEqual(memory.bytes(40960..<41024), bytes, "what came to another part")
      try expectEqual(dma.statistics.systemCalls, calls, "system calls after two maps and unmaps")
      try registration.unregister()
      try expectEqual(try Belongings(environment).pinnedBytes, before, "bytes pinned after the registration")
    },
  ]

  static let bounced: [ConformanceCase] = [
    ConformanceCase(.dma, "bounce/directions") { environment in
      let driver = try EduDriver(environment.devices.edu, environment), dma = driver.device.dma
      try dma.switchProtection(to: .bounce)
      let memory = try HostMemory(environment.kernel, byteCount: 4096)
      memory.fill(0x11)
      let out = try unsafe dma.map(unsafe: memory.buffer, .toDevice)
      memory.fill(0x22)
      try driver.load(out.address, byteCount: 64)
      try driver.store(out.address, byteCount: 64)
      try out.unmap()
      try expectEqual(memory.bytes(0..<64), [UInt8](repeating: 0x22, count: 64), "memory that the device only reads")
      let back = try unsafe dma.map(unsafe: memory.buffer, .fromDevice)
      try driver.store(back.address + 64, byteCount: 64)
      try expectEqual(memory.bytes(64..<128), [UInt8](repeating: 0x22, count: 64), "memory before its unmap")
      try back.unmap()
      try expectEqual(memory.bytes(64..<128), [UInt8](repeating: 0x11, count: 64), "memory after its unmap")
      try expectEqual(dma.statistics.bouncedBytes, 8192, "bytes copied")
    },
    ConformanceCase(.dma, "bounce/part-of-a-page") { environment in
      let driver = try EduDriver(environment.devices.edu, environment), dma = driver.device.dma
      try dma.switchProtection(to: .bounce)
      let memory = try HostMemory(environment.kernel, byteCount: 8192)
      memory.fill(0x33)
      let part = unsafe UnsafeRawBufferPointer(rebasing: memory.buffer[4090..<4110])
      let mapping = try unsafe dma.map(unsafe: part, .bidirectional)
      memory.fill(0x44)
      try driver.load(mapping.address, byteCount: 20)
      mapping.sync(for: .device, 0..<4)
      try driver.load(mapping.address, byteCount: 8)
      try driver.store(mapping.address, byteCount: 20)
      mapping.sync(for: .cpu, 2..<10)
      var wanted = [UInt8](repeating: 0x44, count: 8192)
      for index in 4094..<4100 { wanted[index] = 0x33 }
      try expectEqual(memory.bytes(0..<8192), wanted, "memory after a part was synced")
      try mapping.unmap()
      for index in 4100..<4110 { wanted[index] = 0x33 }
      try expectEqual(memory.bytes(0..<8192), wanted, "memory after its unmap")
    },
    ConformanceCase(.dma, "bounce/list") { environment in
      let driver = try EduDriver(environment.devices.edu, environment), dma = driver.device.dma
      try dma.switchProtection(to: .bounce)
      let memory = try HostMemory(environment.kernel, byteCount: 4096)
      memory.store(pattern(9, 100), at: 50)
      var list = try buffers(dma, [4096])
      unsafe list.append(unsafe: UnsafeRawBufferPointer(rebasing: memory.buffer[50..<150]))
      let mapped = try dma.map(list, .bidirectional)
      try driver.load(mapped.address(ofBufferAt: 1), byteCount: 100)
      try driver.store(mapped.address(ofBufferAt: 0), byteCount: 100)
      list = try mapped.unmap()
      let found = list.withBuffer(at: 0) { buffer in (0..<100).map { buffer.load(at: $0, as: UInt8.self) } }
      try expectEqual(found, pattern(9, 100), "what came from one part to the other")
      try expectEqual(memory.bytes(50..<150), pattern(9, 100), "the part that was sent")
    },
  ]
}
