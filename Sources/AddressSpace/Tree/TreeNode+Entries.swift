// Putting entries in, taking them out, and moving them between nodes.

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
