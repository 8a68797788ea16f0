package import AddressSpace
package import Synchronization

/// Which memory lies at which I/O addresses, for mappings of up to 2 MiB at addresses that are naturally aligned: found,
/// entered and ended by any thread without a lock.
///
/// A ``RadixTable`` over IOVA page numbers. A mapping is one word, in the place of its first page: the host address with the
/// number of pages in its low bits. Its address is a multiple of its length rounded up to a power of two, so an address inside it
/// is looked for at ten places of one leaf.
///
/// The word of a mapping that ended stays, marked so, until the next one at its address: it names the mapping to faults
/// that come late. Of several such words the one of the smallest alignment is the latest, since ``forgetEnded(in:)``
/// is called for a range of another size before its first mapping is entered.
///
/// A copy is the same table. Whoever made it calls ``deallocate()`` once, when no thread uses it any more.
@safe
package struct MappingTable: @unchecked Sendable {
  private let table: RadixTable
  /// Where each page of this process was found last: the address of the mapping. Nothing that it says is believed without a look
  /// at that mapping's record, so that nobody has to keep it right. Its leaves take 4 KiB for each 2 MiB that were ever asked for.
  private let found: RadixTable
  private let hints: RadixHints
  /// The bits of addresses inside of a page.
  private let pageShift: UInt64

  /// The longest mapping that it takes, in bytes: 2 MiB, or 0 where a page's address leaves too few bits for a length, or none are wanted.
  package let largestByteCount: UInt64

  /// A table for addresses up to `highest`, which are mapped in multiples of `granule` by threads on so many processors; nil
  /// when there is no memory.
  ///
  /// - Parameter takesAny: Whether it takes mappings at all.
  package init?(highest: UInt64, granule: PageSize, processors: Int = 1, takesAny: Bool = true) {
    pageShift = UInt64(granule.shift)
    largestByteCount = takesAny && granule.shift >= 12 ? 2 << 20 : 0
    guard let table = RadixTable(highest: highest >> pageShift) else { return nil }
    guard let found = RadixTable(highest: (1 << 48 - 1) >> pageShift) else {
      table.deallocate()
      return nil
    }
    (self.table, self.found) = (table, found)
    hints = RadixHints(processors: processors)
  }

  package func deallocate() {
    table.deallocate()
    found.deallocate()
    hints.deallocate()
  }

  /// Lets memory run out after so many more nodes. For tests.
  package func limitMemory(toNodes count: Int) { table.limitMemory(toNodes: count) }
}

// MARK: - Records

extension MappingTable {
  /// What the table knows of a range: a word of a leaf.
  package struct Record: BitwiseCopyable, Sendable {
    let word: UInt64

    static var live: UInt64 { 1 << 10 }

    /// The address of its memory in this process.
    @inline(__always)
    package var host: UInt64 { word & ~0xfff }
    /// Its length in pages.
    @inline(__always)
    var pageCount: UInt64 { word & 0x3ff }
    /// Whether it is mapped; else it was.
    @inline(__always)
    var isLive: Bool { word & Self.live != 0 }
  }

  /// Enters a mapping; false when there is no memory for a node, and nothing has changed.
  ///
  /// - Precondition: The address was allocated for this length, which is at most ``largestByteCount``; both, and `host`, are
  ///   multiples of the granule. O(1).
  @inline(__always)
  package func enter(_ iova: IOVA, host: UInt64, byteCount: UInt64) -> Bool {
    let page = iova.rawValue &>> pageShift
    guard let leaf = unsafe leaf(page) ?? table.makeLeaf(page) else { return false }
    let word = host | Record.live | byteCount &>> pageShift
    unsafe leaf[Int(truncatingIfNeeded: page & 511)].store(word, ordering: .releasing)
    return true
  }

  /// As ``enter(_:host:byteCount:)``, where no node has to be made; false where one has. With a slot held, which all who ask whether
  /// something is mapped pass.
  package func enterHere(_ iova: IOVA, host: UInt64, byteCount: UInt64) -> Bool {
    guard let leaf = unsafe leaf(iova.rawValue >> pageShift) else { return false }
    unsafe enter(iova, host: host, byteCount: byteCount, in: leaf)
    return true
  }

