import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Short memory of the caller's is copied, and long memory mapped.
@Suite struct CopyLimitTests {
  private func sample(_ byteCount: Int, map: UInt64, copy: UInt64, zero: UInt64) -> CopyLimits.Sample {
    CopyLimits.Sample(byteCount: byteCount, read: map, write: map, copy: copy, zero: zero)
  }

  /// The crossing, by what the device does: one copy, a copy and zeros, two copies.
  @Test func theLinesCross() {
    let samples = [
      sample(4096, map: 1000, copy: 100, zero: 50), sample(8192, map: 1100, copy: 600, zero: 300),
      sample(16384, map: 1300, copy: 1500, zero: 700),
    ]
    let limits = CopyLimits(samples)
    #expect(limits.read == 8192 + 8192 * 500 / 700)
    #expect(limits.write == 8192 + 8192 * 200 / 1100)
    #expect(limits.both == 4096 + 4096 * 800 / 900)
    #expect(CopyLimits([sample(4096, map: 99, copy: 100, zero: 0)]) == CopyLimits())
    let all = CopyLimits([sample(4096, map: 9, copy: 1, zero: 1)])
    #expect((all.read, all.write, all.both) == (4096, 4096, 4096))
    // What the device may write costs the kernel more.
    let dear = CopyLimits([CopyLimits.Sample(byteCount: 4096, read: 20, write: 50, copy: 22, zero: 1)])
    #expect((dear.read, dear.write, dear.both) == (0, 4096, 4096))
    // One that was disturbed does not end it, on either side.
    let bumpy = [
      sample(4096, map: 20, copy: 10, zero: 0), sample(8192, map: 20, copy: 30, zero: 0),
      sample(16384, map: 90, copy: 30, zero: 0), sample(32768, map: 100, copy: 120, zero: 0),
      sample(65536, map: 900, copy: 800, zero: 0), sample(131072, map: 1000, copy: 3000, zero: 0),
    ]
    #expect(CopyLimits(bumpy).read == 16384 + 16384 * 60 / 80)
  }

  /// A copy takes no time of a simulated machine's, so that all memory is copied up to the longest that may be.
  @Test(arguments: LazyTests.Tables.allCases)
  func shortMemoryIsCopied(_ tables: LazyTests.Tables) throws {
    var options = AutomaticOptions()
    options.copiesShortMemory = true
    let rig = try StandingRig(tables), dma = rig.dma, pages = Pages(260, filledWith: 0x11)
    #expect(dma.copiedByteCount(.toDevice) == 0)
    try dma.switchProtection(to: .automatic(options))
    #expect(dma.copiedByteCount(.toDevice) == 1 << 20 && dma.copiedByteCount(.bidirectional) == 1 << 20)
    #expect(dma.statistics.liveMappings == 0 && dma.statistics.leakedBytes == 0)
    for (range, widening, isCopied) in [
      (0..<4096, false, true), (0..<1 << 20, false, true), (0..<(1 << 20) + 4096, false, false), (1..<100, false, true),
      (1..<(1 << 20) + 100, false, true), (1..<(1 << 20) + 100, true, false),
    ] {
      let before = dma.statistics.bouncedBytes
      let mapping = try unsafe dma.map(unsafe: pages.part(range), .toDevice, widening: widening)
      #expect(try rig.reads(mapping.address + (range.count - 8)))
      #expect((dma.statistics.bouncedBytes > before) == isCopied, "\(range)")
      let inPlace = unsafe dma.translate(mapping.address, byteCount: range.count)
      #expect(unsafe (inPlace == UnsafeMutableRawPointer(mutating: pages.part(range).baseAddress)) == !isCopied)
      try mapping.unmap()
    }
    let before = dma.statistics.bouncedBytes
    try unsafe dma.map(unsafe: pages.part(0..<4096), .toDevice, at: IOVA(0x10_0000)).unmap()
    _ = try dma.map(try dma.buffer(byteCount: 64), .toDevice).unmap()
    #expect(dma.statistics.bouncedBytes == before, "neither at an address, nor buffers")
    try dma.switchProtection(to: .automatic)
    try unsafe dma.map(unsafe: pages.part(0..<4096), .toDevice).unmap()
    #expect(dma.statistics.bouncedBytes == before && dma.copiedByteCount(.toDevice) == 0)
    try dma.drain()
    #expect(dma.statistics.liveMappings == 0 && dma.statistics.leakedBytes == 0)
    rig.device.close()
  }

  /// What is timed is taken back; where that cannot be, the switch throws, and the old protection holds.
  @Test(arguments: LazyTests.Tables.allCases)
  func aTimingThatFails(_ tables: LazyTests.Tables) throws {
    var options = AutomaticOptions()
    (options.copiesShortMemory, options.isInvalidationDear) = (true, false)
    let rig = try StandingRig(tables), dma = rig.dma
    for call in [tables.mapCall, tables.flushCall] {
      rig.kernel.fail(1, of: call, with: .inputOutput)
      let code = StandingRig.code { try dma.switchProtection(to: .automatic(options)) }
      #expect(code == .system && dma.protection == .strict && dma.copiedByteCount(.toDevice) == 0, "\(call)")
    }
    #expect(dma.statistics.leakedBytes == 4096, "what could not be unmapped")
    try dma.switchProtection(to: .automatic(options))
    #expect(dma.copiedByteCount(.toDevice) == 1 << 20)
    rig.device.close()
  }
}
