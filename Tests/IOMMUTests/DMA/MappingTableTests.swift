import AddressSpace
import AddressSpaceModels
import IOMMU
import Synchronization
import Testing

/// The table of mappings against a dictionary, among threads, and without memory.
@Suite struct MappingTableTests {
  /// What a trace has made: mappings by first address, and those that ended, the latest last.
  private struct Model {
    var live: [UInt64: (host: UInt64, byteCount: UInt64)] = [:]
    var ended: [IOVARange] = []

    func holder(_ address: UInt64) -> (start: UInt64, host: UInt64, byteCount: UInt64)? {
      for (start, item) in live where address >= start && address - start < item.byteCount {
        return (start, item.host, item.byteCount)
      }
      return nil
    }
  }

  private static func table(_ highest: UInt64 = (1 << 48) - 1, _ granule: PageSize = .fourKiB) -> MappingTable {
    MappingTable(highest: highest, granule: granule)!
  }

  /// Windows of 4 MiB, so that ranges of all sizes come to lie where others were: the lowest, two that touch, the highest.
  private static func bases(_ bits: UInt64) -> [UInt64] { [0, 1 << 31 - 1 << 22, 1 << 31, 1 << bits - 1 << 22] }

  @Test(arguments: [UInt64(1), 2, 3, 4, 5, 6], [(UInt8(12), UInt64(48)), (12, 57), (14, 39), (16, 48)])
  func everyAnswerIsTheModels(_ seed: UInt64, _ shape: (shift: UInt8, bits: UInt64)) throws {
    var random = SplitMix64(seed: seed), model = Model()
    let granule = PageSize(shift: shape.shift), page = granule.byteCount
    let table = Self.table(1 << shape.bits - 1, granule)
    defer { table.deallocate() }
    for step in 0..<3000 {
      let place = Comment(rawValue: "seed \(seed), step \(step)")
      if model.live.count < 20 || Bool.random(using: &random) {
        let pages = UInt64.random(in: 1...(2 << 20) / page, using: &random) >> UInt64.random(in: 0...9, using: &random)
        let length = page * max(pages, 1), rounded = PageSize(fitting: length)!
        let base = Self.bases(shape.bits).randomElement(using: &random)!
        let start = rounded.alignedDown(base + UInt64.random(in: 0..<4 << 20, using: &random))
        let range = IOVARange(start: IOVA(start), byteCount: rounded.byteCount)!
        let isFree = model.live.allSatisfy { first, item in
          !range.overlaps(IOVARange(start: IOVA(first), byteCount: PageSize(fitting: item.byteCount)!.byteCount)!)
        }
        guard isFree else { continue }
        let host = UInt64.random(in: 1..<1 << (46 - UInt64(shape.shift)), using: &random) << UInt64(shape.shift)
        table.forgetEnded(in: range)
        model.ended.removeAll { range.contains($0.start) }
        #expect(table.enter(IOVA(start), host: host, byteCount: length))
        model.live[start] = (host, length)
      } else {
        let (start, item) = model.live.randomElement(using: &random)!
        model.live[start] = nil
        if Int.random(in: 0..<4, using: &random) == 0 {
          table.remove(IOVA(start))
          model.ended.removeAll { $0.start.rawValue == start }
        } else {
          #expect(table.end(IOVA(start))?.host == item.host, place)
          #expect(table.end(IOVA(start)) == nil, "once")
          model.ended.append(IOVARange(start: IOVA(start), byteCount: item.byteCount)!)
        }
      }
      for _ in 0..<6 { Self.compare(table, model, shape.bits, &random, place) }
    }
    var found: [UInt64: UInt64] = [:]
    table.forEach { start, host, byteCount in found[start.rawValue] = host ^ byteCount }
    #expect(found == model.live.mapValues { $0.host ^ $0.byteCount })
  }

