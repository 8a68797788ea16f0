/// A queue between software and hardware in memory: a ring with an index of each side, as SMMUv3 and VT-d have them.
///
/// An index has one bit more than the ring needs, so that full and empty differ. Nothing here knows what a command is, nor who
/// puts it in: several producers may share one.
package struct CommandQueue<Command> {
  /// The most commands that wait.
  package let capacity: Int
  private var waiting: [Command] = []
  /// How many of `waiting` the consumer has taken.
  private var taken = 0
  /// All that were ever put in.
  private var total: UInt64 = 0
  /// The most that ever waited at once.
  package private(set) var deepest = 0

  /// A queue of a power of two of commands.
  package init(capacityShift: Int) { capacity = 1 << capacityShift }

  package var count: Int { waiting.count - taken }
  package var freeCount: Int { capacity - count }
  package var isFull: Bool { count == capacity }
  package var isEmpty: Bool { count == 0 }
  /// The one that waits longest.
  package var first: Command? { isEmpty ? nil : waiting[taken] }
  /// Where the next command goes in, with its wrap bit, as the register of the producer reads.
  package var producer: UInt32 { index(total) }
  /// Where the next command is taken from.
  package var consumer: UInt32 { index(total - UInt64(count)) }

  private func index(_ number: UInt64) -> UInt32 { UInt32(number & (UInt64(capacity) * 2 - 1)) }

  /// Puts one in; false where the queue is full. O(1), amortised.
  package mutating func put(_ command: Command) -> Bool {
    guard !isFull else { return false }
    if taken > 0, taken == waiting.count { drop() }
    waiting.append(command)
    total += 1
    deepest = max(deepest, count)
    return true
  }

  /// Takes out the one that waits longest. O(1), amortised.
  package mutating func take() -> Command? {
    guard !isEmpty else { return nil }
    defer {
      taken += 1
      if taken > 64, taken * 2 > waiting.count { drop() }
    }
    return waiting[taken]
  }

  private mutating func drop() {
    waiting.removeFirst(taken)
    taken = 0
  }
}
