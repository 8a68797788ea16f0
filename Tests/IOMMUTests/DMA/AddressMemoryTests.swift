import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Memory for the nodes of addresses runs out: who needs some is refused and nothing has changed, and what takes a thing back
/// needs none.
@Suite struct AddressMemoryTests {
  private typealias Tables = LazyTests.Tables

  /// Uses up all memory that is there for nodes.
  private static func exhaust(_ dma: DMADomain) throws -> [Held] {
    dma.limitAddresses(toChunks: 0)
    var held: [Held] = []
    do throws(DMAError) {
      while true { held.append(Held(try dma.reserve(byteCount: 4096).sync())) }
    } catch { if error.code != .outOfMemory { throw error } }
    return held
  }

  private final class Held {
    let range: LinkedRange
    init(_ range: consuming LinkedRange) { self.range = range }
  }

  /// Whether an address of somebody's choice can be had.
  private static func isFree(_ dma: DMADomain, _ address: IOVA, _ page: Pages) -> Bool {
    do throws(DMAError) { try unsafe dma.map(unsafe: page.all, .toDevice, at: address).unmap() } catch {
      #expect(error.code == .overlap || error.code == .reserved, "\(error)")
      return false
    }
    return true
  }

  /// At whichever link it happens, with the store filled to any degree.
  @Test(arguments: 0..<10)
  func aLinkWithoutMemory(_ filled: Int) throws {
    try LazyTests.withDomain(.ioas, nil) { kernel, dma, machine in
      let page = Pages(1)
      var others: [Held] = []
      for _ in 0..<filled { others.append(Held(try dma.reserve(byteCount: 4096).sync())) }
      var reservation = try dma.reserve(byteCount: 512 * 4096)
      dma.limitAddresses(toChunks: 0)
      var linked: [Int] = [], refused: [Int] = []
      for index in 0..<255 {
        let offset = (index * 2 + 1) * 4096
        do throws(DMAError) {
          try reservation.link(try dma.buffer(byteCount: 4096), at: offset, .toDevice)
          linked.append(offset)
        } catch {
          #expect(error.code == .outOfMemory && error.operation == "link")
          refused.append(offset)
          try #require(dma.checkAddresses() == nil)
        }
      }
      #expect(!refused.isEmpty && dma.statistics.liveMappings == linked.count)
      dma.limitAddresses(toChunks: .max)
      for offset in refused { try reservation.link(try dma.buffer(byteCount: 4096), at: offset, .toDevice) }
      let range = try reservation.sync(), start = range.address
      for index in 0..<512 { #expect(!Self.isFree(dma, start + index * 4096, page)) }
      let buffers = try range.destroy()
      #expect(buffers.count == 255 && others.count == filled && dma.checkAddresses() == nil)
      for index in 0..<512 { #expect(Self.isFree(dma, start + index * 4096, page)) }
    }
  }

  /// What is unlinked stays reserved.
  @Test(arguments: LazyTests.Tables.kernelOwned)
  func unlinkingTakesNoMemory(_ tables: LazyTests.Tables) throws {
    try LazyTests.withDomain(tables, nil) { kernel, dma, machine in
      let page = Pages(1)
      var reservation = try dma.reserve(byteCount: 8 * 4096)
      for index in [0, 2, 3, 5, 7] { try reservation.link(try dma.buffer(byteCount: 1), at: index * 4096, .toDevice) }
      var linked = try reservation.sync()
      let start = linked.address
      var others = try Self.exhaust(dma)
      for index in [2, 0, 7, 5, 3] {
        let list = try linked.unlink(index * 4096..<(index + 1) * 4096)
        #expect(list.count == 1 && dma.checkAddresses() == nil)
        unsafe #expect(dma.translate(start + index * 4096) == nil)
      }
      dma.limitAddresses(toChunks: .max)
      for index in 0..<8 { #expect(!Self.isFree(dma, start + index * 4096, page)) }
      reservation = linked.reopen()
      try reservation.link(try dma.buffer(byteCount: 8 * 4096), at: 0, .toDevice)
      _ = try reservation.destroy()
      #expect(!others.isEmpty)
      others = []
      for index in 0..<8 { #expect(Self.isFree(dma, start + index * 4096, page)) }
      #expect(dma.checkAddresses() == nil)
    }
  }

  /// A link that the kernel refuses is taken back, also where that takes the last memory.
  @Test func aRefusedLinkTakesNoMemory() throws {
    try LazyTests.withDomain(.ioas, nil) { kernel, dma, machine in
      let page = Pages(1)
      var reservation = try dma.reserve(byteCount: 3 * 4096)
      kernel.interject(before: "ioasMap") { dma.limitAddresses(toChunks: 0) }
      kernel.fail(1, of: "ioasMap", with: .noDevice)
      do throws(DMAError) {
        try reservation.link(try dma.buffer(byteCount: 4096), at: 4096, .toDevice)
        Issue.record("linked")
      } catch { #expect(error.errno == .noDevice) }
      #expect(dma.checkAddresses() == nil)
      dma.limitAddresses(toChunks: .max)
      let range = try reservation.sync(), start = range.address
      for index in 0..<3 { #expect(!Self.isFree(dma, start + index * 4096, page)) }
    }
  }

  /// A list with gaps, at each of its parts: nothing of it is left.
  @Test(arguments: 0..<10)
  func aListWithoutMemory(_ filled: Int) throws {
    try LazyTests.withDomain(.ioas, nil) { kernel, dma, machine in
      try dma.setConstraints(DMAConstraints(alignment: PageSize(shift: 13)))
      func list() throws -> ScatterList {
        var list = ScatterList()
        for _ in 0..<240 { list.append(try dma.buffer(byteCount: 4000)) }
        return list
      }
      var others: [Held] = []
      for _ in 0..<filled { others.append(Held(try dma.reserve(byteCount: 4096).sync())) }
      let parts = try list()
      dma.limitAddresses(toChunks: 0)
      do throws(DMAError) {
        _ = try dma.map(parts, .toDevice)
        Issue.record("mapped")
      } catch { #expect(error.code == .outOfMemory) }
      #expect(dma.checkAddresses() == nil && dma.statistics.liveMappings == 0)
      dma.limitAddresses(toChunks: .max)
      let mapped = try dma.map(try list(), .toDevice), address = mapped.address
      #expect(others.count == filled)
      others = []
      _ = try mapped.unmap()
      let page = Pages(1)
      for index in 0..<479 { #expect(Self.isFree(dma, address + index * 4096, page)) }
    }
  }

  /// The gaps of a list that waits for a flush stay taken, and the rest of a bulk map that was stopped, of an unmap too.
  @Test func endingTakesNoMemory() throws {
    try LazyTests.withDomain(.ioas, FlushQueueOptions(.single, timeout: LazyTests.patient)) { kernel, dma, machine in
      let page = Pages(1), area = 32 << 20
      let base = unsafe try kernel.mapMemory(byteCount: 3 * area, descriptor: -1, offset: 0)
      defer { unsafe kernel.unmapMemory(base, byteCount: 3 * area) }
      let memory = unsafe UnsafeRawBufferPointer(start: base, count: 3 * area)
      guard let bulk = try unsafe dma.mapBulk(unsafe: memory, .toDevice) else {
        throw DMAError(.system, "nothing mapped")
      }
      let start = bulk.address
      try dma.setConstraints(DMAConstraints(alignment: PageSize(shift: 13)))
      var list = ScatterList()
      for _ in 0..<3 { list.append(try dma.buffer(byteCount: 4000)) }
      let mapped = try dma.map(list, .toDevice), gap = mapped.address + 4096
      try dma.setConstraints(DMAConstraints())
      var others = try Self.exhaust(dma)
      let queued = dma.statistics.queuedBytes
      _ = try mapped.unmap()
      #expect(dma.statistics.queuedBytes == queued + 5 * 4096 && dma.checkAddresses() == nil)
      let asked = Shared(0)
      let left = try bulk.unmapBulk {
        asked.change { asked in
          asked += 1
          return asked > 1
        }
      }
      guard let left else { throw DMAError(.system, "nothing left") }
      #expect(left.byteCount == 2 * area && left.address == start + area && dma.checkAddresses() == nil)
      unsafe #expect(dma.translate(left.address, byteCount: 2 * area) == base + area)
      #expect(!Self.isFree(dma, left.address, page) && dma.statistics.flushes == 1, "what waits was in the way")
      #expect(!others.isEmpty)
      others = []
      dma.limitAddresses(toChunks: .max)
      #expect(Self.isFree(dma, gap, page) && Self.isFree(dma, start, page))
      try left.unmap()
      // Stopped while it was made, when there is no memory any more.
      asked.change { $0 = 0 }
      let stopped = try unsafe dma.mapBulk(unsafe: memory, .toDevice) {
        asked.change { asked in
          asked += 1
          if asked > 1 { dma.limitAddresses(toChunks: 0) }
          return asked > 1
        }
      }
      guard let stopped else { throw DMAError(.system, "nothing mapped") }
      #expect(stopped.byteCount == area && dma.checkAddresses() == nil)
      unsafe #expect(dma.translate(stopped.address, byteCount: area) == base)
      dma.limitAddresses(toChunks: .max)
      try stopped.unmap()
    }
  }
}