  private static func compare(
    _ table: MappingTable, _ model: Model, _ bits: UInt64, _ random: inout SplitMix64, _ place: Comment
  ) {
    // Near a mapping, or anywhere; of a length that its end or a page's cuts.
    var address = bases(bits).randomElement(using: &random)! + UInt64.random(in: 0..<4 << 20, using: &random)
    var byteCount = UInt64.random(in: 1...8192, using: &random)
    if let (start, item) = model.live.randomElement(using: &random), Bool.random(using: &random) {
      address = start + UInt64.random(in: 0..<item.byteCount, using: &random)
      byteCount = item.byteCount - (address - start) + UInt64.random(in: 0...1, using: &random)
    }
    let holder = model.holder(address)
    let expected = holder.flatMap { item in
      item.byteCount - (address - item.start) >= byteCount ? item.host + (address - item.start) : nil
    }
    #expect(table.translate(IOVA(address), byteCount: byteCount) == expected, place)
    #expect(
      table.range(containing: IOVA(address), isLive: true)
        == holder.map { IOVARange(start: IOVA($0.start), byteCount: $0.byteCount)! }, place)
    if holder == nil {
      #expect(
        table.range(containing: IOVA(address), isLive: false) == model.ended.last { $0.contains(IOVA(address)) }, place)
    }
    Self.compareFound(table, model, &random, place)
  }

  /// Memory is found in the mapping that was named last for its page, and only while that is live.
  private static func compareFound(
    _ table: MappingTable, _ model: Model, _ random: inout SplitMix64, _ place: Comment
  ) {
    let starts = model.live.keys + model.ended.map(\.start.rawValue)
    guard let start = starts.randomElement(using: &random) else { return }
    let item = model.live[start] ?? (host: 1 << 20, byteCount: 1 << 16)
    let offset = UInt64.random(in: 0...item.byteCount, using: &random) &- UInt64.random(in: 0...1, using: &random)
    let byteCount = UInt64.random(in: 1...8192, using: &random)
    table.noteFound(item.host &+ offset, in: IOVA(start))
    // At no address, 0, is anything that was found.
    let isInside = offset < item.byteCount && byteCount <= item.byteCount - offset
    let isFound = isInside && model.live[start] != nil && start != 0
    let answer = table.translateFound(item.host &+ offset, byteCount: byteCount)
    #expect(answer == (isFound ? IOVA(start + offset) : nil), place)
  }

  /// No address, however high, and no length leads anywhere else.
  @Test func whatCannotBeMappedIsNotFound() {
    let table = Self.table((1 << 39) - 1)
    defer { table.deallocate() }
    #expect(table.enter(IOVA(0x1000), host: 0x7000, byteCount: 0x1000))
    for shift in 39..<64 as Range<UInt64> {
      #expect(table.translate(IOVA(1 << shift | 0x1000), byteCount: 1) == nil)
      #expect(table.end(IOVA(1 << shift | 0x1000)) == nil)
      #expect(table.range(containing: IOVA(1 << shift | 0x1000), isLive: true) == nil)
    }
    for byteCount in [0x1001, 1 << 40, UInt64.max] {
      #expect(table.translate(IOVA(0x1000), byteCount: byteCount) == nil)
    }
    table.forgetEnded(in: .full)
    #expect(table.translate(IOVA(0x1000), byteCount: 1) == nil, "which was all of the space")
  }

  /// A granule that leaves no room for a length takes no mapping.
  @Test func smallGranules() {
    for shift in [2, 11] as [UInt8] {
      let table = Self.table(.max, PageSize(shift: shift))
      #expect(table.largestByteCount == 0)
      table.deallocate()
    }
    let table = Self.table(.max)
    #expect(table.largestByteCount == 2 << 20)
    #expect(table.enter(IOVA(.max - 0xfff), host: 0x1000, byteCount: 0x1000))
    #expect(table.translate(IOVA(.max), byteCount: 1) == 0x1fff)
    table.deallocate()
  }

  /// Nodes run out at each level in turn; what was made until then serves the next try.
  @Test func noMemoryForANode() {
    let table = Self.table()
    defer { table.deallocate() }
    #expect(table.enter(IOVA(1 << 47), host: 0x1000, byteCount: 0x1000))
    for nodes in 0..<3 {
      table.limitMemory(toNodes: nodes == 0 ? 0 : 1)
      #expect(!table.enter(IOVA(0x2000), host: 0x3000, byteCount: 0x1000), "the tree has three levels below the root")
      #expect(table.translate(IOVA(0x2000), byteCount: 1) == nil)
      #expect(table.end(IOVA(0x2000)) == nil)
    }
    table.limitMemory(toNodes: 1)
    #expect(table.enter(IOVA(0x2000), host: 0x3000, byteCount: 0x1000))
    #expect(table.translate(IOVA(0x2fff), byteCount: 1) == 0x3fff)
    #expect(table.translate(IOVA(1 << 47), byteCount: 1) == 0x1000)
  }

  /// Threads enter and end mappings of all sizes in places of their own, below nodes that all of them make; each looks for
  /// those of all.
  @Test func threadsGetNoWrongAnswer() async {
    let table = Self.table()
    let threads: UInt64 = 4, area: UInt64 = 2 << 20
    // Where an address leads does not depend on who has mapped it.
    let distance: UInt64 = 1 << 44
    let failures = await inThreads(Int(threads)) { thread in
      var random = SplitMix64(seed: UInt64(thread) + 1)
      for round in 0..<20_000 as Range<UInt64> {
        // A new part of the space now and then; the threads are there at about the same time.
        let base = (round / 500) << 30
        let order = UInt64.random(in: 0...9, using: &random), byteCount: UInt64 = 4096 << order
        let place = UInt64.random(in: 0..<512 >> order, using: &random)
        let start = base + UInt64(thread) * area + place * byteCount
        if !table.enter(IOVA(start), host: start + distance, byteCount: byteCount) { throw Failure(round) }
        for _ in 0..<8 {
          let address = base + UInt64.random(in: 0..<threads * area, using: &random)
          let found = table.translate(IOVA(address), byteCount: 1)
          if found != nil && found != address + distance { throw Failure(round) }
        }
        let interior = start + UInt64.random(in: 0..<byteCount, using: &random)
        if table.translate(IOVA(interior), byteCount: 1) != interior + distance { throw Failure(round) }
        if table.end(IOVA(start))?.host != start + distance { throw Failure(round) }
        if table.translate(IOVA(interior), byteCount: 1) != nil { throw Failure(round) }
        table.forgetEnded(in: IOVARange(start: IOVA(start), byteCount: byteCount)!)
      }
    }
    #expect(failures.isEmpty)
    table.deallocate()
  }

  private struct Failure: Error {
    var round: UInt64
    init(_ round: UInt64) { self.round = round }
  }
}
