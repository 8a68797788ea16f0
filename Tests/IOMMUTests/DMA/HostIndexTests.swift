import AddressSpace
import AddressSpaceModels
import Glibc
import IOMMU
import IOMMUSimulation
import Synchronization
import Testing

/// The index of host addresses is made while others map and unmap, and by several at once: whatever is mapped is found, and
/// nothing else.
@Suite struct HostIndexTests {
  private struct WrongAnswer: Error { var what: String }

  /// Mappings of single pages of some memory.
  private final class Held {
    let mapping: UnsafeMapping
    init(_ mapping: consuming UnsafeMapping) { self.mapping = mapping }
  }

  private static func map(_ dma: DMADomain, _ pages: Pages, _ index: Int, at address: IOVA? = nil) throws -> Held {
    Held(try unsafe dma.map(unsafe: pages.part(index << 12..<(index + 1) << 12), .toDevice, at: address))
  }

  /// Asks for each page; those that are mapped, and no others, must be found.
  private static func check(_ dma: DMADomain, _ pages: Pages, _ held: [Held?]) throws {
    for (index, held) in held.enumerated() {
      let pointer = unsafe UnsafeRawPointer(bitPattern: UInt(pages.address) + UInt(index) << 12)!
      let found = unsafe dma.translate(pointer, byteCount: 4096)
      if found != held?.mapping.address { throw WrongAnswer(what: "page \(index) is found at \(found as IOVA?)") }
    }
  }

  /// Two threads ask for the first time, and two map and unmap: at addresses of the library's choice, or of their own.
  @Test(arguments: LazyTests.Tables.allCases)
  func nothingIsLostMeanwhile(_ tables: LazyTests.Tables) async throws {
    for round in 0..<5 {
      let machine = SimulatedHost(devices: [LazyTests.address: EduModel(addressBits: 64)])
      let device = try Device(
        LazyTests.address, on: machine.host, interface: tables.interface, translation: tables.choice)
      let dma = device.dma, asking = Atomic<Int>(2), mapping = Atomic<Int>(0)
      let failures = await inThreads(4) { thread in
        let isFixed = thread % 2 == 1, isAsking = thread < 2, pages = Pages(isAsking ? 300 : 32)
        func address(_ index: Int) -> IOVA? { isFixed ? IOVA(UInt64(1 << 30 + thread << 24 + index << 12)) : nil }
        var held: [Held?] = []
        for index in 0..<(isAsking ? 300 : 32) {
          held.append(index % 3 == 2 ? nil : try Self.map(dma, pages, index, at: address(index)))
        }
        if isAsking {
          // When the others are at it.
          while mapping.load(ordering: .acquiring) < 2 { sched_yield() }
          defer { asking.wrappingSubtract(1, ordering: .releasing) }
          return try Self.check(dma, pages, held)
        }
        var random = SplitMix64(seed: UInt64(round * 4 + thread))
        mapping.wrappingAdd(1, ordering: .releasing)
        while asking.load(ordering: .acquiring) > 0 {
          let index = Int.random(in: 0..<32, using: &random)
          held[index] = held[index] == nil ? try Self.map(dma, pages, index, at: address(index)) : nil
        }
        try Self.check(dma, pages, held)
      }
      #expect(failures == [])
      device.close()
    }
  }

  /// Where memory for an entry runs out the index goes, and the next question makes another.
  @Test(arguments: LazyTests.Tables.allCases)
  func withoutMemoryForAnEntry(_ tables: LazyTests.Tables) throws {
    try LazyTests.withDomain(tables, nil) { kernel, dma, machine in
      let pages = Pages(400)
      var held: [Held?] = [try Self.map(dma, pages, 0)]
      try Self.check(dma, pages, held)
      for count in [200, 400] {
        dma.limitAddresses(toChunks: .max, index: 0)
        while held.count < count {
          held.append(
            held.count % 2 == 0
              ? try Self.map(dma, pages, held.count, at: IOVA(UInt64(1 << 30 + held.count << 12)))
              : try Self.map(dma, pages, held.count))
        }
        try Self.check(dma, pages, held)
      }
      for index in 0..<400 where index % 3 == 0 { held[index] = nil }
      try Self.check(dma, pages, held)
    }
  }

  /// Short mappings, lists, and memory of several areas are found, made before the index or after it.
  @Test func allKindsOfMappings() throws {
    try LazyTests.withDomain(.ioas, nil) { kernel, dma, machine in
      for _ in 0..<2 {
        var list = ScatterList(), starts: [UInt] = []
        for _ in 0..<20 {
          let buffer = try dma.buffer(byteCount: 4096)
          starts.append(TranslateTests.start(buffer))
          list.append(buffer)
        }
        let long = try dma.buffer(byteCount: 3 << 20), start = TranslateTests.start(long)
        let mapped = try dma.map(list, .toDevice), mapping = try dma.map(long, .toDevice)
        let array = try dma.allocate(UInt64.self, count: 8)
        for (index, start) in starts.enumerated() {
          unsafe #expect(dma.translate(UnsafeRawPointer(bitPattern: start)!) == mapped.address + index * 4096)
        }
        unsafe #expect(dma.translate(UnsafeRawPointer(bitPattern: start)!, byteCount: 3 << 20) == mapping.address)
        unsafe #expect(dma.translate(array.unsafeBaseAddress) == array.address)
        _ = try mapped.unmap()
        _ = try mapping.unmap()
        unsafe #expect(dma.translate(UnsafeRawPointer(bitPattern: starts[0])!) == nil)
        unsafe #expect(dma.translate(UnsafeRawPointer(bitPattern: start)!) == nil)
      }
    }
  }
}
