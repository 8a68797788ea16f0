import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation

/// What a domain adds to the allocator: finding a mapping, and an unmap that waits for a flush.
///
/// Thread CPU time, medians of interleaved rounds, on the simulated kernel.
enum DataPath {
  /// A domain of its own, on page tables that this process writes.
  private static func device() throws -> Device {
    var machine = SimulatedMachine.vtd
    machine.devices = [SimulatedDevice("0000:01:00.0", EduModel(addressBits: 64))]
    return try Device("0000:01:00.0", on: Host.simulated(machine), interface: .iommufd, translation: .process)
  }

  // MARK: - translate

  /// Nanoseconds for each translation of addresses in turn; `mask` is their number minus one.
  private static func translate(_ dma: DMADomain, _ addresses: UnsafePointer<IOVA>, mask: Int, count: Int) -> Double {
    var sum: UInt = 0
    let began = cpuTime()
    for index in 0..<count {
      unsafe sum &+= UInt(bitPattern: dma.translate(addresses[index & mask], byteCount: 64))
    }
    let time = Double(cpuTime() - began)
    precondition(sum != 0)
    return time / Double(count)
  }

  /// The loop alone.
  private static func read(_ addresses: UnsafePointer<IOVA>, mask: Int, count: Int) -> Double {
    var sum: UInt64 = 0
    let began = cpuTime()
    for index in 0..<count { unsafe sum = (sum ^ addresses[index & mask].rawValue) &* 3 }
    let time = Double(cpuTime() - began)
    precondition(sum != 1)
    return time / Double(count)
  }

  /// `translate_warm`, `translate_100k`: addresses inside of so many mappings of a page, in no order.
  static func translate(live: Int) throws -> Measurement {
    let device = try device(), dma = device.dma
    // One page, mapped many times.
    let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
    defer { unsafe page.deallocate() }
    let mappings = UnsafeMutablePointer<UnsafeMapping>.allocate(capacity: live)
    for index in 0..<live {
      let mapping = try unsafe dma.map(unsafe: UnsafeRawBufferPointer(page), .toDevice)
      unsafe (mappings + index).initialize(to: mapping)
    }
    let places = 1 << (Int.bitWidth - (max(live, 2) - 1).leadingZeroBitCount)
    let addresses = UnsafeMutablePointer<IOVA>.allocate(capacity: places)
    var random = SystemRandomNumberGenerator()
    for place in 0..<places {
      let index = live == 1 ? 0 : Int.random(in: 0..<live, using: &random)
      unsafe (addresses + place).initialize(to: mappings[index].address + Int.random(in: 0..<4000, using: &random))
    }
    var times: [Double] = [], anchors: [Double] = []
    for round in 0...AllocatorPairs.rounds {
      let anchor = unsafe read(addresses, mask: places - 1, count: 1_000_000)
      let time = unsafe translate(dma, addresses, mask: places - 1, count: 1_000_000)
      if round == 0 { continue }  // warms both up
      anchors.append(anchor)
      times.append(time)
    }
    unsafe mappings.deinitialize(count: live)
    unsafe mappings.deallocate()
    unsafe addresses.deallocate()
    device.close()
    return Measurement(
      value: median(times), anchor: "the loop without it, ns", anchorValue: median(anchors),
      repeats: AllocatorPairs.rounds)
  }

  // MARK: - lazy_pair

  /// `lazy_pair`: a map and an unmap of a page in lazy mode, with their shares of the flushes and of what those give back, less what
  /// writing the tables takes, less a pair of the allocator.
  static func lazyPair() throws -> Measurement {
    let device = try device(), dma = device.dma, count = 50_000
    guard let tables = dma.processOwned else { throw Failure(description: "the tables are the kernel's") }
    try dma.switchProtection(to: .lazy(FlushQueueOptions(.perCPU, depth: 256, timeout: .seconds(1000))))
    let other = try AllocatorPairs.allocator()
    var held: DMABuffer? = try dma.buffer(byteCount: 4096)
    let memory = try dma.buffer(byteCount: 4096)
    let host = unsafe memory.bytes.withUnsafeBytes { UInt64(UInt(bitPattern: $0.baseAddress)) }
    var rest: [Double] = [], pairs: [Double] = []
    for round in 0...AllocatorPairs.rounds {
      var began = cpuTime()
      for _ in 0..<count {
        let mapping = try dma.map(held.take()!, .toDevice)
        held = try mapping.unmap()
      }
      let whole = Double(cpuTime() - began) / Double(count)
      began = cpuTime()
      for number in 0..<UInt64(count) {
        // As many entries as the ring keeps addresses busy, each in its turn.
        let iova = 1 << 40 + (number & 255) << 12
        try tables.map(iova: iova, address: host, byteCount: 4096, access: .read)
        _ = try tables.clear(iova: iova, byteCount: 4096)
        if number & 255 == 254 { try tables.invalidateAll() }
      }
      let writing = Double(cpuTime() - began) / Double(count)
      let pair = try AllocatorPairs.lifo(other, 0x1000, count: count)
      if round == 0 { continue }  // warms all up
      rest.append(whole - writing - pair)
      pairs.append(pair)
    }
    try dma.switchProtection(to: .strict)
    held = nil
    extendLifetime(memory)
    device.close()
    return Measurement(
      value: median(rest), anchor: "the allocator's pair, ns", anchorValue: median(pairs),
      repeats: AllocatorPairs.rounds)
  }
}
