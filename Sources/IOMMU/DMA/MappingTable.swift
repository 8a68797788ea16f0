package import AddressSpace
import Glibc
import Synchronization

/// Which memory lies at which I/O addresses, for mappings of up to 2 MiB at addresses that are naturally aligned: found,
/// entered and ended by any thread without a lock.
///
/// A radix tree over IOVA page numbers, as page tables are: nodes of 512 words, as many levels as the highest address
/// needs, made when an address below them is first entered and kept until the end. A mapping is one word, in the leaf's
/// place of its first page: the host address with the number of pages in its low bits. Its address is a multiple of its
/// length rounded up to a power of two, so an address inside it is looked for at ten places of one leaf.
///
/// The word of a mapping that ended stays, marked so, until the next one at its address: it names the mapping to faults
/// that come late. Of several such words the one of the smallest alignment is the latest, since ``forgetEnded(in:)``
/// is called for a range of another size before its first mapping is entered.
///
/// A copy is the same table. Whoever made it calls ``deallocate()`` once, when no thread uses it any more.
@safe
package struct MappingTable: @unchecked Sendable {
  /// Words of a leaf are records; all others are addresses of nodes below, or 0.
  typealias Node = UnsafeMutablePointer<Atomic<UInt64>>

  private let root: Node
  /// The bits of a page number that are below the root's index, and of a page's addresses.
  private let rootShift: UInt64, pageShift: UInt64
  private let highestPage: UInt64
  /// How many nodes may still be made before memory "runs out": for tests.
  private let budget: UnsafeMutablePointer<Atomic<Int>>

  /// The longest mapping that it takes, in bytes: 2 MiB, or 0 where a page's address leaves too few bits for a length, or none are wanted.
  package let largestByteCount: UInt64

  /// A table for addresses up to `highest`, which are mapped in multiples of `granule`; nil when there is no memory.
  ///
  /// - Parameter takesAny: Whether it takes mappings at all.
  package init?(highest: UInt64, granule: PageSize, takesAny: Bool = true) {
    pageShift = UInt64(granule.shift)
    largestByteCount = takesAny && granule.shift >= 12 ? 2 << 20 : 0
    highestPage = highest >> pageShift
    let bits = UInt64(64 - highestPage.leadingZeroBitCount)
    rootShift = bits <= 9 ? 0 : (bits - 1) / 9 * 9
    guard let root = unsafe Self.allocateNode() else { return nil }
    unsafe self.root = unsafe root
    unsafe budget = .allocate(capacity: 1)
    unsafe budget.initialize(to: Atomic(.max))
  }

  package func deallocate() {
    unsafe deallocate(root, rootShift)
    unsafe budget.deallocate()
  }

  private func deallocate(_ node: Node, _ shift: UInt64) {
    for index in 0..<512 where shift > 0 {
      if let child = unsafe Self.child(node, index) { unsafe deallocate(child, shift - 9) }
    }
    unsafe free(node)
  }

  /// Lets memory run out after so many more nodes. For tests.
  package func limitMemory(toNodes count: Int) { unsafe budget.pointee.store(count, ordering: .relaxed) }
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
    guard let leaf = unsafe leaf(page) ?? makeLeaf(page) else { return false }
    let word = host | Record.live | byteCount &>> pageShift
    unsafe leaf[Int(truncatingIfNeeded: page & 511)].store(word, ordering: .releasing)
    return true
  }

  /// Ends the mapping that starts at an address; nil when none does. Only whoever owns the mapping may. O(1).
  @inline(__always)
  package func end(_ iova: IOVA) -> Record? {
    let page = iova.rawValue &>> pageShift
    guard page <= highestPage, let leaf = unsafe leaf(page) else { return nil }
    let place = unsafe leaf + Int(truncatingIfNeeded: page & 511)
    let record = Record(word: unsafe place.pointee.load(ordering: .relaxed))
    guard record.isLive else { return nil }
    unsafe place.pointee.store(record.word & ~Record.live, ordering: .releasing)
    return record
  }

  /// Takes back what was entered and never was a mapping.
  package func remove(_ iova: IOVA) {
    let page = iova.rawValue >> pageShift
    if let leaf = unsafe leaf(page) { unsafe leaf[Int(page & 511)].store(0, ordering: .releasing) }
  }

  /// Forgets the mappings that ended inside a range, which belongs to the caller. O(pages of it near any that ever was mapped).
  package func forgetEnded(in range: IOVARange) {
    let last = min(range.last.rawValue >> pageShift, highestPage)
    unsafe forgetEnded(root, rootShift, range.start.rawValue >> pageShift, last)
  }

  private func forgetEnded(_ node: Node, _ shift: UInt64, _ first: UInt64, _ last: UInt64) {
    guard first <= last else { return }
    for index in Int(first >> shift & 511)...Int(last >> shift & 511) {
      if shift == 0 {
        unsafe node[index].store(0, ordering: .relaxed)
      } else if let child = unsafe Self.child(node, index) {
        // Of the node below, what lies in the range.
        let start = (first >> shift & ~511 | UInt64(index)) << shift
        unsafe forgetEnded(child, shift - 9, max(first, start), min(last, start | ((1 << shift) - 1)))
      }
    }
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

  /// The mapping that an address lies in, or with `isLive` false the last that it lay in. O(1).
  package func range(containing iova: IOVA, isLive: Bool) -> IOVARange? {
    guard let (first, record) = find(iova.rawValue >> pageShift, isLive: isLive) else { return nil }
    return IOVARange(start: IOVA(first << pageShift), byteCount: record.pageCount << pageShift)
  }

  /// A record that holds a page, and its first page.
  @inline(__always)
  private func find(_ page: UInt64, isLive: Bool) -> (first: UInt64, record: Record)? {
    guard page <= highestPage, let leaf = unsafe leaf(page) else { return nil }
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
    unsafe forEach(root, rootShift, 0, body)
  }

  private func forEach(_ node: Node, _ shift: UInt64, _ first: UInt64, _ body: (IOVA, UInt64, UInt64) -> Void) {
    for index in 0..<512 {
      let page = first | UInt64(index) << shift
      if shift > 0 {
        if let child = unsafe Self.child(node, index) { unsafe forEach(child, shift - 9, page, body) }
        continue
      }
      let record = Record(word: unsafe node[index].load(ordering: .acquiring))
      if record.isLive { body(IOVA(page << pageShift), record.host, record.pageCount << pageShift) }
    }
  }
}

