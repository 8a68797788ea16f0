import AddressSpace
import AddressSpaceModels
import IOMMU
import NVMeDriver

/// Thousands of transfers by an NVMe controller, verified against what was written.
extension Cases {
  static let nvme: [ConformanceCase] = [
    ConformanceCase(.dma, "nvme/identify") { environment in
      for completions in [NVMeController.Completions.polled, .interrupt] {
        let controller = try NVMeController(
          try environment.open(environment.devices.nvme), completions: completions)
        try expectEqual(controller.blockByteCount, 512, "bytes of a block")
        try expectEqual(controller.blockCount, (64 << 20) / 512, "blocks")
        try expect(!controller.serial.isEmpty, "no serial number")
        controller.device.close()
      }
    },
    ConformanceCase(.dma, "nvme/random-polled") { environment in
      try random(environment, .polled, operations: 2000, seed: 1)
    },
    ConformanceCase(.dma, "nvme/random-interrupt") { environment in
      try random(environment, .interrupt, operations: 1000, seed: 2)
    },
    ConformanceCase(.dma, "nvme/map-each") { environment in try mapEach(environment) },
    ConformanceCase(.dma, "nvme/list") { environment in try nvmeList(environment) },
  ]

  /// Writes and reads of random places and sizes, each read compared with a copy of the namespace's beginning.
  private static func random(
    _ environment: Environment, _ completions: NVMeController.Completions, operations: Int, seed: UInt64
  ) throws {
    let controller = try NVMeController(
      try environment.open(environment.devices.nvme), completions: completions)
    let blockCount = 512, limit = 64  // blocks of the place in use; at most 32 KiB a command
    let byteCount = (limit + 9) * 512
    let memory = try HostMemory(environment.kernel, byteCount: (byteCount + 4095) & ~4095)
    let mapping = try unsafe controller.device.dma.map(unsafe: memory.buffer, .bidirectional)
    var copy = try wipe(controller, memory, mapping.address, blockCount, limit)
    var random = SplitMix64(seed: seed)
    for number in 0..<operations {
      let count = Int.random(in: 1...limit, using: &random)
      let block = Int.random(in: 0...(blockCount - count), using: &random)
      let offset = Int.random(in: 0..<1024, using: &random) * 4
      let address = IOVA(mapping.address.rawValue + UInt64(offset))
      let range = block * 512..<(block + count) * 512
      if Bool.random(using: &random) {
        let bytes = pattern(random.next(), count * 512)
        memory.store(bytes, at: offset)
        try controller.write(block: UInt64(block), count: count, from: address)
        copy.replaceSubrange(range, with: bytes)
      } else {
        try controller.read(block: UInt64(block), count: count, into: address)
        guard memory.holds(copy[range], at: offset) else {
          throw Failure("Operation \(number), seed \(seed): \(count) blocks at \(block) read otherwise")
        }
      }
    }
    controller.device.close()
  }

  /// Zeroes the place in use, and returns its copy.
  private static func wipe(
    _ controller: NVMeController, _ memory: HostMemory, _ address: IOVA, _ blockCount: Int, _ limit: Int
  ) throws -> [UInt8] {
    memory.fill(0)
    for block in stride(from: 0, to: blockCount, by: limit) {
      try controller.write(block: UInt64(block), count: limit, from: address)
    }
    return [UInt8](repeating: 0, count: blockCount * 512)
  }

  /// A map and an unmap for each transfer, as a strict driver does.
  private static func mapEach(_ environment: Environment) throws {
    let controller = try NVMeController(try environment.open(environment.devices.nvme))
    let dma = controller.device.dma
    for round in UInt64(0)..<300 {
      let count = Int(round % 16) + 1, block = (round * 37) % 4096
      var buffer = try dma.buffer(byteCount: count * 512)
      for index in 0..<count { buffer.store(round &* 0x1_0001 &+ UInt64(index), at: index * 512) }
      let out = try dma.map(buffer, .toDevice)
      try controller.write(block: block, count: count, from: out.address)
      buffer = try out.unmap()
      for index in 0..<count { buffer.store(UInt64(0), at: index * 512) }
      let back = try dma.map(buffer, .fromDevice)
      try controller.read(block: block, count: count, into: back.address)
      buffer = try back.unmap()
      for index in 0..<count {
        let found = buffer.load(at: index * 512, as: UInt64.self)
        try expectEqual(found, round &* 0x1_0001 &+ UInt64(index), "block \(index) of round \(round)")
      }
    }
    controller.device.close()
  }

  /// A scatter list is one range for the device: one command fills all of it.
  private static func nvmeList(_ environment: Environment) throws {
    let controller = try NVMeController(try environment.open(environment.devices.nvme))
    let dma = controller.device.dma
    var list = ScatterList()
    for part in UInt64(0)..<8 {
      var buffer = try dma.buffer(byteCount: 4096)
      buffer.store(part + 100, at: 2048)
      list.append(buffer)
    }
    let out = try dma.map(list, .toDevice)
    try controller.write(block: 8192, count: 64, from: out.address)
    list = try out.unmap()
    for part in 0..<8 { list.withBuffer(at: part) { $0.store(UInt64(0), at: 2048) } }
    let back = try dma.map(list, .fromDevice)
    try controller.read(block: 8192, count: 64, into: back.address)
    list = try back.unmap()
    for part in 0..<8 {
      let found = list.withBuffer(at: part) { $0.load(at: 2048, as: UInt64.self) }
      try expectEqual(found, UInt64(part) + 100, "part \(part)")
    }
    controller.device.close()
  }
}
