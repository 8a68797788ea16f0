import CIOMMU
import Synchronization

/// Where each processor looked last in a ``MappingTable``: most mappings are found in the leaf of the one before.
///
/// A hint is one word, so that it is read and written without a lock, and nothing that it says is believed without a look: a
/// leaf stays where it is as long as the table, and whether a mapping is live is asked of its record.
@safe
struct MappingHints: @unchecked Sendable {
  /// The two words of a processor; a cache line each.
  private struct Hint: ~Copyable {
    let leaf = Atomic<UInt64>(0), mapping = Atomic<UInt64>(0)
  }

  private static var stride: Int { 64 }
  private let memory: UnsafeMutableRawPointer
  /// A power of two, minus one.
  private let mask: Int
  /// Whether the number of every leaf fits beside its address.
  private let fits: Bool

  /// For leaves with numbers up to `lastLeaf`.
  init(processors: Int, lastLeaf: UInt64) {
    let wanted = min(max(processors, 1), 128)
    mask = 1 << (Int.bitWidth - (wanted - 1).leadingZeroBitCount) - 1
    fits = lastLeaf >> 28 == 0
    unsafe memory = .allocate(byteCount: (mask + 1) * Self.stride, alignment: Self.stride)
    for index in 0...mask { unsafe hint(index).initialize(to: Hint()) }
  }

  func deallocate() {
    for index in 0...mask { unsafe hint(index).deinitialize(count: 1) }
    unsafe memory.deallocate()
  }

  private func hint(_ index: Int) -> UnsafeMutablePointer<Hint> {
    unsafe (memory + index * Self.stride).assumingMemoryBound(to: Hint.self)
  }

  @inline(__always)
  private var own: UnsafeMutablePointer<Hint> {
    let place = (Int(truncatingIfNeeded: ci_cpu()) & mask) &* Self.stride
    return unsafe (memory + place).assumingMemoryBound(to: Hint.self)
  }

  // MARK: - The last leaf

  /// The bits of a leaf's address: a multiple of 4096, and 47 bits are all that a process has unless it asks for more.
  private static var addressMask: UInt64 { 0xffff_ffff_f000 }

  /// A leaf's number in the bits that its address leaves.
  @inline(__always)
  private static func spread(_ number: UInt64) -> UInt64 { number & 0xfff | number &>> 12 &<< 48 }

  /// The leaf of this number, if it was the last here. Where numbers do not fit, none ever was.
  @inline(__always)
  func leaf(_ number: UInt64) -> MappingTable.Node? {
    let word = unsafe own.pointee.leaf.load(ordering: .acquiring)
    guard word & ~Self.addressMask == Self.spread(number) else { return nil }
    return unsafe MappingTable.Node(bitPattern: UInt(word & Self.addressMask))
  }

  @inline(__always)
  func note(_ leaf: MappingTable.Node, _ number: UInt64) {
    let address = unsafe UInt64(UInt(bitPattern: leaf))
    guard fits, address & ~Self.addressMask == 0 else { return }
    unsafe own.pointee.leaf.store(address | Self.spread(number), ordering: .releasing)
  }

  // MARK: - The last mapping that was asked for by its memory

  /// Where it begins for the device; 0, which is never given out, for none.
  @inline(__always)
  var mapping: UInt64 {
    get { unsafe own.pointee.mapping.load(ordering: .relaxed) }
    nonmutating set { unsafe own.pointee.mapping.store(newValue, ordering: .relaxed) }
  }
}
