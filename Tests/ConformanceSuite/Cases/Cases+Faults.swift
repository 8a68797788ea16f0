import AddressSpace
import IOMMU

/// Faults are told with the mapping that they have to do with.
extension Cases {
  static let stories: [ConformanceCase] = [
    ConformanceCase(.dma, "faults/story-of-the-buffer-beside") { environment in
      let driver = try EduDriver(environment.devices.edu, environment)
      let memory = try HostMemory(environment.kernel, byteCount: 8192)
      let mapping = try unsafe driver.device.dma.map(unsafe: memory.buffer, .toDevice, at: IOVA(0x6500_0000))
      let start = mapping.address
      // A page each, which tells the faults apart where IOMMUs tell of pages.
      let live = try story(environment, driver.device, start) { try driver.store(start + 64, byteCount: 8) }
      try expectEqual(live.place.rawValue, "live", "where a write to memory for reading only hits: \(live)")
      try expectEqual(live.mapping?.range.start, start, "the mapping that it hits")
      let behind = start + 8192
      let beside = try story(environment, driver.device, behind) { try driver.store(behind + 16, byteCount: 8) }
      try expectEqual(beside.place.rawValue, "beside", "where a write past the end hits: \(beside)")
      try expectEqual(beside.neighbour?.range.byteCount, 8192, "the length of the mapping in front of it")
      // The page, the address, or that of a later word of the transfer.
      try expect((0..<24).contains(beside.distance ?? -1), "A distance that is not 16 bytes: \(beside)")
      try mapping.unmap()
      let ended = try story(environment, driver.device, start + 4096) { try driver.load(start + 4096, byteCount: 8) }
      try expectEqual(ended.place.rawValue, "ended", "where a read after the unmap hits: \(ended)")
      try expectEqual(ended.mapping?.range.start, start, "the mapping that was there")
      environment.say("story: \(live)")
      environment.say("story: \(beside)")
      environment.say("story: \(ended)")
    }
  ]

  /// Makes a transfer that faults in a page, and reads the story of that.
  private static func story(
    _ environment: Environment, _ device: Device, _ page: IOVA, by transfer: () throws -> Void
  ) throws -> Fault.Story {
    try FaultOracle(environment).expectFault(device.address.description, page, by: transfer)
    let report = device.dma.faults
    let fault = report.faults.last { $0.iova.map { $0.rawValue >> 12 } == page.rawValue >> 12 }
    guard let fault, let story = fault.story else { throw Failure("No story of a fault at \(page): \(report)") }
    try expectEqual(fault.source, environment.faultSource, "where \(fault) is told")
    return story
  }
}
