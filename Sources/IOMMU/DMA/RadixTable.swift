import AddressSpace
import CIOMMU
import Glibc
import Synchronization

/// A word for each of many numbers, in a radix tree as page tables are: read and changed by any thread without a lock.
///
/// Nodes of 512 words, as many levels as the highest number needs, made when a number below them is first entered and kept until
/// the end. Most numbers are near the one before: ``RadixHints`` remember the leaf that a processor was in last.
///
/// A copy is the same table. Whoever made it calls ``deallocate()`` once, when no thread uses it any more.
@safe
struct RadixTable: @unchecked Sendable {
  /// What a leaf holds are the words; in all others they are addresses of nodes below, or 0.
  typealias Word = Atomic<UInt64>
  typealias Node = UnsafeMutablePointer<Word>

  /// What does not change, beside the table: so that it is passed on in a register.
  private let shape: UnsafeMutablePointer<Shape>

  @safe
  private struct Shape: ~Copyable {
    let root: Node
    /// The bits of a number that are below the root's index.
    let rootShift: UInt64
    let highest: UInt64
    /// Whether ``RadixHints`` can name the leaves.
    let hasHints: Bool
    /// How many nodes may still be made before memory "runs out": for tests.
    let budget = Atomic<Int>(.max)
  }

  /// A table for numbers up to `highest`; nil when there is no memory.
  init?(highest: UInt64) {
    guard let root = unsafe Self.allocateNode() else { return nil }
    let bits = UInt64(64 - highest.leadingZeroBitCount)
    unsafe shape = .allocate(capacity: 1)
    unsafe shape.initialize(
      to: Shape(
        root: root, rootShift: bits <= 9 ? 0 : (bits - 1) / 9 * 9, highest: highest,
        hasHints: RadixHints.fits(highest >> 9)))
  }

  func deallocate() {
    unsafe deallocate(root, rootShift)
    unsafe shape.deinitialize(count: 1)
    unsafe shape.deallocate()
  }

  @inline(__always)
  var highest: UInt64 { unsafe shape.pointee.highest }
  private var root: Node { unsafe shape.pointee.root }
  private var rootShift: UInt64 { unsafe shape.pointee.rootShift }

  private func deallocate(_ node: Node, _ shift: UInt64) {
    for index in 0..<512 where shift > 0 {
      if let child = unsafe Self.child(node, index) { unsafe deallocate(child, shift - 9) }
    }
    unsafe free(node)
  }

  /// Lets memory run out after so many more nodes. For tests.
  func limitMemory(toNodes count: Int) { unsafe shape.pointee.budget.store(count, ordering: .relaxed) }
}

// MARK: - Words

extension RadixTable {
  /// The leaf that has a number's word, at the number's last nine bits; nil where none of its 512 words was ever entered.
  ///
  /// - Precondition: The number is at most ``highest``, and `hint` a word for this table.
  @inline(__always)
  func leaf(_ number: UInt64, _ hint: RadixHints.Pair) -> Node? {
    unsafe RadixHints.leaf(number &>> 9, hint) ?? descend(number, hint)
  }

  /// The same where it was the last leaf here; else nil, though there may be one.
  @inline(__always)
  func lastLeaf(_ number: UInt64, _ hint: RadixHints.Pair) -> Node? { unsafe RadixHints.leaf(number &>> 9, hint) }

  /// A function of its own, so that the way that most take is short.
  @inline(never)
  private func descend(_ number: UInt64, _ hint: RadixHints.Pair) -> Node? {
    var node = unsafe root, shift = rootShift
    while shift > 0 {
      guard let next = unsafe Self.child(node, Int(truncatingIfNeeded: number &>> shift & 511)) else { return nil }
      unsafe node = next
      shift &-= 9
    }
    if unsafe shape.pointee.hasHints { unsafe RadixHints.note(node, number &>> 9, hint) }
    return unsafe node
  }

  /// Makes what is missing on the way to a leaf; nil when there is no memory.
  @inline(never)
  func makeLeaf(_ number: UInt64) -> Node? {
    var node = unsafe root, shift = rootShift
    while shift > 0 {
      let index = Int(number >> shift & 511)
      guard let next = unsafe Self.child(node, index) ?? makeChild(node, index) else { return nil }
      unsafe node = next
      shift -= 9
    }
    return unsafe node
  }

  /// Calls a function with each word of a range that was ever entered, or whose neighbours were.
  func forEach(_ range: ClosedRange<UInt64>, _ body: (_ number: UInt64, _ word: Node) -> Void) {
    unsafe forEach(root, rootShift, range.lowerBound, range.upperBound, body)
  }

