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
  /// Whether the set holds a record that the query looks for. Exact: the search relies on it in both directions.
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

  /// 704 bytes are 11 cache lines, and room for 17 tiles: measured against 512 and 1024.
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
  private var keys: UnsafeMutablePointer<Key> {
    unsafe (block + Self.headerByteCount).assumingMemoryBound(to: Key.self)
  }
  private var values: UnsafeMutablePointer<Value> {
    let offset = Self.headerByteCount + Self.leafCapacity * MemoryLayout<Key>.stride
    return unsafe (block + offset).assumingMemoryBound(to: Value.self)
  }
  private var summaries: UnsafeMutablePointer<Summary> {
    let offset = Self.headerByteCount + Self.innerCapacity * MemoryLayout<Key>.stride
    return unsafe (block + offset).assumingMemoryBound(to: Summary.self)
  }
  private var children: UnsafeMutablePointer<TreeNode> {
    let strides = MemoryLayout<Key>.stride + MemoryLayout<Summary>.stride
    let offset = Self.headerByteCount + Self.innerCapacity * strides
    return unsafe (block + offset).assumingMemoryBound(to: TreeNode.self)
  }

  /// Whether an index names an entry: what all accessors assert.
  private func holds(_ slot: Int) -> Bool { slot >= 0 && slot < count }

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

// MARK: - Searching and summing up

extension TreeNode {
  /// The last slot but the first whose key is not above `key`, or else the first. Without a branch on the keys.
  @inline(__always)
  func slot(for key: Key) -> Int {
    var (first, length) = (0, count)
    while length > 1 {
      let half = length / 2
      first = unsafe keys[first + half] <= key ? first + half : first
      length -= half
    }
    return first
  }

  /// The last slot of a leaf whose key is not above `key`; -1 when there is none.
  @inline(__always)
  func lastSlot(notAbove key: Key) -> Int {
    let slot = slot(for: key)
    return unsafe count == 0 || key < keys[0] ? -1 : slot
  }

  /// The first record from a slot on, in steps of 1 or -1, that a query admits. The slot may be one off either end.
  @inline(__always)
  func scan(from first: Int, step: Int, for query: Summary.Query) -> Int? {
    assert(level == 0)
    var slot = first
    let end = step > 0 ? count : -1
    while slot != end {
      if unsafe Record.admits(keys[slot], values[slot], query) { return slot }
      slot &+= step
    }
    return nil
  }

  /// The first subtree from a slot on, in steps of 1 or -1, that a query admits.
  @inline(__always)
  func scanSubtrees(from first: Int, step: Int, for query: Summary.Query) -> Int? {
    assert(level > 0)
    var slot = first
    let end = step > 0 ? count : -1
    while slot != end {
      if unsafe summaries[slot].admits(query) { return slot }
      slot &+= step
    }
    return nil
  }

  /// What is known of all records below.
  var summary: Summary {
    var sum = Summary.none
    summarize(from: 0, to: count, into: &sum)
    return sum
  }

  /// Adds what is known of the records below some slots; of none when they are in the wrong order.
  func summarize(from first: Int, to end: Int, into sum: inout Summary) {
    var slot = first
    if level == 0 {
      while slot < end {
        unsafe Record.summarize(keys[slot], values[slot], into: &sum)
        slot &+= 1
      }
    } else {
      while slot < end {
        unsafe sum.formUnion(summaries[slot])
        slot &+= 1
      }
    }
  }

  static func == (left: TreeNode, right: TreeNode) -> Bool { unsafe left.block == right.block }
}

// MARK: - Moving entries

extension TreeNode {
  /// Opens a gap for one entry.
  private func open(_ slot: Int) {
    assert(slot >= 0 && slot <= count && count < capacity)
    move(from: slot, to: self, at: slot + 1, count: count - slot)
    count += 1
  }

  /// Moves entries, within a node or to another of the same level. Adjusts no count.
  private func move(from slot: Int, to target: TreeNode, at index: Int, count: Int) {
    unsafe (target.keys + index).update(from: keys + slot, count: count)
    if level == 0 {
      unsafe (target.values + index).update(from: values + slot, count: count)
    } else {
      unsafe (target.summaries + index).update(from: summaries + slot, count: count)
      unsafe (target.children + index).update(from: children + slot, count: count)
    }
  }

  func insert(_ slot: Int, _ key: Key, _ value: Value) {
    open(slot)
    unsafe keys[slot] = key
    unsafe values[slot] = value
  }

  func insert(_ slot: Int, _ key: Key, _ child: TreeNode) {
    open(slot)
    unsafe keys[slot] = key
    unsafe summaries[slot] = child.summary
    unsafe children[slot] = child
  }

  func remove(_ slot: Int) {
    assert(holds(slot))
    move(from: slot + 1, to: self, at: slot, count: count - slot - 1)
    count -= 1
  }

  /// Moves the entries from a slot on to the front of the next node.
  func moveTail(from slot: Int, to next: TreeNode) {
    let moved = count - slot
    next.move(from: 0, to: next, at: moved, count: next.count)
    move(from: slot, to: next, at: 0, count: moved)
    next.count += moved
    count -= moved
  }

  /// Moves the entries before a slot to the end of the previous node.
  func moveHead(before slot: Int, to previous: TreeNode) {
    move(from: 0, to: previous, at: previous.count, count: slot)
    move(from: slot, to: self, at: 0, count: count - slot)
    previous.count += slot
    count -= slot
  }
}