// MARK: - Nodes

extension MappingTable {
  @inline(__always)
  private static func child(_ node: Node, _ index: Int) -> Node? {
    unsafe Node(bitPattern: UInt(truncatingIfNeeded: node[index].load(ordering: .acquiring)))
  }

  /// The leaf of a page, where there is one.
  @inline(__always)
  private func leaf(_ page: UInt64) -> Node? {
    var node = unsafe root, shift = rootShift
    while shift > 0 {
      guard let next = unsafe Self.child(node, Int(truncatingIfNeeded: page &>> shift & 511)) else { return nil }
      unsafe node = next
      shift &-= 9
    }
    return unsafe node
  }

  /// Makes what is missing on the way to a leaf; nil when there is no memory.
  @inline(never)
  private func makeLeaf(_ page: UInt64) -> Node? {
    var node = unsafe root, shift = rootShift
    while shift > 0 {
      let index = Int(page >> shift & 511)
      guard let next = unsafe Self.child(node, index) ?? makeChild(node, index) else { return nil }
      unsafe node = next
      shift -= 9
    }
    return unsafe node
  }

  private func makeChild(_ node: Node, _ index: Int) -> Node? {
    guard unsafe budget.pointee.wrappingSubtract(1, ordering: .relaxed).newValue >= 0,
      let fresh = unsafe Self.allocateNode()
    else { return nil }
    let result = unsafe node[index].compareExchange(
      expected: 0, desired: UInt64(UInt(bitPattern: fresh)), ordering: .acquiringAndReleasing)
    if result.exchanged { return unsafe fresh }
    // Another thread was faster.
    unsafe free(fresh)
    return unsafe Node(bitPattern: UInt(result.original))
  }

  private static func allocateNode() -> Node? {
    var memory: UnsafeMutableRawPointer?
    guard unsafe posix_memalign(&memory, 4096, 512 * MemoryLayout<UInt64>.size) == 0, let block = unsafe memory else {
      return nil
    }
    let node = unsafe block.bindMemory(to: Atomic<UInt64>.self, capacity: 512)
    for index in 0..<512 { unsafe (node + index).initialize(to: Atomic(0)) }
    return unsafe node
  }
}
