import AddressSpace
import AddressSpaceModels
import Glibc
import IOMMU

extension StaleAccess {
  /// A live mapping of marked pages.
  final class Mapped {
    private var mapping: UnsafeMapping?
    let address: IOVA
    /// The first of the pages in memory, and which of the mapping's a device writes to.
    let first: Int, inUse: [Int]
    let isFixed: Bool

    init(_ mapping: consuming UnsafeMapping, first: Int, inUse: [Int], isFixed: Bool) {
      (address, self.first, self.inUse, self.isFixed) = (mapping.address, first, inUse, isFixed)
      self.mapping = consume mapping
    }

    func address(of page: Int) -> IOVA { IOVA(address.rawValue + UInt64(page) * 4096) }
    /// Whether a device writes to all of its pages.
    var isWhole: Bool { inUse == Array(0..<inUse.count) }
    func unmap() throws(DMAError) { if let mapping = mapping.take() { try mapping.unmap() } }
  }

  /// Maps pages; a device writes to those in use, all of them unless said otherwise.
  func mapped(_ first: Int, _ count: Int, at address: IOVA? = nil, inUse: [Int]? = nil) throws -> Mapped {
    let mapping = try unsafe dma.map(unsafe: pages.pages(first, count), .bidirectional, at: address)
    return Mapped(mapping, first: first, inUse: inUse ?? Array(0..<count), isFixed: address != nil)
  }

  private func firstPage(_ count: Int) -> Int { Int.random(in: 0...(MarkedPages.markedCount - count), using: &random) }

  /// One to four pages, at an address of the library's choice or of ours.
  func map() throws {
    let count = Int.random(in: 1...4, using: &random), first = firstPage(count)
    var address: IOVA?
    // An address of ours is taken until the flush.
    if !isLazy, random.once(in: 4) {
      let place = IOVA(0x5000_0000 + UInt64.random(in: 0..<8, using: &random) << 16)
      if !live.contains(where: { $0.address == place }) { address = place }
    }
    live.append(try mapped(first, count, at: address))
  }

  /// Unmaps, and maps as many other pages, at the same address if it may be.
  func remap() throws {
    let index = Int.random(in: 0..<live.count, using: &random), old = live[index], count = old.inUse.count
    // What took a table keeps it to itself.
    if old === neighbour { return try end(index) }
    try end(index)
    let mapped = try mapped(firstPage(count), count, at: old.isFixed && !isLazy ? old.address : nil)
    if mapped.address == old.address { outcome.reusedAddresses += 1 }
    live.append(mapped)
    try reach(mapped, mapped.inUse.randomElement(using: &random)!)
  }

  /// Ends a mapping of the list.
  func end(_ index: Int) throws {
    let mapped = live.remove(at: index)
    if mapped === neighbour { neighbour = nil }
    try end(mapped)
  }

  /// The device writes through each page; then the mapping ends; then the device tries again.
  private func end(_ mapped: Mapped) throws {
    for page in mapped.inUse { try reach(mapped, page) }
    ending = mapped
    endingPlace = mapped.isWhole ? pages.address(of: mapped.first) : nil
    defer { (ending, endingPlace) = (nil, nil) }
    try mapped.unmap()
    ending = nil
    if let failure { throw failure }
    outcome.unmaps += 1
    if isLazy {
      dead += mapped.inUse.map { (mapped.address(of: $0), mapped.first + $0) }
    } else {
      for page in mapped.inUse { try refuse(mapped.address(of: page), "after its unmap") }
    }
  }

  /// After it the device reaches nothing that was unmapped before.
  func drain() throws {
    try dma.drain()
    outcome.drains += 1
    let gone = dead
    dead = []
    for (address, _) in gone { try refuse(address, "after the drain") }
  }

  /// A mapping fills a table, in whose place another one is used when it goes, or a moment before.
  func useTable() throws {
    if let index = live.firstIndex(where: { $0 === neighbour }) { try end(index) }
    if isLazy { try drain() }
    let place = IOVA(0x1_0000_0000 + (turn % 8) << 21), beside = IOVA(0x1_0000_0000 + ((turn + 1) % 8) << 21)
    turn += 1
    let order = (0..<MarkedPages.markedCount - MarkedPages.wideStart).shuffled(using: &random)
    let wide = try mapped(MarkedPages.wideStart, MarkedPages.widePageCount, at: place, inUse: Array(order.prefix(3)))
    // Nothing has cached this page of the mapping. The next table has another page in its place.
    let spare = order[3], own = MarkedPages.wideStart + spare
    let takesTable = { [self] in
      neighbour = try mapped(
        (own + 1) % MarkedPages.markedCount, 1, at: IOVA(beside.rawValue + UInt64(spare) * 4096))
      live.append(neighbour!)
    }
    let isMeanwhile = !isLazy && Bool.random(using: &random)
    if isMeanwhile {
      meanwhile = { [self] in
        try takesTable()
        let reached = try write(to: wide.address(of: spare)).pages
        if !reached.isEmpty, reached != [own] {
          find("\(wide.address(of: spare)) reaches \(reached) before its unmap ends")
        }
      }
    }
    try end(wide)
    outcome.tables += 1
    if !isMeanwhile { try takesTable() }
    try reach(neighbour!, 0)
    if isLazy { return dead.append((wide.address(of: spare), own)) }
    try refuse(wide.address(of: spare), "after its unmap")
  }
}

// MARK: - Writes of the device

extension StaleAccess {
  /// A write to what is mapped reaches its page and nothing else.
  func reach(_ mapped: Mapped, _ page: Int) throws {
    let address = mapped.address(of: page), reached = try write(to: address).pages
    if reached != [mapped.first + page] {
      find("\(address) reaches \(reached), and page \(mapped.first + page) is mapped")
    }
  }

  /// A write to what is not mapped any more reaches nothing.
  func refuse(_ address: IOVA, _ when: String) throws {
    let (reached, passed) = try write(to: address)
    if !reached.isEmpty || passed == true { find("\(address) reaches \(reached) \(when)") }
  }

  func write(to address: IOVA) throws -> (pages: [Int], passed: Bool?) {
    outcome.writes += 1
    let passed = try writer.write(to: IOVA(address.rawValue + UInt64(MarkedPages.offset)))
    let reached = pages.takeChanged()
    for word in reached + [0xff] { outcome.digest = (outcome.digest ^ UInt64(word)) &* 0x100_0000_01b3 }
    return (reached, passed)
  }
}
