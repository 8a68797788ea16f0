import AddressSpace
import IOMMU

/// Byte-exact transfers of an edu device, in both directions and through every kind of mapping. 22 transfers.
extension Cases {
  static let edu: [ConformanceCase] = [
    ConformanceCase(.dma, "edu/sizes-owned") { environment in
      let driver = try EduDriver(environment.devices.edu, environment)
      for byteCount in [1, 3, 64, 1514, 4096] { try owned(driver, byteCount) }
    },
    ConformanceCase(.dma, "edu/offsets-foreign") { environment in
      let driver = try EduDriver(environment.devices.edu, environment)
      let memory = try HostMemory(environment.kernel, byteCount: 3 * 4096)
      let mapping = try unsafe driver.device.dma.map(unsafe: memory.buffer, .bidirectional)
      // Within a page, over a page's end, over all of a page.
      for (offset, byteCount) in [(5, 7), (4090, 13), (4000, 4096)] {
        memory.fill(0xee)
        let bytes = pattern(UInt64(offset), byteCount)
        memory.store(bytes, at: offset)
        try driver.load(IOVA(mapping.address.rawValue + UInt64(offset)), byteCount: byteCount)
        memory.fill(0xdd)
        try driver.store(IOVA(mapping.address.rawValue + UInt64(offset)), byteCount: byteCount)
        try expectEqual(memory.bytes(offset..<offset + byteCount), bytes, "what came back at \(offset)")
        try expectEqual(memory[offset - 1], 0xdd, "the byte before")
        try expectEqual(memory[offset + byteCount], 0xdd, "the byte after")
      }
      try mapping.unmap()
    },
    ConformanceCase(.dma, "edu/coherent") { environment in
      let driver = try EduDriver(environment.devices.edu, environment)
      let array = try driver.device.dma.allocate(UInt64.self, count: 64)
      for index in 0..<64 { array[index] = UInt64(index) &* 0x0101_0101_0101_0101 }
      try driver.load(array.address, byteCount: 512)
      for index in 0..<64 { array[index] = 0 }
      try driver.store(array.address(of: 8), byteCount: 448, offset: 64)
      for index in 0..<64 {
        try expectEqual(
          array[index], index < 8 ? 0 : UInt64(index) &* 0x0101_0101_0101_0101, "element \(index)")
      }
    },
    ConformanceCase(.dma, "edu/list") { environment in try list(environment) },
    ConformanceCase(.dma, "edu/two-devices") { environment in
      // What one device writes the other reads, through one domain; both work at once.
      let first = try EduDriver(environment.devices.edu, environment)
      let second = try EduDriver(environment.devices.secondEdu, environment, sharing: first.device.dma)
      let array = try first.device.dma.allocate(UInt8.self, count: 4096)
      let bytes = pattern(77, 4096)
      for index in 0..<4096 { array[index] = bytes[index] }
      first.start(load: array.address, byteCount: 4096)
      second.start(load: array.address(of: 2048), byteCount: 2048)
      try first.finish()
      try second.finish()
      for index in 0..<4096 { array[index] = 0 }
      first.start(store: array.address, byteCount: 2048)
      second.start(store: array.address(of: 2048), byteCount: 2048)
      try first.finish()
      try second.finish()
      for index in 0..<4096 { try expectEqual(array[index], bytes[index], "byte \(index)") }
    },
    ConformanceCase(.dma, "edu/mask-honoured") { environment in
      let driver = try EduDriver(environment.devices.narrowEdu, environment, bits: 28)
      try owned(driver, 64)
      let array = try driver.device.dma.allocate(UInt8.self, count: 64)
      try expect(array.address.rawValue < 1 << 28, "\(array.address) is above the mask")
    },
    ConformanceCase(.dma, "edu/mask-violated") { environment in
      // Without the mask the device gets an address that it cuts: the memory at the full address stays as it is.
      let driver = try EduDriver(environment.devices.narrowEdu, environment, bits: 64)
      let memory = try HostMemory(environment.kernel, byteCount: 4096)
      memory.fill(0x5a)
      let mapping = try unsafe driver.device.dma.map(
        unsafe: memory.buffer, .bidirectional, at: IOVA(0x5000_3000))
      try driver.store(mapping.address, byteCount: 64)
      try expectEqual(
        memory.bytes(0..<64), [UInt8](repeating: 0x5a, count: 64), "memory above the device's reach")
      try mapping.unmap()
    },
  ]

  /// To the device and back, in a buffer of the library's.
  static func owned(_ driver: EduDriver, _ byteCount: Int) throws {
    let dma = driver.device.dma
    let bytes = pattern(UInt64(byteCount), byteCount)
    var buffer = try dma.buffer(byteCount: byteCount)
    for (index, byte) in bytes.enumerated() { buffer.store(byte, at: index) }
    let out = try dma.map(buffer, .toDevice)
    try driver.load(out.address, byteCount: byteCount)
    buffer = try out.unmap()
    for index in 0..<byteCount { buffer.store(UInt8(0), at: index) }
    let back = try dma.map(buffer, .fromDevice)
    try driver.store(back.address, byteCount: byteCount)
    buffer = try back.unmap()
    for index in 0..<byteCount {
      try expectEqual(buffer.load(at: index, as: UInt8.self), bytes[index], "byte \(index) of \(byteCount)")
    }
  }

  /// Three buffers as one range, each reached by its segment's address.
  private static func list(_ environment: Environment) throws {
    let driver = try EduDriver(environment.devices.edu, environment)
    let dma = driver.device.dma
    var list = ScatterList()
    for length in [100, 4096] { list.append(try dma.buffer(byteCount: length)) }
    for index in 0..<2 {
      list.withBuffer(at: index) { buffer in buffer.store(UInt64(index) + 41, at: 8) }
    }
    let mapped = try dma.map(list, .bidirectional)
    let segments = mapped.segments
    for (index, segment) in segments.enumerated() {
      try driver.load(segment.address, byteCount: segment.byteCount)
      // Back into the other segment.
      try driver.store(IOVA(segments[1 - index].address.rawValue + 16), byteCount: 8, offset: 8)
    }
    list = try mapped.unmap()
    let first = list.withBuffer(at: 0) { $0.load(at: 16, as: UInt64.self) }
    let second = list.withBuffer(at: 1) { $0.load(at: 16, as: UInt64.self) }
    try expectEqual(second, 41, "what the first segment held")
    try expectEqual(first, 42, "what the second segment held")
  }
}
