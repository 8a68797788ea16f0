/// What a leaf entry says beside where it leads: who may do what, what kind of memory it is, and one bit of ours.
package struct LeafAttributes: OptionSet, Hashable, Sendable {
  package let rawValue: UInt8

  @inlinable @inline(__always)
  package init(rawValue: UInt8) { self.rawValue = rawValue }

  /// The device may read. A format that cannot say "write only" implies it.
  package static let readable = LeafAttributes(rawValue: 1)
  /// The device may write.
  package static let writable = LeafAttributes(rawValue: 2)
  /// No memory but registers, above all an interrupt controller's doorbell. x86 entries do not tell them apart: there
  /// interrupts never reach a page table.
  package static let device = LeafAttributes(rawValue: 4)
  /// A bit that the hardware ignores. An unmap tells whether it met one, by ``Gather/sawOwned``.
  package static let owned = LeafAttributes(rawValue: 8)

  /// Whether a leaf of it can be reached at all: an entry that allows nothing would be one that is not there.
  @inline(__always)
  var isPresent: Bool { rawValue & 3 != 0 }
}
