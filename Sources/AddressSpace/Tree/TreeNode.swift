/// What a ``Tree`` keeps: a key, a value, and a summary of many that lets a search pass over a whole subtree.
protocol TreeRecord {
  /// What the records are ordered by.
  associatedtype Key: Comparable & BitwiseCopyable
  /// What goes with a key.
  associatedtype Value: BitwiseCopyable
  /// What is known of a set of records.
  associatedtype Summary: TreeSummary
  /// Adds one record to what is known.
  static func summarize(_ key: Key, _ value: Value, into summary: inout Summary)
  /// Whether one record is what a query looks for. It must agree with the summary of the record alone.
  static func admits(_ key: Key, _ value: Value, _ query: Summary.Query) -> Bool
}

/// What is known of a set of records: a maximum, or several.
protocol TreeSummary: BitwiseCopyable, Equatable {
  /// What a search looks for.
  associatedtype Query: BitwiseCopyable
  /// What is known of no record at all.
  static var none: Self { get }
  /// Adds what is known of another set.
  mutating func formUnion(_ other: Self)
  /// Whether adding the other would change nothing.
  func covers(_ other: Self) -> Bool
  /// Whether each maximum is greater than the other's.
  func exceeds(_ other: Self) -> Bool
  /// Whether the set holds a record that the query looks for. Exact: the search relies on it in both
  /// directions.
  func admits(_ query: Query) -> Bool
}

/// A node of a ``Tree``: a view of one block of its pool.
///
/// A block starts with the number of entries and the level, 0 for a leaf. A leaf's arrays are keys and
/// values; an inner node's are keys, summaries and children, where a key separates its child from the one
/// before (so the first is never read). Keys lie together: a search reads two cache lines of them.
///
/// Safe as long as the block belongs to the tree: nodes never leave it. Indices are asserted.
@safe
struct TreeNode<Record: TreeRecord>: BitwiseCopyable, Equatable {
  typealias Key = Record.Key
  typealias Value = Record.Value
  typealias Summary = Record.Summary

  let block: UnsafeMutableRawPointer

  /// 11 cache lines, room for 17 tiles. 448 and 1024 bytes were measured to differ by less than a tenth.
  static var blockByteCount: Int { 704 }
  private static var headerByteCount: Int { 16 }

  static var leafCapacity: Int {
    (blockByteCount - headerByteCount) / (MemoryLayout<Key>.stride + MemoryLayout<Value>.stride)
  }
  static var innerCapacity: Int {
    (blockByteCount - headerByteCount)
      / (MemoryLayout<Key>.stride + MemoryLayout<Summary>.stride + MemoryLayout<TreeNode>.stride)
  }

  /// The entries that a node has room for.
  var capacity: Int { level == 0 ? Self.leafCapacity : Self.innerCapacity }
  /// The entries that any node but the root has at least.
  var minimum: Int { capacity / 4 }

  init(block: UnsafeMutableRawPointer) { unsafe self.block = unsafe block }

  /// Makes an empty node of a block.
  init(block: UnsafeMutableRawPointer, level: Int) {
    unsafe self.block = unsafe block
    unsafe block.storeBytes(of: Int32(level), toByteOffset: 4, as: Int32.self)
    count = 0
  }

  /// The number of entries.
  var count: Int {
    get { unsafe Int(block.load(as: Int32.self)) }
    nonmutating set { unsafe block.storeBytes(of: Int32(truncatingIfNeeded: newValue), as: Int32.self) }
  }

  /// The distance from the leaves.
  var level: Int { unsafe Int(block.load(fromByteOffset: 4, as: Int32.self)) }
}

// MARK: - Entries

extension TreeNode {
  var keys: UnsafeMutablePointer<Key> {
    unsafe (block + Self.headerByteCount).assumingMemoryBound(to: Key.self)
  }
  var values: UnsafeMutablePointer<Value> {
    let offset = Self.headerByteCount + Self.leafCapacity * MemoryLayout<Key>.stride
    return unsafe (block + offset).assumingMemoryBound(to: Value.self)
  }
  var summaries: UnsafeMutablePointer<Summary> {
    let offset = Self.headerByteCount + Self.innerCapacity * MemoryLayout<Key>.stride
    return unsafe (block + offset).assumingMemoryBound(to: Summary.self)
  }
  var children: UnsafeMutablePointer<TreeNode> {
    let strides = MemoryLayout<Key>.stride + MemoryLayout<Summary>.stride
    let offset = Self.headerByteCount + Self.innerCapacity * strides
    return unsafe (block + offset).assumingMemoryBound(to: TreeNode.self)
  }

  /// Whether an index names an entry: what all accessors assert.
  func holds(_ slot: Int) -> Bool { slot >= 0 && slot < count }

  func key(_ slot: Int) -> Key {
    assert(holds(slot))
    return unsafe keys[slot]
  }
  func setKey(_ slot: Int, _ key: Key) {
    assert(holds(slot))
    unsafe keys[slot] = key
  }
  func value(_ slot: Int) -> Value {
    assert(holds(slot) && level == 0)
    return unsafe values[slot]
  }
  func setValue(_ slot: Int, _ value: Value) {
    assert(holds(slot) && level == 0)
    unsafe values[slot] = value
  }
  func summary(_ slot: Int) -> Summary {
    assert(holds(slot) && level > 0)
    return unsafe summaries[slot]
  }
  func setSummary(_ slot: Int, _ summary: Summary) {
    assert(holds(slot) && level > 0)
    unsafe summaries[slot] = summary
  }
  func addSummary(_ slot: Int, _ summary: Summary) {
    assert(holds(slot) && level > 0)
    unsafe summaries[slot].formUnion(summary)
  }
  func child(_ slot: Int) -> TreeNode {
    assert(holds(slot) && level > 0)
    return unsafe children[slot]
  }
}
