/// Finds a mapping by the virtual address of its memory.
///
/// Intervals may overlap, and the same memory may be mapped several times at different device addresses.
/// A B+-tree ordered by virtual address, then device address, in which each subtree knows the highest
/// address that one of its intervals reaches: a search goes from the last interval that starts low enough
/// downwards to the first that reaches far enough.
///
/// Not thread-safe: the caller holds a lock around every call, queries included.
@safe
package struct IntervalIndex: ~Copyable, @unchecked Sendable {
  /// A piece of the process's memory and where a device sees it.
  package struct Interval: Equatable, Sendable {
    /// The virtual address of the first byte.
    package var start: UInt64
    /// The length in bytes, not 0.
    package var byteCount: UInt64
    /// Where a device sees the first byte.
    package var address: IOVA

    package init(start: UInt64, byteCount: UInt64, address: IOVA) {
      (self.start, self.byteCount, self.address) = (start, byteCount, address)
    }
  }

  /// A pointer, so that an index in a `let` of a class is changed without a check at run time.
  let tree: UnsafeMutablePointer<Tree<Span>>

  /// An index without intervals.
  ///
  /// - Parameter isFed: Whether it asks for no further memory itself, so that it may be used with a spin lock held: what an
  ///   insertion may need is added before, as ``announceInsertion()`` says.
  /// - Throws: `outOfMemory`.
  package init(isFed: Bool = false) throws(RangeStoreFailure) {
    guard let tree = Tree<Span>() else { throw .outOfMemory }
    unsafe self.tree = .allocate(capacity: 1)
    unsafe self.tree.initialize(to: tree)
    unsafe self.tree.pointee.pool.isFed = isFed
  }

  deinit {
    unsafe tree.deinitialize(count: 1)
    unsafe tree.deallocate()
  }
}

/// How intervals are kept in a ``Tree``.
enum Span: TreeRecord {
  struct Key: Comparable, BitwiseCopyable {
    var start: UInt64
    var address: UInt64

    static func < (left: Key, right: Key) -> Bool {
      left.start != right.start ? left.start < right.start : left.address < right.address
    }
  }

  /// The last byte, inside.
  typealias Value = UInt64

  /// The highest last byte.
  struct Summary: TreeSummary {
    var last: UInt64

    static var none: Summary { Summary(last: 0) }
    mutating func formUnion(_ other: Summary) { last = max(last, other.last) }
    func covers(_ other: Summary) -> Bool { last >= other.last }
    func exceeds(_ other: Summary) -> Bool { last > other.last }
    func admits(_ query: UInt64) -> Bool { last >= query }
  }

  static func summarize(_ key: Key, _ last: UInt64, into summary: inout Summary) {
    summary.last = max(summary.last, last)
  }
  static func admits(_ key: Key, _ last: UInt64, _ query: UInt64) -> Bool { last >= query }
}

// MARK: - Memory

extension IntervalIndex {
  /// One insertion is to come: the length in bytes of a chunk that has to be added before it; 0 when none has, or when there is
  /// no memory.
  package func announceInsertion() -> Int {
    unsafe tree.pointee.pool.announce(1)
    return unsafe tree.pointee.pool.wantedByteCount(tree.pointee.blockCount(forInsertions: 1))
  }

  /// Adds memory, which was asked for without the lock.
  package func add(_ chunk: consuming BlockChunk) { unsafe tree.pointee.pool.add(chunk) }
}

// MARK: - Intervals

extension IntervalIndex {
  /// Adds an interval.
  ///
  /// - Throws: `empty`, `overflow`, `duplicate` when the same memory is already there at the same
  ///   device address, `outOfMemory`.
  /// - Complexity: O(log n).
  package func insert(_ interval: Interval) throws(RangeStoreFailure) {
    guard interval.byteCount != 0 else { throw .empty }
    let (last, overflow) = interval.start.addingReportingOverflow(interval.byteCount - 1)
    guard !overflow else { throw .overflow }
    let key = Span.Key(start: interval.start, address: interval.address.rawValue)
    unsafe tree.pointee.seek(key)
    guard unsafe tree.pointee.slot < 0 || tree.pointee.key != key else { throw .duplicate }
    guard unsafe tree.pointee.reserveInsertion() else { throw .outOfMemory }
    unsafe tree.pointee.slot += 1
    unsafe tree.pointee.insert(key, last, .raised(key, last))
  }

  /// Removes the interval of a virtual and a device address and returns it; `nil` when there is none.
  ///
  /// - Complexity: O(log n).
  @discardableResult
  package func remove(start: UInt64, address: IOVA) -> Interval? {
    let key = Span.Key(start: start, address: address.rawValue)
    unsafe tree.pointee.seek(key)
    guard unsafe tree.pointee.slot >= 0, unsafe tree.pointee.key == key else { return nil }
    let last = unsafe tree.pointee.value
    unsafe tree.pointee.remove(.lowered(key, last))
    return Interval(start: start, byteCount: last - start + 1, address: address)
  }

  /// An interval that `byteCount` bytes from a virtual address lie wholly inside: of several the one that
  /// starts highest, of those the one with the highest device address. `nil` when there is none, or when
  /// `byteCount` is 0.
  ///
  /// - Complexity: O(log n), however many intervals overlap.
  package func find(containing start: UInt64, byteCount: UInt64 = 1) -> Interval? {
    guard byteCount != 0 else { return nil }
    let (last, overflow) = start.addingReportingOverflow(byteCount - 1)
    guard !overflow else { return nil }
    unsafe tree.pointee.seek(Span.Key(start: start, address: .max))
    guard unsafe tree.pointee.search(step: -1, for: last) else { return nil }
    let (key, end) = unsafe (tree.pointee.key, tree.pointee.value)
    return Interval(start: key.start, byteCount: end - key.start + 1, address: IOVA(key.address))
  }

  /// Calls a function with every interval, by virtual address and then device address. It must not change
  /// the index.
  ///
  /// - Complexity: O(n).
  package func forEach(_ body: (Interval) -> Void) {
    unsafe tree.pointee.forEach { key, last in
      body(Interval(start: key.start, byteCount: last - key.start + 1, address: IOVA(key.address)))
    }
  }

  /// The number of intervals.
  package var count: Int { unsafe tree.pointee.count }

  /// How many tree nodes the last search looked at: a figure for tests and benchmarks.
  package var visits: Int { unsafe tree.pointee.visits }

  /// The bytes of memory that the index takes.
  package var footprint: Int { unsafe tree.pointee.pool.byteCount + MemoryLayout<Tree<Span>>.size }
}
