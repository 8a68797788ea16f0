// Searching the entries of one node, and summing them up.

extension TreeNode {
  /// The last slot but the first whose key is not above `key`, or else the first.
  ///
  /// By fours and then by ones, without a branch on the keys: the loads of a pass do not wait for each
  /// other as those of a binary search do, which was measured to take a third longer.
  @inline(__always)
  func slot(for key: Key) -> Int {
    let count = count
    var first = 0
    var probe = 4
    while probe < count {
      unsafe first &+= keys[probe] <= key ? 4 : 0
      probe &+= 4
    }
    let end = min(first &+ 4, count)
    probe = first &+ 1
    while probe < end {
      unsafe first &+= keys[probe] <= key ? 1 : 0
      probe &+= 1
    }
    return first
  }

  /// The last slot of a leaf whose key is not above `key`; -1 when there is none.
  @inline(__always)
  func lastSlot(notAbove key: Key) -> Int {
    let slot = slot(for: key)
    return unsafe count == 0 || key < keys[0] ? -1 : slot
  }

  /// The first record from a slot on, in steps of 1 or -1, that a query admits. The slot may be one off
  /// either end.
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
  func summarize(from first: Int, to end: Int, into known: inout Summary) {
    // A local, which stays in registers.
    var sum = known
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
    known = sum
  }

  static func == (left: TreeNode, right: TreeNode) -> Bool { unsafe left.block == right.block }
}