  /// As ``enterHere(_:host:byteCount:)``, in the node of the record before; false where it is another.
  @inline(__always)
  package func enterNear(_ iova: IOVA, host: UInt64, byteCount: UInt64) -> Bool {
    guard let leaf = unsafe table.lastLeaf(iova.rawValue &>> pageShift, hints.own) else { return false }
    unsafe enter(iova, host: host, byteCount: byteCount, in: leaf)
    return true
  }

  @inline(__always)
  private func enter(_ iova: IOVA, host: UInt64, byteCount: UInt64, in leaf: RadixTable.Node) {
    let index = Int(truncatingIfNeeded: iova.rawValue &>> pageShift & 511)
    unsafe leaf[index].store(host | Record.live | byteCount &>> pageShift, ordering: .relaxed)
  }

  /// Where the record of the mapping that starts at an address is, and what it says; nil when none does. O(1).
  @inline(__always)
  package func live(_ iova: IOVA) -> (place: UnsafeMutablePointer<Atomic<UInt64>>, record: Record)? {
    let page = iova.rawValue &>> pageShift
    guard page <= table.highest, let leaf = unsafe leaf(page) else { return nil }
    let place = unsafe leaf + Int(truncatingIfNeeded: page & 511)
    let record = Record(word: unsafe place.pointee.load(ordering: .relaxed))
    return unsafe record.isLive ? (place, record) : nil
  }

  /// As ``live(_:)``, of an address of a mapping, in the node of the record before; nil where it is another.
  @inline(__always)
  package func liveNear(_ iova: IOVA) -> (place: UnsafeMutablePointer<Atomic<UInt64>>, record: Record)? {
    let page = iova.rawValue &>> pageShift
    guard let leaf = unsafe table.lastLeaf(page, hints.own) else { return nil }
    let place = unsafe leaf + Int(truncatingIfNeeded: page & 511)
    let record = Record(word: unsafe place.pointee.load(ordering: .relaxed))
    return unsafe record.isLive ? (place, record) : nil
  }

  /// Ends the mapping that starts at an address; nil when none does. Only whoever owns the mapping may. O(1).
  @inline(__always)
  package func end(_ iova: IOVA) -> Record? {
    guard let (place, record) = unsafe live(iova) else { return nil }
    unsafe Self.end(place, record)
    return record
  }

  /// Ends a mapping that was found by ``live(_:)``. Only whoever owns it may.
  @inline(__always)
  package static func end(_ place: UnsafeMutablePointer<Atomic<UInt64>>, _ record: Record) {
    unsafe place.pointee.store(record.word & ~Record.live, ordering: .releasing)
  }

  /// The same with a slot held, as for ``enterHere(_:host:byteCount:)``.
  @inline(__always)
  package static func endHere(_ place: UnsafeMutablePointer<Atomic<UInt64>>, _ record: Record) {
    unsafe place.pointee.store(record.word & ~Record.live, ordering: .relaxed)
  }

  /// Takes back what was entered and never was a mapping.
  package func remove(_ iova: IOVA) {
    let page = iova.rawValue >> pageShift
    if let leaf = unsafe leaf(page) { unsafe leaf[Int(page & 511)].store(0, ordering: .releasing) }
  }

  /// Forgets the mappings that ended inside a range, which belongs to the caller. O(pages of it near any that ever was mapped).
  package func forgetEnded(in range: IOVARange) {
    let first = range.start.rawValue >> pageShift, last = min(range.last.rawValue >> pageShift, table.highest)
    guard first <= last else { return }
    unsafe table.forEach(first...last) { unsafe $1.pointee.store(0, ordering: .relaxed) }
  }
}

// MARK: - Finding

