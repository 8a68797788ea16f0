/// An ordered set of records that is searched by key and by summary: a B+-tree in raw memory.
///
/// Every node but the root is at least a quarter full, so n records lie under O(log n) levels. Each entry
/// of an inner node keeps the summary of its subtree. Where that says exactly whether the subtree holds
/// what a query looks for, a search goes up from where it starts, past the siblings that do not, and down
/// into the first that does: at most one node a level on each way, whether it succeeds or fails.
///
/// A node that is full splits at a quarter when it grows at an edge and in the middle otherwise, so that
/// allocation in one direction leaves nodes three quarters full. Two nodes are merged only when the result is
/// at most three quarters full, so that an allocation and a release never split and merge in turn.
///
/// Changes are made at one place, the *cursor*: the way from a leaf's slot up to the root, kept in the
/// tree so that no operation copies or clears it. It is good until the next insertion or removal.
///
/// Not thread-safe. The generic type stays inside this module, where it is specialised.
struct Tree<Record: TreeRecord>: ~Copyable {
  typealias Node = TreeNode<Record>
  typealias Key = Record.Key
  typealias Value = Record.Value
  typealias Summary = Record.Summary

  /// The topmost node, a leaf while the tree is small.
  var root: Node
  /// The level of the root.
  var height = 0
  /// The number of records.
  var count = 0
  /// The nodes' memory.
  var pool: BlockPool
  /// The cursor's nodes, from the leaf upwards. A quarter-full tree of 16 levels would hold more than
  /// 10¹⁰ records.
  var nodes: InlineArray<16, Node>
  /// The cursor's slot in each node. That in the leaf may be one off either end.
  var slots = InlineArray<16, Int>(repeating: 0)
  /// How many nodes were looked at since the last seek, which counts.
  var visits = 0

  /// An empty tree; `nil` when there is no memory for its first node.
  init?() {
    var pool = BlockPool(blockByteCount: Node.blockByteCount)
    guard pool.reserve(1) else { return nil }
    root = unsafe Node(block: pool.take(), level: 0)
    nodes = InlineArray(repeating: root)
    self.pool = pool
  }

  /// The most levels.
  static var heightLimit: Int { 16 }
}

// MARK: - The cursor

extension Tree {
  /// The cursor's leaf.
  var leaf: Node { nodes[0] }

  /// The cursor's slot in the leaf.
  var slot: Int {
    get { slots[0] }
    set { slots[0] = newValue }
  }

  /// The key of the cursor's record.
  var key: Key { leaf.key(slot) }

  /// The value of the cursor's record.
  var value: Value { leaf.value(slot) }

  /// Sets the cursor on the last record whose key is not above `key`, or on slot -1 of the first leaf.
  ///
  /// - Complexity: O(log n).
  mutating func seek(_ key: Key) {
    var node = root
    var level = height
    while level > 0 {
      let slot = node.slot(for: key)
      nodes[level] = node
      slots[level] = slot
      node = node.child(slot)
      level -= 1
    }
    nodes[0] = node
    slots[0] = node.lastSlot(notAbove: key)
    visits = height + 1
  }

  /// Sets the cursor on the lowest record that a query admits (step 1), or on the highest (step -1). Returns
  /// `false`, and leaves the cursor where it is, when there is none.
  ///
  /// - Complexity: O(log n) to succeed, O(1) to fail.
  mutating func searchAll(step: Int, for query: Summary.Query) -> Bool {
    visits = 0
    return descend(into: root, level: height, step: step, for: query)
  }

  /// Moves the cursor to the nearest record that a query admits, upwards (step 1) or downwards (step -1), the
  /// one that it is on included. Returns `false`, and leaves the cursor where it is, when there is none.
  ///
  /// - Complexity: O(log n) to succeed and to fail: summaries are exact, so the way down never turns back.
  mutating func search(step: Int, for query: Summary.Query) -> Bool {
    if let slot = leaf.scan(from: slot, step: step, for: query) {
      self.slot = slot
      return true
    }
    var level = 1
    while level <= height {
      let node = nodes[level]
      visits += 1
      if let slot = node.scanSubtrees(from: slots[level] + step, step: step, for: query) {
        slots[level] = slot
        return descend(into: node.child(slot), level: level - 1, step: step, for: query)
      }
      level += 1
    }
    return false
  }

  /// Completes the cursor from a node down to the first record, in the direction, that a query admits.
  /// Returns `false`, and leaves the cursor where it is, when the node has none; a subtree whose summary
  /// admits the query has one.
  private mutating func descend(into top: Node, level topLevel: Int, step: Int, for query: Summary.Query)
    -> Bool
  {
    var (node, level) = (top, topLevel)
    while true {
      visits += 1
      let edge = step > 0 ? 0 : node.count - 1
      let found =
        level == 0
        ? node.scan(from: edge, step: step, for: query)
        : node.scanSubtrees(from: edge, step: step, for: query)
      guard let slot = found else {
        assert(level == topLevel, "a summary promised what its subtree does not hold")
        return false
      }
      nodes[level] = node
      slots[level] = slot
      if level == 0 { return true }
      node = node.child(slot)
      level -= 1
    }
  }
}

// MARK: - Without the cursor

extension Tree {
  /// The last record whose key is not above `key`: its leaf and slot; -1 when there is none. Writes nothing.
  ///
  /// - Complexity: O(log n).
  mutating func lookUp(_ key: Key) -> (leaf: Node, slot: Int) {
    var node = root
    for _ in 0..<height { node = node.child(node.slot(for: key)) }
    return (node, node.lastSlot(notAbove: key))
  }

  /// The first record whose key is above `key`; `nil` when there is none. Writes nothing.
  ///
  /// - Complexity: O(log n).
  mutating func lookUp(after key: Key) -> (leaf: Node, slot: Int)? {
    var node = root
    var above: Node?
    for _ in 0..<height {
      let slot = node.slot(for: key)
      above = slot + 1 < node.count ? node.child(slot + 1) : above?.child(0)
      node = node.child(slot)
    }
    let slot = node.lastSlot(notAbove: key) + 1
    return slot < node.count ? (node, slot) : above.map { ($0, 0) }
  }

  /// What is known of all records. Writes nothing.
  ///
  /// - Complexity: O(1).
  var summary: Summary { root.summary }

  /// What is known of the records strictly between those that ``lookUp(_:)`` finds for two keys, the
  /// lower first. Writes nothing.
  ///
  /// - Complexity: O(log n).
  mutating func summary(between low: Key, _ high: Key) -> Summary {
    var sum = Summary.none
    var (left, right) = (root, root)
    while true {
      let (first, last) = (left.slot(for: low), right.slot(for: high))
      if left == right {
        left.summarize(from: first + 1, to: last, into: &sum)
      } else {
        left.summarize(from: first + 1, to: left.count, into: &sum)
        right.summarize(from: 0, to: last, into: &sum)
      }
      if left.level == 0 { return sum }
      (left, right) = (left.child(first), right.child(last))
    }
  }

  /// Calls a function with every record in order.
  ///
  /// - Complexity: O(n).
  func forEach(_ body: (Key, Value) -> Void) { visit(root, body) }

  private func visit(_ node: Node, _ body: (Key, Value) -> Void) {
    for slot in 0..<node.count {
      if node.level == 0 { body(node.key(slot), node.value(slot)) } else { visit(node.child(slot), body) }
    }
  }
}
