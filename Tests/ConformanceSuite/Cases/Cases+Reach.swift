import AddressSpace
import IOMMU
import NVMeDriver

/// What devices must not reach: it faults, and no memory changes.
extension Cases {
  static let outOfReach: [ConformanceCase] = [
    ConformanceCase(.dma, "reach/unmapped") { environment in
      let driver = try EduDriver(environment.devices.edu, environment)
      let oracle = try FaultOracle(environment)
      try oracle.expectFault(environment.devices.edu, IOVA(0x7000_0000)) {
        try driver.store(IOVA(0x7000_0000), byteCount: 8)
      }
    },
    ConformanceCase(.dma, "reach/read-only") { environment in
      let driver = try EduDriver(environment.devices.edu, environment)
      let memory = try HostMemory(environment.kernel, byteCount: 4096)
      memory.fill(0x33)
      let mapping = try unsafe driver.device.dma.map(
        unsafe: memory.buffer, .toDevice, at: IOVA(0x6100_0000))
      let oracle = try FaultOracle(environment)
      try oracle.expectFault(environment.devices.edu, mapping.address) {
        try driver.store(mapping.address, byteCount: 8)
      }
      try expectEqual(
        memory.bytes(0..<4096), [UInt8](repeating: 0x33, count: 4096), "memory for reading only")
      try mapping.unmap()
    },
    ConformanceCase(.dma, "reach/beyond-mapping") { environment in
      let driver = try EduDriver(environment.devices.edu, environment)
      let memory = try HostMemory(environment.kernel, byteCount: 8192)
      memory.fill(0x44)
      // The first page only; the transfer goes on into the second, which is memory of ours but not the device's.
      let first = unsafe UnsafeRawBufferPointer(start: memory.base, count: 4096)
      let mapping = try unsafe driver.device.dma.map(unsafe: first, .bidirectional, at: IOVA(0x6200_0000))
      let oracle = try FaultOracle(environment)
      try oracle.expectFault(environment.devices.edu, IOVA(0x6200_1000)) {
        try driver.store(IOVA(mapping.address.rawValue + 4092), byteCount: 8)
      }
      try expectEqual(memory.bytes(4096..<8192), [UInt8](repeating: 0x44, count: 4096), "the page after")
      try mapping.unmap()
    },
    ConformanceCase(.dma, "reach/other-domain") { environment in
      // Two devices, two domains: the same address leads each to its own memory.
      let first = try EduDriver(environment.devices.edu, environment)
      let second = try EduDriver(environment.devices.secondEdu, environment)
      let memory = try HostMemory(environment.kernel, byteCount: 4096)
      memory.fill(0x55)
      let mapping = try unsafe first.device.dma.map(
        unsafe: memory.buffer, .bidirectional, at: IOVA(0x6300_0000))
      try second.store(mapping.address, byteCount: 8)
      try expectEqual(memory.bytes(0..<8), [UInt8](repeating: 0x55, count: 8), "another domain's memory")
      try mapping.unmap()
    },
    ConformanceCase(.dma, "reach/bus-master-off") { environment in
      let driver = try EduDriver(environment.devices.edu, environment)
      let memory = try HostMemory(environment.kernel, byteCount: 4096)
      memory.fill(0x66)
      let mapping = try unsafe driver.device.dma.map(unsafe: memory.buffer, .bidirectional)
      try driver.device.config.updateCommand(clear: .busMaster)
      try driver.store(mapping.address, byteCount: 8)
      try expectEqual(
        memory.bytes(0..<8), [UInt8](repeating: 0x66, count: 8), "memory with bus mastering off")
      try driver.device.config.updateCommand(set: .busMaster)
      try driver.store(mapping.address, byteCount: 8)
      try expect(
        memory.bytes(0..<8) != [UInt8](repeating: 0x66, count: 8), "Bus mastering on again, and no DMA")
      try mapping.unmap()
    },
    ConformanceCase(.dma, "reach/close-stops") { environment in
      // The transfer is under way when the device is closed.
      let driver = try EduDriver(environment.devices.edu, environment)
      let memory = try HostMemory(environment.kernel, byteCount: 4096)
      memory.fill(0x77)
      let mapping = try unsafe driver.device.dma.map(unsafe: memory.buffer, .bidirectional)
      driver.start(store: mapping.address, byteCount: 64)
      driver.device.close()
      let now = memory.bytes(0..<64)
      environment.kernel.sleep(.milliseconds(150))
      try expectEqual(memory.bytes(0..<64), now, "memory after close")
      try mapping.unmap()
    },
  ]