  private func forEach(_ node: Node, _ shift: UInt64, _ first: UInt64, _ last: UInt64, _ body: (UInt64, Node) -> Void) {
    guard first <= last else { return }
    for index in Int(first >> shift & 511)...Int(last >> shift & 511) {
      // The numbers below begin here.
      let start = (first >> shift & ~511 | UInt64(index)) << shift
      if shift == 0 {
        unsafe body(start, node + index)
      } else if let child = unsafe Self.child(node, index) {
        unsafe forEach(child, shift - 9, max(first, start), min(last, start | ((1 << shift) - 1)), body)
      }
    }
  }
}

// MARK: - Nodes

extension RadixTable {
  @inline(__always)
  private static func child(_ node: Node, _ index: Int) -> Node? {
    unsafe Node(bitPattern: UInt(truncatingIfNeeded: node[index].load(ordering: .acquiring)))
  }

  private func makeChild(_ node: Node, _ index: Int) -> Node? {
    guard unsafe shape.pointee.budget.wrappingSubtract(1, ordering: .relaxed).newValue >= 0,
      let fresh = unsafe Self.allocateNode()
    else { return nil }
    let result = unsafe node[index].compareExchange(
      expected: 0, desired: UInt64(UInt(bitPattern: fresh)), ordering: .acquiringAndReleasing)
    if result.exchanged { return unsafe fresh }
    // Another thread was faster.
    unsafe free(fresh)
    return unsafe Node(bitPattern: UInt(result.original))
  }

  private static func allocateNode() -> Node? {
    var memory: UnsafeMutableRawPointer?
    guard unsafe posix_memalign(&memory, 4096, 512 * MemoryLayout<UInt64>.size) == 0, let block = unsafe memory else {
      return nil
    }
    let node = unsafe block.bindMemory(to: Atomic<UInt64>.self, capacity: 512)
    for index in 0..<512 { unsafe (node + index).initialize(to: Atomic(0)) }
    return unsafe node
  }
}

// MARK: - The last leaf

/// The leaf that each processor was in last, in each of two tables: a word with its address and its number, so that both are read
/// as one.
@safe
struct RadixHints: @unchecked Sendable {
  /// The words of a processor.
  typealias Pair = UnsafeMutablePointer<Atomic<UInt64>>

  /// A cache line each.
  private static var stride: Int { 64 }
  private let memory: UnsafeMutableRawPointer
  /// A power of two, minus one.
  private let mask: Int

  init(processors: Int) {
    let wanted = min(max(processors, 1), 128)
    mask = 1 << (Int.bitWidth - (wanted - 1).leadingZeroBitCount) - 1
    unsafe memory = .allocate(byteCount: (mask + 1) * Self.stride, alignment: Self.stride)
    for index in 0...mask {
      let pair = unsafe (memory + index * Self.stride).assumingMemoryBound(to: Atomic<UInt64>.self)
      unsafe pair.initialize(to: Atomic(0))
      unsafe (pair + 1).initialize(to: Atomic(0))
    }
  }

  func deallocate() { unsafe memory.deallocate() }

  /// Those of the processor that this thread is on at the moment. Those of another serve as well, but slower.
  @inline(__always)
  var own: Pair {
    let place = (Int(truncatingIfNeeded: ci_cpu()) & mask) &* Self.stride
    return unsafe (memory + place).assumingMemoryBound(to: Atomic<UInt64>.self)
  }

  /// The bits of a leaf's address: a multiple of 4096, and 48 bits are all that a process has unless it asks for more.
  private static var addressMask: UInt64 { 0xffff_ffff_f000 }

  /// Whether leaves with numbers up to this have room for them beside their address.
  static func fits(_ lastLeaf: UInt64) -> Bool { lastLeaf >> 28 == 0 }

  /// A leaf's number in the bits that its address leaves.
  @inline(__always)
  private static func spread(_ number: UInt64) -> UInt64 { number & 0xfff | (number &>> 12) &<< 48 }

  /// The leaf of this number, if it was the last here. Where numbers do not fit, none ever was.
  @inline(__always)
  static func leaf(_ number: UInt64, _ hint: Pair) -> RadixTable.Node? {
    let word = unsafe hint.pointee.loadAddress()
    guard word & ~addressMask == spread(number) else { return nil }
    return unsafe RadixTable.Node(bitPattern: UInt(word & addressMask))
  }

  @inline(__always)
  static func note(_ leaf: RadixTable.Node, _ number: UInt64, _ hint: Pair) {
    let address = UInt64(UInt(bitPattern: leaf))
    guard address & ~addressMask == 0 else { return }
    unsafe hint.pointee.store(address | spread(number), ordering: .releasing)
  }
}
