import IOMMU

/// The cases of `selftest`. What a case needs it makes itself, so that one that fails spoils no other.
struct SelfTestRun {
  let device: Device
  let found: PCIDevice
  let machine: Machine
  let recorder: Recorder

  var dma: DMADomain { device.dma }
  /// The smallest page in bytes.
  var page: Int { Int(dma.granule.byteCount) }
  var isEdu: Bool { EduDriver.drives(found) }

  // MARK: - The device

  func testDevice() {
    recorder.run("config-space") {
      let vendor = try device.config.vendorID(), number = try device.config.deviceID()
      try require(
        vendor == found.vendor && number == found.device,
        "Config space says \(hexadecimal(UInt64(vendor), digits: 4)):\(hexadecimal(UInt64(number), digits: 4)), sysfs another"
      )
      let capabilities = try device.config.capabilities().count
      let extended = try device.config.extendedCapabilities().count
      let count = counted(capabilities, "capability", "capabilities")
      return "\(device.config.byteCount) bytes, \(count), \(extended) extended"
    }
    recorder.run("bus-master") {
      let command = try device.config.command()
      try require(command.contains(.busMaster), "Bus mastering is off after opening")
      return "on since the device was attached"
    }
    recorder.run("bars") { try readBARs() }
    recorder.run("interrupts") {
      let counts = Interrupt.Kind.allCases.map { "\($0.rawValue) \(device.interruptCount($0))" }
      return counts.joined(separator: ", ")
    }
    recorder.run("reset") {
      guard device.canReset else { throw CaseStop.skipped("the kernel knows no reset of this device alone") }
      try device.reset()
      _ = try device.config.vendorID()
      return "done, and the device answers"
    }
  }

  private func readBARs() throws -> String {
    let details = try machine.host.details(of: found.address)
    var texts: [String] = []
    for resource in details.resources where resource.index < 6 {
      let bar = try device.registers(bar: resource.index)
      guard resource.isMemory, bar.byteCount >= 4 else {
        texts.append("\(resource.index): \(bar.byteCount) bytes of ports")
        continue
      }
      _ = bar[0]
      if let failure = bar.failure { throw failure }
      let way = bar.mappedRanges.isEmpty ? "by system call" : "mapped"
      texts.append("\(resource.index): \(bar.byteCount) bytes \(way)")
    }
    if texts.isEmpty { throw CaseStop.skipped("the device has no BAR") }
    return texts.joined(separator: ", ")
  }

  // MARK: - Mapping

  func testMapping() {
    recorder.run("mask") {
      let mask = isEdu ? EduDriver.mask : DMAMask.bits(32)
      try dma.setMask(mask)
      let address = try dma.map(try dma.buffer(byteCount: page), .bidirectional).address
      try require(address.rawValue <= mask.limit, "\(address) is above the mask of \(mask)")
      if !isEdu { try dma.setMask(.bits(64)) }
      return "\(mask) give \(address)"
    }
    // The kernel chooses larger entries where address, length and memory allow them.
    for shift in [dma.granule.shift, 16, 21, 25].filter({ $0 >= dma.granule.shift }) {
      let size = PageSize(shift: shift)
      recorder.run("map-\(size.description.filter { $0 != " " })") { try mapAndUnmap(Int(size.byteCount)) }
      if shift == 16, dma.granule.shift == 16 { break }
    }
    recorder.run("translate") { try translate() }
    recorder.run("fixed-address") {
      let memory = try Pages(page), address = try freeAddress(page)
      let mapping = try unsafe dma.map(unsafe: memory.bytes, .bidirectional, at: address)
      try require(mapping.address == address, "It was mapped at \(mapping.address), not at \(address)")
      try mapping.unmap()
      return "mapped at \(address), as asked"
    }
  }

  private func mapAndUnmap(_ byteCount: Int) throws -> String {
    let before = dma.statistics
    let address: IOVA
    do {
      let buffer = try dma.buffer(byteCount: byteCount)
      let mapping = try dma.map(buffer, .bidirectional)
      address = mapping.address
      try require(dma.statistics.liveMappings == before.liveMappings + 1, "The mapping is not counted")
      _ = try mapping.unmap()
    } catch let error as DMAError where error.code == .memoryLock {
      throw CaseStop.skipped(error.description)
    }
    let after = dma.statistics
    try require(after.liveMappings == before.liveMappings, "The mapping is still counted after unmap")
    try require(after.leakedBytes == before.leakedBytes, "Memory leaked")
    return "at \(address), \(counted(after.systemCalls - before.systemCalls, "system call"))"
  }

  private func translate() throws -> String {
    let memory = try Pages(2 * page), count = 2 * page
    let mapping = try unsafe dma.map(unsafe: memory.bytes, .bidirectional)
    let address = mapping.address, base = unsafe memory.base
    try unsafe require(dma.translate(address, byteCount: count) == base, "IOVA to pointer is wrong")
    try unsafe require(dma.translate(base, byteCount: count) == address, "Pointer to IOVA is wrong")
    try unsafe require(dma.translate(address + page) == base + page, "The second page is elsewhere")
    try unsafe require(dma.translate(address + page, byteCount: page + 1) == nil, "The end is not checked")
    try mapping.unmap()
    try unsafe require(dma.translate(address) == nil, "It translates after unmap")
    try unsafe require(dma.translate(base) == nil, "It translates back after unmap")
    return "both ways, checked at the ends, gone after unmap"
  }

  /// An address where nothing is mapped: one that the library gave out and took back.
  func freeAddress(_ byteCount: Int) throws -> IOVA {
    try dma.map(try dma.buffer(byteCount: byteCount), .bidirectional).address
  }
}

/// Whole pages of this process's memory, which is freed with the value.
@safe
final class Pages {
  private let memory: UnsafeMutableRawBufferPointer

  init(_ byteCount: Int) throws {
    // 64 KiB: the largest base page of the machines that this runs on.
    unsafe memory = .allocate(byteCount: byteCount, alignment: 1 << 16)
    unsafe memory.initializeMemory(as: UInt8.self, repeating: 0)
  }

  deinit { unsafe memory.deallocate() }

  var bytes: UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(memory) }
  var base: UnsafeMutableRawPointer { unsafe memory.baseAddress! }
}
