// Changing a tree: insertion, removal, and keeping the summaries on the way to the root exact.

/// What a change of one leaf did to what is known of it. It names a record rather than its summary, which
/// is not needed as long as the tree is one leaf.
enum TreeChange<Record: TreeRecord> {
  /// This record came to be, and no other became less than it was.
  case raised(Record.Key, Record.Value)
  /// This record was lost or became less, and no other became more than it was.
  case lowered(Record.Key, Record.Value)
}

extension Tree {
  /// Makes sure that an insertion finds the memory for every node that it may split.
  @inline(__always)
  mutating func reserveInsertion() -> Bool {
    pool.noteInsertion()
    return pool.availableCount > height + 1 || pool.reserve(height + 2)
  }

  /// The blocks with which so many insertions find the memory that they need, one after the other: each may split a node on
  /// each level and make a new root, but of the roots only few are new.
  func blockCount(forInsertions count: Int) -> Int {
    count == 0 ? 0 : count * (height + 1 + Int.bitWidth - count.leadingZeroBitCount)
  }

  /// As ``reserveInsertion()``, for several.
  mutating func reserveInsertions(_ count: Int) -> Bool { pool.reserve(blockCount(forInsertions: count)) }

  /// Puts a record at the cursor's slot, before the one that is there. The slot may lie behind the leaf's
  /// last record. Only after ``reserveInsertion()``.
  ///
  /// - Complexity: O(log n).
  mutating func insert(_ key: Key, _ value: Value, _ change: TreeChange<Record>) {
    count += 1
    let (leaf, slot) = (leaf, slot)
    guard leaf.count == Node.leafCapacity else {
      leaf.insert(slot, key, value)
      return note(change)
    }
    let next = split(leaf, growingAt: slot)
    if slot <= leaf.count {
      leaf.insert(slot, key, value)
    } else {
      next.insert(slot - leaf.count, key, value)
    }
    enter(next)
  }

  /// Enters a leaf that was split off the cursor's leaf, and splits its way up as far as it must.
  private mutating func enter(_ leaf: Node) {
    var next = leaf
    var level = 1
    while level <= height {
      let parent = nodes[level]
      let slot = slots[level] + 1
      parent.setSummary(slot - 1, nodes[level - 1].summary)
      guard parent.count == Node.innerCapacity else {
        parent.insert(slot, next.key(0), next)
        return refresh(from: level)
      }
      let uncle = split(parent, growingAt: slot)
      if slot <= parent.count {
        parent.insert(slot, next.key(0), next)
      } else {
        uncle.insert(slot - parent.count, next.key(0), next)
      }
      next = uncle
      level += 1
    }
    growRoot(beside: next)
  }

  private mutating func growRoot(beside next: Node) {
    height += 1
    precondition(height < Self.heightLimit, "more than 10¹⁰ records")
    let top = unsafe Node(block: pool.take(), level: height)
    top.insert(0, root.key(0), root)
    top.insert(1, next.key(0), next)
    root = top
  }

  /// Splits a full node next to where it grows, as far as the minimum allows, and returns its upper part.
  /// A run of insertions at one place, in either direction, then leaves full nodes behind.
  private mutating func split(_ node: Node, growingAt slot: Int) -> Node {
    let next = unsafe Node(block: pool.take(), level: node.level)
    node.moveTail(from: min(max(slot - 1, node.minimum), node.count - node.minimum), to: next)
    return next
  }
}

// MARK: - Removing

extension Tree {
  /// Removes the cursor's record.
  ///
  /// - Complexity: O(log n).
  mutating func remove(_ change: TreeChange<Record>) {
    count -= 1
    let leaf = leaf
    leaf.remove(slot)
    if leaf.count >= leaf.minimum || height == 0 { return note(change) }
    var level = 0
    while level < height, nodes[level].count < nodes[level].minimum {
      refill(below: nodes[level + 1], slots[level + 1])
      level += 1
    }
    refresh(from: level)
    if height > 0, root.count == 1 {
      let old = root
      root = old.child(0)
      height -= 1
      unsafe pool.give(old.block)
    }
  }

  /// Merges the child of a slot, which has too few entries, with a sibling, or evens the two out.
  private mutating func refill(below parent: Node, _ slot: Int) {
    let second = max(slot, 1)
    let (left, right) = (parent.child(second - 1), parent.child(second))
    // The separator that an inner node does not keep for its first child.
    if right.level > 0 { right.setKey(0, parent.key(second)) }
    let total = left.count + right.count
    if total <= left.capacity * 3 / 4 {
      right.moveHead(before: right.count, to: left)
      parent.remove(second)
      unsafe pool.give(right.block)
    } else {
      if left.count > right.count {
        left.moveTail(from: total / 2, to: right)
      } else {
        right.moveHead(before: right.count - total / 2, to: left)
      }
      parent.setKey(second, right.key(0))
      parent.setSummary(second, right.summary)
    }
    parent.setSummary(second - 1, left.summary)
  }
}

// MARK: - Keeping separators and summaries

extension Tree {
  /// Changes the key of the cursor's record, which must stay between its neighbours'.
  ///
  /// - Complexity: O(log n).
  mutating func rekey(_ key: Key, _ change: TreeChange<Record>) {
    leaf.setKey(slot, key)
    var level = 0
    // The first record of a leaf is also named by a separator: that of the lowest subtree which it starts
    // and which is not its parent's first.
    while level < height, slots[level] == 0 {
      level += 1
      if slots[level] > 0 { nodes[level].setKey(slots[level], key) }
    }
    note(change)
  }

  /// Brings the summaries above the cursor's leaf up to date, as far up as anything changes.
  ///
  /// - Complexity: O(log n).
  @inline(__always)
  mutating func note(_ change: TreeChange<Record>) {
    if height > 0 { noteAboveLeaf(change) }
  }

  private mutating func noteAboveLeaf(_ change: TreeChange<Record>) {
    var changed = Summary.none
    switch change {
    case .raised(let key, let value):
      Record.summarize(key, value, into: &changed)
      var level = 1
      while level <= height, !nodes[level].summary(slots[level]).covers(changed) {
        nodes[level].addSummary(slots[level], changed)
        level += 1
      }
    case .lowered(let key, let value):
      Record.summarize(key, value, into: &changed)
      // What is known beyond that is known of another record, and stays.
      if !nodes[1].summary(slots[1]).exceeds(changed) { refresh(from: 0) }
    }
  }

  /// Brings the summaries above a node of the cursor up to date, as far up as anything changes.
  private mutating func refresh(from changed: Int) {
    var level = changed
    while level < height {
      let sum = nodes[level].summary
      level += 1
      let known = nodes[level].summary(slots[level])
      guard known != sum else { return }
      nodes[level].setSummary(slots[level], sum)
    }
  }
}
