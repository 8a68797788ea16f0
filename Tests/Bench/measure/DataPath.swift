import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation

/// What a domain adds to the allocator: finding a mapping, and an unmap that waits for a flush.
///
/// Thread CPU time, medians of interleaved rounds, on the simulated kernel.
enum DataPath {
  /// A domain of its own, on page tables that this process writes.
  private static func device(_ machine: SimulatedMachine = .vtd) throws -> Device {
    var machine = machine
    machine.devices = [SimulatedDevice("0000:01:00.0", EduModel(addressBits: 64))]
    return try Device("0000:01:00.0", on: Host.simulated(machine), interface: .iommufd, translation: .process)
  }

  // MARK: - translate

  /// Places of both kinds: the device's addresses, and the memory behind them.
  private struct Places {
    var device: [IOVA] = []
    var host: [UInt] = []

    /// Places inside of so many mappings, in no order; as many as a power of two.
    init(in mappings: UnsafePointer<UnsafeMapping>, of memory: UnsafeRawPointer, count: Int) {
      var random = SystemRandomNumberGenerator()
      for _ in 0..<1 << (Int.bitWidth - (max(count, 2) - 1).leadingZeroBitCount) {
        let index = Int.random(in: 0..<count, using: &random), offset = Int.random(in: 0..<4000, using: &random)
        device.append(unsafe mappings[index].address + offset)
        host.append(UInt(bitPattern: memory) + UInt(index * 4096 + offset))
      }
    }

    var mask: Int { device.count - 1 }
  }

  /// Nanoseconds for each of many calls in turn.
  private static func time(_ count: Int = 1_000_000, _ body: (Int) -> UInt) -> Double {
    var sum: UInt = 0
    let began = cpuTime()
    for index in 0..<count { sum = (sum ^ body(index)) &* 3 }
    let time = Double(cpuTime() - began)
    precondition(sum != 1)
    return time / Double(count)
  }

  /// `translate_warm`, `translate_100k`: addresses inside of so many mappings of a page, in no order, and memory likewise. The
  /// slower of both directions is what counts.
  static func translate(live: Int) throws -> Measurement {
    let device = try device(), dma = device.dma
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: live * 4096, alignment: 4096)
    defer { unsafe memory.deallocate() }
    let mappings = UnsafeMutablePointer<UnsafeMapping>.allocate(capacity: live)
    for index in 0..<live {
      let page = unsafe UnsafeRawBufferPointer(rebasing: memory[index * 4096..<(index + 1) * 4096])
      unsafe (mappings + index).initialize(to: try dma.map(unsafe: page, .toDevice))
    }
    let places = unsafe Places(in: mappings, of: UnsafeRawPointer(memory.baseAddress!), count: live)
    var forth: [Double] = [], back: [Double] = [], anchors: [Double] = []
    unsafe places.device.withUnsafeBufferPointer { addresses in
      unsafe places.host.withUnsafeBufferPointer { pointers in
        let mask = places.mask
        for round in 0...AllocatorPairs.rounds {
          let anchor = time { unsafe UInt(truncatingIfNeeded: addresses[$0 & mask].rawValue) }
          let one = time { unsafe UInt(bitPattern: dma.translate(addresses[$0 & mask], byteCount: 64)) }
          let other = time {
            let pointer = unsafe UnsafeRawPointer(bitPattern: pointers[$0 & mask])!
            return unsafe UInt(truncatingIfNeeded: dma.translate(pointer, byteCount: 64)!.rawValue)
          }
          if round == 0 { continue }  // warms all up
          anchors.append(anchor)
          forth.append(one)
          back.append(other)
        }
      }
    }
    unsafe mappings.deinitialize(count: live)
    unsafe mappings.deallocate()
    device.close()
    let (one, other) = (median(forth), median(back))
    return Measurement(
      value: max(one, other),
      anchor: "the loop without it, ns; an address of the device \(tenths(one)), memory \(tenths(other))",
      anchorValue: median(anchors), repeats: AllocatorPairs.rounds)
  }

  private static func tenths(_ value: Double) -> String { "\(Int(value)).\(Int(value * 10) % 10)" }

  // MARK: - lazy_pair

  /// `lazy_pair`: a map and an unmap of a page in lazy mode, with their shares of the flushes and of what those give back, less what
  /// writing the tables takes, less a pair of the allocator.
  static func lazyPair() throws -> Measurement {
    // In a hardware's format: the other one is a table of the simulator's, behind a lock.
    let device = try device(.smmuv3Nested), dma = device.dma, count = 50_000
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