extension MappingTable {
  /// Where an address lies in this process, if all of `byteCount` bytes lie in one mapping. O(1).
  @inline(__always)
  package func translate(_ iova: IOVA, byteCount: UInt64) -> UInt64? {
    let page = iova.rawValue &>> pageShift
    guard let (first, record) = find(page, isLive: true) else { return nil }
    let offset = iova.rawValue &- first &<< pageShift
    let length = record.pageCount &<< pageShift
    guard byteCount <= length, offset <= length &- byteCount else { return nil }
    return record.host &+ offset
  }

  /// Where memory of this process lies for the device, if all of it lies in the mapping that ``noteFound(_:in:)`` named last for its
  /// first page, and that is live. O(1).
  @inline(__always)
  package func translateFound(_ host: UInt64, byteCount: UInt64) -> IOVA? {
    let hostPage = host &>> pageShift
    let hints = unsafe hints.own
    guard hostPage <= found.highest, let places = unsafe found.leaf(hostPage, hints + 1) else { return nil }
    let start = unsafe places[Int(truncatingIfNeeded: hostPage & 511)].load(ordering: .relaxed)
    let page = start &>> pageShift
    guard start != 0, let leaf = unsafe table.leaf(page, hints) else { return nil }
    let record = Record(word: unsafe leaf[Int(truncatingIfNeeded: page & 511)].load(ordering: .acquiring))
    let offset = host &- record.host, length = record.pageCount &<< pageShift
    guard record.isLive, byteCount <= length, offset <= length &- byteCount else { return nil }
    return IOVA(start &+ offset)
  }

  /// Memory was found in the mapping that begins at an address, and may be asked for again. Without memory for a node it is
  /// looked for again then.
  package func noteFound(_ host: UInt64, in start: IOVA) {
    let hostPage = host >> pageShift
    guard start.rawValue >> pageShift <= table.highest, hostPage <= found.highest else { return }
    guard let leaf = unsafe found.leaf(hostPage, hints.own + 1) ?? found.makeLeaf(hostPage) else { return }
    unsafe leaf[Int(hostPage & 511)].store(start.rawValue, ordering: .relaxed)
  }

  /// The mapping that an address lies in, or with `isLive` false the last that it lay in. O(1).
  package func range(containing iova: IOVA, isLive: Bool) -> IOVARange? {
    guard let (first, record) = find(iova.rawValue >> pageShift, isLive: isLive) else { return nil }
    return IOVARange(start: IOVA(first << pageShift), byteCount: record.pageCount << pageShift)
  }

  /// The mapping that begins at an address. O(1).
  package func mapping(at start: IOVA) -> (host: UInt64, byteCount: UInt64)? {
    let page = start.rawValue >> pageShift
    guard page <= table.highest, let leaf = unsafe leaf(page) else { return nil }
    let record = Record(word: unsafe leaf[Int(page & 511)].load(ordering: .acquiring))
    return record.isLive ? (record.host, record.pageCount << pageShift) : nil
  }

  @inline(__always)
  private func leaf(_ page: UInt64) -> RadixTable.Node? { unsafe table.leaf(page, hints.own) }

  /// A record that holds a page, and its first page.
  @inline(__always)
  private func find(_ page: UInt64, isLive: Bool) -> (first: UInt64, record: Record)? {
    guard page <= table.highest, let leaf = unsafe leaf(page) else { return nil }
    var first = page, order: UInt64 = 0
    while true {
      let record = Record(word: unsafe leaf[Int(truncatingIfNeeded: first & 511)].load(ordering: .acquiring))
      if record.isLive == isLive, page &- first < record.pageCount { return (first, record) }
      order &+= 1
      if order == 10 { return nil }
      first = (page &>> order) &<< order
    }
  }

  /// Calls a function with each mapping. O(addresses that ever were mapped).
  package func forEach(_ body: (_ start: IOVA, _ host: UInt64, _ byteCount: UInt64) -> Void) {
    unsafe table.forEach(0...table.highest) { page, word in
      let record = Record(word: unsafe word.pointee.load(ordering: .acquiring))
      if record.isLive { body(IOVA(page << pageShift), record.host, record.pageCount << pageShift) }
    }
  }
}
