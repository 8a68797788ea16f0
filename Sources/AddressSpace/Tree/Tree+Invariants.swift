// What must hold of a tree between any two operations. Tests call it; no operation does.

extension Tree {
  /// The first thing found that must not be; `nil` when all is well.
  ///
  /// - Complexity: O(n).
  func checkInvariants() -> String? {
    var walk = Walk()
    if height > 0 && root.count < 2 { walk.fail("a root with one child") }
    _ = check(root, level: height, from: nil, to: nil, &walk)
    if walk.records != count { walk.fail("\(walk.records) records, counted \(count)") }
    if walk.nodes != pool.takenCount { walk.fail("\(walk.nodes) nodes, \(pool.takenCount) blocks taken") }
    return walk.failure
  }

  /// What a walk through the tree has seen.
  private struct Walk {
    var nodes = 0
    var records = 0
    var failure: String?

    mutating func fail(_ reason: String) { failure = failure ?? reason }
  }

  /// Checks a subtree whose keys lie from one separator up to, not including, another. Returns what is
  /// known of its records, summed up one by one.
  private func check(_ node: Node, level: Int, from low: Key?, to high: Key?, _ walk: inout Walk) -> Summary {
    walk.nodes += 1
    if node.level != level { walk.fail("a node of level \(node.level) at level \(level)") }
    if node.count > node.capacity { walk.fail("\(node.count) entries") }
    if node != root && node.count < node.minimum { walk.fail("\(node.count) entries at level \(level)") }
    // The first key of an inner node is nobody's.
    for slot in (level == 0 ? 0 : 1)..<max(node.count, 1) where slot < node.count {
      let below = slot > (level == 0 ? 0 : 1) ? node.key(slot - 1) : nil
      if let below, !(below < node.key(slot)) { walk.fail("keys out of order at level \(level)") }
      if let low, node.key(slot) < low { walk.fail("a key below its separator at level \(level)") }
      if let high, !(node.key(slot) < high) { walk.fail("a key above its separator at level \(level)") }
    }
    var sum = Summary.none
    if level == 0 {
      walk.records += node.count
      for slot in 0..<node.count { Record.summarize(node.key(slot), node.value(slot), into: &sum) }
      return sum
    }
    for slot in 0..<node.count {
      let first = slot == 0 ? low : node.key(slot)
      let end = slot + 1 < node.count ? node.key(slot + 1) : high
      let below = check(node.child(slot), level: level - 1, from: first, to: end, &walk)
      if below != node.summary(slot) { walk.fail("a summary at level \(level) that is not what is below it") }
      sum.formUnion(below)
    }
    return sum
  }
}