  static let outOfReachNVMe: [ConformanceCase] = [
    ConformanceCase(.dma, "reach/nvme-unmapped") { environment in
      let controller = try NVMeController(try environment.open(environment.devices.nvme))
      let oracle = try FaultOracle(environment)
      try oracle.expectFault(environment.devices.nvme, IOVA(0x7100_0000)) {
        do throws(NVMeError) {
          try controller.read(block: 0, count: 1, into: IOVA(0x7100_0000))
        } catch {
          // Hardware ends the command with an error; QEMU's controller takes no notice.
          guard case .status = error else { throw Failure("\(error)") }
        }
      }
      controller.device.close()
    }
  ]

  /// Cases that must fail when UNMAP is swallowed: the negative control runs these very functions.
  static let afterUnmap: [ConformanceCase] = [
    ConformanceCase(.dma, "reach/after-unmap-edu") { environment in
      let driver = try EduDriver(environment.devices.edu, environment)
      let memory = try HostMemory(environment.kernel, byteCount: 4096)
      let address = IOVA(0x6000_0000)
      memory.fill(0x11)
      let mapping = try unsafe driver.device.dma.map(unsafe: memory.buffer, .bidirectional, at: address)
      // Through the page once before, so that the IOMMU's cache has it.
      try driver.load(address, byteCount: 64)
      memory.fill(0x22)
      try mapping.unmap()
      try driver.store(address, byteCount: 64)
      try expectEqual(memory.bytes(0..<64), [UInt8](repeating: 0x22, count: 64), "memory after its unmap")
    },
    ConformanceCase(.dma, "reach/after-unmap-list") { environment in
      let driver = try EduDriver(environment.devices.edu, environment)
      var list = ScatterList()
      for _ in 0..<3 { list.append(try driver.device.dma.buffer(byteCount: 64)) }
      for index in 0..<3 { list.withBuffer(at: index) { $0.store(UInt64(0x1234), at: 0) } }
      let mapped = try driver.device.dma.map(list, .bidirectional)
      let address = mapped.segments[1].address
      try driver.load(address, byteCount: 8)
      list = try mapped.unmap()
      list.withBuffer(at: 1) { $0.store(UInt64(0x5678), at: 0) }
      try driver.store(address, byteCount: 8)
      let found = list.withBuffer(at: 1) { $0.load(at: 0, as: UInt64.self) }
      try expectEqual(found, 0x5678, "memory of a list after its unmap")
    },
    ConformanceCase(.dma, "reach/after-unmap-nvme") { environment in try afterUnmapNVMe(environment) },
  ]

  /// 32 pages: few enough that the emulated IOMMU's cache keeps them all.
  private static func afterUnmapNVMe(_ environment: Environment) throws {
    let controller = try NVMeController(try environment.open(environment.devices.nvme))
    let dma = controller.device.dma
    let memory = try HostMemory(environment.kernel, byteCount: 4096)
    defer { controller.device.close() }
    for round in UInt8(0)..<32 {
      memory.fill(round)
      let mapping = try unsafe dma.map(unsafe: memory.buffer, .bidirectional)
      let address = mapping.address
      try controller.write(block: 100, count: 8, from: address)
      memory.fill(0x99)
      try mapping.unmap()
      do throws(NVMeError) {
        try controller.read(block: 100, count: 8, into: address)
      } catch {
        guard case .status = error else { throw Failure("\(error)") }
      }
      try expectEqual(memory.bytes(0..<4096), [UInt8](repeating: 0x99, count: 4096), "memory after its unmap")
    }
  }
}
