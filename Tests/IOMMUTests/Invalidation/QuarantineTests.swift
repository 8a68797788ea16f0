import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Synchronization
import Testing

/// Memory that was freed while a device may still reach it.
@Suite struct QuarantineTests {
  private static let options = FlushQueueOptions(.single, timeout: .seconds(1000))

  /// Where a buffer's memory is; the buffer goes back.
  private static func place(_ dma: DMADomain) throws -> UInt {
    let buffer = try dma.buffer(byteCount: 64)
    return unsafe buffer.bytes.withUnsafeBytes { UInt(bitPattern: $0.baseAddress) }
  }

  /// A buffer that was unmapped and dropped, or whose mapping was dropped: no new buffer has its memory before a flush.
  @Test(arguments: [false, true])
  func freedMemoryIsKept(_ dropsMapping: Bool) throws {
    try LazyTests.withDomain(.process, Self.options) { kernel, dma, machine in
      let mapping = try dma.map(try dma.buffer(byteCount: 64), .fromDevice)
      let memory = unsafe UInt(bitPattern: dma.translate(mapping.address))
      if dropsMapping { _ = consume mapping } else { _ = try mapping.unmap() }
      for _ in 0..<3 { #expect(try Self.place(dma) != memory) }
      try dma.drain()
      #expect(try Self.place(dma) == memory, "and then it is used again first")
    }
  }

  /// A buffer that the driver keeps is its own at once, and clean after the flush.
  @Test func aBufferThatIsKeptCanGoOn() throws {
    try LazyTests.withDomain(.process, Self.options) { kernel, dma, machine in
      var buffer = try dma.buffer(byteCount: 64)
      let memory = unsafe buffer.bytes.withUnsafeBytes { UInt(bitPattern: $0.baseAddress) }
      for number in 0..<5 {
        let mapping = try dma.map(buffer, .bidirectional)
        buffer = try mapping.unmap()
        buffer.store(number)
      }
      try dma.drain()
      _ = consume buffer
      #expect(try Self.place(dma) == memory, "flushed before it was dropped: free at once")
    }
  }

  /// Dropped after the switch to strict mode, which has flushed; and dropped after the close.
  @Test(arguments: ["switch", "close"])
  func nothingIsLeft(_ way: String) throws {
    try LazyTests.withDomain(.process, Self.options) { kernel, dma, machine in
      let first = try dma.map(try dma.buffer(byteCount: 64), .fromDevice)
      let buffer = try first.unmap()
      let second = try dma.map(try dma.buffer(byteCount: 64), .fromDevice)
      if way == "switch" { try dma.switchProtection(to: .strict) }
      _ = consume buffer
      _ = consume second
      #expect(dma.statistics.leakedBytes == 0)
    }
  }

  /// Buffers of a list that are dropped wait for the flush of their range, and take no place of their own in the ring.
  @Test(arguments: LazyTests.Tables.allCases)
  func droppedBuffersTakeNoPlace(_ tables: LazyTests.Tables) throws {
    let options = FlushQueueOptions(.single, depth: 16, timeout: .seconds(1000))
    try LazyTests.withDomain(tables, options) { kernel, dma, machine in
      var last: Set<UInt> = []
      for _ in 0..<31 {
        var list = ScatterList()
        for _ in 0..<64 { list.append(try dma.buffer(byteCount: 4096)) }
        let mapped = try dma.map(list, .fromDevice)
        last = [unsafe UInt(bitPattern: dma.translate(mapped.address))]
        _ = try mapped.unmap()
      }
      #expect(dma.statistics.flushes == 2, "15 ranges fit")
      for _ in 0..<3 { #expect(try !last.contains(Self.place(dma))) }
      try dma.drain()
      #expect(dma.statistics.queuedBytes == 0 && dma.statistics.leakedBytes == 0)
    }
  }

  /// What may wait is bounded: beyond that a flush is made, and all of it is used again.
  @Test func muchMemoryIsFlushedFor() throws {
    try LazyTests.withDomain(.process, Self.options) { kernel, dma, machine in
      var places: Set<UInt> = []
      for _ in 0..<9 {
        let mapping = try dma.map(try dma.buffer(byteCount: 8 << 20), .fromDevice)
        places.insert(unsafe UInt(bitPattern: dma.translate(mapping.address)))
        _ = try mapping.unmap()
      }
      #expect(dma.statistics.flushes == 0 && places.count == 9, "64 MiB may, and a buffer beyond")
      _ = try dma.map(try dma.buffer(byteCount: 64), .fromDevice).unmap()
      #expect(dma.statistics.flushes == 1)
      let buffer = try dma.buffer(byteCount: 8 << 20)
      let place = unsafe buffer.bytes.withUnsafeBytes { UInt(bitPattern: $0.baseAddress) }
      #expect(places.contains(place))
    }
  }

  /// What waits are pages, however little of each was asked for.
  @Test func smallBuffersCountAsPages() throws {
    try LazyTests.withDomain(.process, Self.options) { kernel, dma, machine in
      for _ in 0..<33 {
        var list = ScatterList()
        for _ in 0..<512 { list.append(try dma.buffer(byteCount: 64)) }
        _ = try dma.map(list, .fromDevice).unmap()
      }
      #expect(dma.statistics.flushes == 1, "2 MiB each")
    }
  }

  private final class Box: Sendable {
    let mapping: Mutex<Mapping?>
    let wasThere = Atomic<Bool>(false)
    init(_ mapping: consuming Mapping) { self.mapping = Mutex(mapping) }
  }

  /// Memory of which an unmap waits is mapped again, and unmapped on the spot as the ring is full and just being flushed:
  /// the first unmap still waits, and the memory with it.
  @Test(arguments: LazyTests.Tables.allCases, [false, true])
  func anEarlierUnmapIsNotForgotten(_ tables: LazyTests.Tables, _ dropsMapping: Bool) throws {
    let options = FlushQueueOptions(.single, depth: 2, timeout: .seconds(1000))
    try LazyTests.withDomain(tables, options) { kernel, dma, machine in
      let first = try dma.map(try dma.buffer(byteCount: 64), .fromDevice)
      let memory = unsafe UInt(bitPattern: dma.translate(first.address))
      let box = Box(try dma.map(try first.unmap(), .fromDevice))
      kernel.resetCounts()
      kernel.interject(before: tables.flushCall) {
        guard let mapping = box.mapping.withLock({ $0.take() }) else { return }
        if dropsMapping { _ = consume mapping } else { _ = try? mapping.unmap() }
        let isReused = (try? Self.place(dma)) == memory
        #expect(!isReused, "the device still reaches it by its first address")
        box.wasThere.store(true, ordering: .relaxed)
      }
      try dma.drain()
      let wasThere = box.wasThere.load(ordering: .relaxed)
      #expect(wasThere)
      #expect(kernel.count(of: tables.flushCall) == 2, "the second found no place in the ring")
      try dma.drain()
      #expect(try Self.place(dma) == memory)
      #expect(dma.statistics.queuedBytes == 0 && dma.statistics.leakedBytes == 0)
    }
  }

  /// A flush that the kernel refuses lets nothing go; the next one does.
  @Test(arguments: [(LazyTests.Tables.process, 1), (.ioas, 1), (.ioas, 2), (.container, 1), (.container, 2)])
  func aFlushThatFails(_ tables: LazyTests.Tables, _ which: Int) throws {
    try LazyTests.withDomain(tables, Self.options) { kernel, dma, machine in
      let mapping = try dma.map(try dma.buffer(byteCount: 64), .fromDevice), address = mapping.address
      let memory = unsafe UInt(bitPattern: dma.translate(address))
      let far = try Self.farMapping(dma)
      _ = consume mapping
      try far.unmap()
      kernel.resetCounts()
      kernel.fail(which, of: tables.flushCall, with: .inputOutput)
      #expect { try dma.drain() } throws: { ($0 as? DMAError)?.errno == .inputOutput }
      #expect(dma.statistics.failedFlushes == 1 && dma.statistics.flushes == 0)
      #expect(dma.statistics.queuedBytes > 0)
      #expect(try Self.place(dma) != memory)
      kernel.resetCounts()
      try dma.drain()
      #expect(kernel.count(of: tables.flushCall) == 1, "only what was refused is tried again")
      #expect(dma.statistics.queuedBytes == 0 && dma.statistics.flushes == 1)
      #expect(try Self.place(dma) == memory)
    }
  }

  /// Memory of the test's own, away from the others: a run of its own.
  private static func farMapping(_ dma: DMADomain) throws -> UnsafeMapping {
    let page = unsafe mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)!
    return try unsafe dma.map(unsafe: UnsafeRawBufferPointer(start: page, count: 4096), .toDevice, at: IOVA(0x10_0000))
  }
}
