package import PageTables

/// The commands for a gather: what a VT-d has to be told after an unmap of the process's first stage.
///
/// The kernel makes one descriptor and one wait of each command, so there are few: neighbouring ranges are merged, whatever their
/// leaves, and of each remain at most two aligned blocks, which together are less than twice as large. What does not fit the
/// budget, or a descriptor, becomes one command for everything, which is right whatever the gather has.
@safe
package struct VTdPlan: ~Copyable {
  /// The most commands.
  package static var capacity: Int { 8 }

  private var commands = InlineArray<8, VTdCommand>(repeating: .everything)
  /// How many there are.
  package private(set) var count = 0
  /// Whether everything of the tag is invalidated.
  package private(set) var isEverything = false
  /// Binary logarithm of the pages that a descriptor can have, `CAP.MAMV`.
  private let largestOrder: UInt8

  package init(largestOrder: UInt8) { self.largestOrder = largestOrder }

  /// Of commands as they are, right or wrong; no more than a plan has. For tests.
  package init(largestOrder: UInt8, commands list: [VTdCommand]) {
    self.largestOrder = largestOrder
    for command in list {
      commands[count] = command
      count += 1
    }
  }

  /// The commands as they are sent.
  @inline(__always)
  package func withBytes<Result>(
    _ body: (UnsafeRawBufferPointer) throws(Errno) -> Result
  ) throws(Errno) -> Result {
    try unsafe commands.span.withUnsafeBytes { bytes throws(Errno) in
      try unsafe body(UnsafeRawBufferPointer(rebasing: bytes[..<(count * MemoryLayout<VTdCommand>.size)]))
    }
  }

  package subscript(index: Int) -> VTdCommand { commands[index] }

  /// Whether the kernel takes every command, and makes descriptors of just these pages: ``VTdCommand/isValid``.
  package var isValid: Bool {
    for index in 0..<count where !commands[index].isValid { return false }
    return true
  }
}

extension VTdPlan {
  /// Everything of the tag.
  package mutating func makeEverything() {
    commands[0] = .everything
    (count, isEverything) = (1, true)
  }

  /// The commands for what an unmap gathered, at most `budget` of them.
  package mutating func make(for gather: borrowing Gather, budget: Int) {
    (count, isEverything) = (0, false)
    guard !gather.isEverything, gather.count > 0 else { return makeEverything() }
    let limit = min(budget, Self.capacity)
    var start = gather[0].start, end = start + gather[0].byteCount
    for index in 1..<max(gather.count, 1) {
      let next = gather[index].start, nextEnd = next + gather[index].byteCount
      if next <= end, nextEnd >= start {
        (start, end) = (min(start, next), max(end, nextEnd))
        continue
      }
      guard append(start, end - 1, leafOnly: gather.isLeafOnly, limit: limit) else { return makeEverything() }
      (start, end) = (next, nextEnd)
    }
    guard append(start, end - 1, leafOnly: gather.isLeafOnly, limit: limit) else { return makeEverything() }
  }

  /// The commands for a range of which the tables are not known.
  package mutating func make(forAnythingIn start: UInt64, _ byteCount: UInt64, budget: Int) {
    (count, isEverything) = (0, false)
    guard append(start, start + (byteCount - 1), leafOnly: false, limit: min(budget, Self.capacity)) else {
      return makeEverything()
    }
  }

  /// The same command so many times, to time it.
  mutating func repeatPage(_ address: UInt64, count: Int) {
    (self.count, isEverything) = (min(count, Self.capacity), false)
    for index in 0..<self.count { commands[index] = VTdCommand(address: address, pageCount: 1, leafOnly: true) }
  }

  /// What an allocation of the library's has to itself, up to which its addresses are aligned to its rounded length: a block that is
  /// no larger takes nothing from others.
  private static var ownByteCount: UInt64 { 2 << 20 }

  /// False when there is no room within the limit, or a block is more than a descriptor takes.
  private mutating func append(_ start: UInt64, _ last: UInt64, leafOnly: Bool, limit: Int) -> Bool {
    let byteCount = last - start + 1, single = Block(covering: start, last)
    let isTight = single.byteCount <= 2 * byteCount
    if isTight, single.byteCount <= Self.ownByteCount { return append(single, leafOnly, limit) }
    // The first address whose highest bit is the last one's: of all inside, the one that is aligned best.
    let middle = last & ~(single.byteCount / 2 - 1)
    let pair = (Block(covering: start, middle &- 1), Block(covering: middle, last))
    let isWorthwhile = !isTight || single.byteCount - pair.0.byteCount - pair.1.byteCount > byteCount / 4
    guard isWorthwhile, limit - count >= 2 else { return isTight && append(single, leafOnly, limit) }
    return append(pair.0, leafOnly, limit) && append(pair.1, leafOnly, limit)
  }

  private mutating func append(_ block: Block, _ leafOnly: Bool, _ limit: Int) -> Bool {
    guard count < limit, block.shift - 12 <= largestOrder else { return false }
    commands[count] = VTdCommand(address: block.start, pageCount: block.byteCount >> 12, leafOnly: leafOnly)
    count += 1
    return true
  }

  /// A naturally aligned power of two of bytes, at least a page: the smallest that has two addresses.
  private struct Block {
    var start: UInt64
    var shift: UInt8
    var byteCount: UInt64 { 1 << UInt64(shift) }

    init(covering first: UInt64, _ last: UInt64) {
      shift = UInt8(max(64 - (first ^ last).leadingZeroBitCount, 12))
      start = first & ~(1 << UInt64(shift) - 1)
    }
  }
}
