import AddressSpace
import CIOMMU
import Glibc
import IOMMU

/// Debug mode: what it finds, and that nothing else changes.
extension Cases {
  static let debugMode: [ConformanceCase] = [
    ConformanceCase(.conformance, "debug/alive-at-close") { environment in
      let device = try debugged(environment)
      let ended = try device.dma.map(try device.dma.buffer(byteCount: 64), .toDevice)
      let mapping = try device.dma.map(try device.dma.buffer(byteCount: 100), .toDevice)
      let address = mapping.address
      _ = try ended.unmap()
      device.close()
      try expectReports(device, ["aliveAtClose"])
      try expectEqual(device.dma.debugReports.first?.address, address, "the mapping that is alive")
      _ = try mapping.unmap()
    },
    ConformanceCase(.conformance, "debug/unlinked-twice") { environment in
      let device = try debugged(environment)
      var reservation = try device.dma.reserve(byteCount: 8192)
      try reservation.link(try device.dma.buffer(byteCount: 4096), at: 4096, .toDevice)
      var list = try reservation.unlink(4096..<8192)
      try expectReports(device, [])
      list = try reservation.unlink(4096..<8192)
      try expectEqual(list.count, 0, "buffers that came back again")
      try expectReports(device, ["notMapped"])
      device.close()
    },
    ConformanceCase(.conformance, "debug/discarded-registration") { environment in
      let device = try debugged(environment), dma = device.dma
      try dma.switchProtection(to: .persistent)
      let memory = try HostMemory(environment.kernel, byteCount: 16384)
      memory.fill(0x11)
      let registration = try unsafe dma.register(unsafe: memory.buffer)
      try unsafe dma.map(unsafe: memory.buffer, .toDevice).unmap()
      _ = unsafe ci_madvise(memory.base + 8192, 4096, CI_MADV_DONTNEED)
      let page = unsafe UnsafeRawBufferPointer(rebasing: memory.buffer[8192..<12288])
      try expectCode(.badMemory, what: "a map of memory that was given back") { () throws(DMAError) in
        _ = try unsafe dma.map(unsafe: page, .toDevice)
      }
      try registration.unregister()
      try expectReports(device, ["memoryGone", "memoryGone"])
      device.close()
    },
  ]

  static let debugReach: [ConformanceCase] = [
    ConformanceCase(.dma, "debug/cpu-kept-out") { environment in
      let driver = try EduDriver(environment.devices.edu, environment.debugged), dma = driver.device.dma
      var buffer = try dma.buffer(byteCount: 4096)
      buffer.store(UInt64(0x1234_5678))
      let base = unsafe buffer.bytes.withUnsafeBytes { UInt(bitPattern: $0.baseAddress) }
      let mapping = try dma.map(buffer, .bidirectional)
      try expectEqual(mayRead(base), false, "whether the CPU may read what the device owns")
      try driver.load(mapping.address, byteCount: 8)
      try driver.store(mapping.address + 8, byteCount: 8)
      buffer = try mapping.unmap()
      let found = buffer.load(at: 8, as: UInt64.self)
      try expectEqual(found, 0x1234_5678, "what the device has written meanwhile")
      try expectReports(driver.device, [])
    },
    ConformanceCase(.dma, "debug/overrun-faults") { environment in
      let driver = try EduDriver(environment.devices.edu, environment.debugged), dma = driver.device.dma
      let above = try dma.map(try dma.buffer(byteCount: 4096), .bidirectional)
      let mapping = try dma.map(try dma.buffer(byteCount: 4096), .bidirectional)
      let end = mapping.address + 4096
      let oracle = try FaultOracle(environment)
      try oracle.expectFault(environment.devices.edu, end) { try driver.load(end, byteCount: 8) }
      // A kernel reports few of many faults, and an IOMMU one transfer as several.
      let found = dma.faults.count > 0 ? dma.debugReports.map(\.kind.rawValue) : ["overrun"]
      try expectEqual(Set(found), ["overrun"], "what debug mode has found")
      _ = try above.unmap()
      _ = try mapping.unmap()
    },
  ]

  private static func debugged(_ environment: Environment) throws -> Device {
    try environment.debugged.open(environment.devices.edu)
  }

  /// What was reported, each kind once for each time.
  private static func expectReports(_ device: Device, _ kinds: [String]) throws {
    try expectEqual(device.dma.debugReports.map(\.kind.rawValue), kinds, "what debug mode has found")
  }

  /// Whether a load would go through: the kernel answers EFAULT where it would not.
  private static func mayRead(_ address: UInt) -> Bool {
    var ends: [Int32] = [-1, -1]
    guard unsafe pipe(&ends) == 0 else { return false }
    defer { for end in ends { close(end) } }
    return unsafe write(ends[1], UnsafeRawPointer(bitPattern: address), 1) == 1
  }
}

extension Environment {
  /// The same machine with debug mode.
  fileprivate var debugged: Environment {
    var copy = self
    copy.debug = DebugOptions(onReport: { _ in })
    return copy
  }
}
