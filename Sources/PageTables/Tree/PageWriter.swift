internal import AddressSpace
public import Synchronization

/// Writes and clears pages of one address space where ``LeafTableHints`` know their table: a few stores, which callers in other
/// modules have in their own code. It is part of its tree, and of no use without.
///
/// Whoever writes or clears owns the range, as ``PageTable`` says. It is one of whole pages and at its natural alignment, up to the
/// last address, and leads where entries can: what the stores of addresses give.
///
/// A leaf is published with nothing behind it, so the stores are in no order: a device is told of an address later, by the barrier of
/// who rings its doorbell, and what was cleared is followed by that of whoever invalidates it.
@safe
@usableFromInline
package struct PageWriter: BitwiseCopyable, @unchecked Sendable {
  @usableFromInline let hints: LeafTableHints
  /// The memory of the tables, by number.
  @usableFromInline let tables: UnsafeMutableRawPointer
  @usableFromInline let pageShift, regionShift: UInt64
  /// For assertions: the highest address that can be mapped, and that a leaf can lead to.
  @usableFromInline let last, lastOutput: UInt64
  /// Leaves of plain memory without their address: that devices only read, and that they read and write.
  @usableFromInline let readable, writable: UInt64

  init<Format: TableFormat>(
    _ format: Format.Type, hints: LeafTableHints, memory: TableMemory, geometry: TableGeometry, last: UInt64
  ) {
    self.hints = hints
    unsafe tables = unsafe memory.base
    pageShift = UInt64(geometry.granule.shift)
    regionShift = UInt64(geometry.shift(level: 1))
    (self.last, lastOutput) = (last, Format.lastOutput)
    readable = Format.leaf(.readable, isBlock: false)
    writable = Format.leaf(LeafAttributes(rawValue: 3), isBlock: false)
  }

  /// Maps pages to consecutive addresses; `false`, and nothing has changed, where something is in the way, and for a range whose
  /// table is not known, or that fills it.
  ///
  /// - Complexity: O(pages).
  @inlinable @inline(__always)
  package func map(_ iova: UInt64, to address: UInt64, byteCount: UInt64, canWrite: Bool) -> Bool {
    assert(address & mask(pageShift) == 0 && address <= lastOutput &- (byteCount &- 1))
    guard let table = unsafe table(iova, byteCount) else { return false }
    let place = unsafe table + index(iova)
    var entry = (canWrite ? writable : readable) | address
    // One page is what most are.
    if byteCount &>> pageShift == 1 {
      guard unsafe place.pointee.load(ordering: .relaxed) == 0 else { return false }
      unsafe place.pointee.store(entry, ordering: .relaxed)
      return true
    }
    guard byteCount <= mask(regionShift) else { return false }
    let count = Int(truncatingIfNeeded: byteCount &>> pageShift)
    // Without a branch on each, as they nearly always are 0.
    var seen: UInt64 = 0
    for index in 0..<count { seen |= unsafe place[index].load(ordering: .relaxed) }
    guard seen == 0 else { return false }
    for index in 0..<count {
      unsafe place[index].store(entry, ordering: .relaxed)
      entry &+= 1 &<< pageShift
    }
    return true
  }

  /// Clears pages, none of which has ``LeafAttributes/owned``: how many bytes were mapped; `nil`, and nothing has changed, as for
  /// ``map(_:to:byteCount:canWrite:)``.
  ///
  /// - Complexity: O(pages).
  @inlinable @inline(__always)
  package func clear(_ iova: UInt64, byteCount: UInt64) -> UInt64? {
    guard let table = unsafe table(iova, byteCount) else { return nil }
    let place = unsafe table + index(iova)
    if byteCount &>> pageShift == 1 {
      guard unsafe place.pointee.load(ordering: .relaxed) != 0 else { return 0 }
      unsafe place.pointee.store(0, ordering: .relaxed)
      return byteCount
    }
    guard byteCount <= mask(regionShift) else { return nil }
    var mapped: UInt64 = 0
    for index in 0..<Int(truncatingIfNeeded: byteCount &>> pageShift)
    where unsafe place[index].load(ordering: .relaxed) != 0 {
      unsafe place[index].store(0, ordering: .relaxed)
      mapped &+= 1 &<< pageShift
    }
    return mapped
  }

  /// The entries of the known table of the region in which a range begins.
  @inlinable @inline(__always)
  func table(_ iova: UInt64, _ byteCount: UInt64) -> UnsafeMutablePointer<Atomic<UInt64>>? {
    let region = iova &>> regionShift
    assert((iova | byteCount) & mask(pageShift) == 0 && byteCount > 0 && byteCount &- 1 <= last &- iova && iova <= last)
    assert(byteCount > mask(regionShift) || (iova &+ (byteCount &- 1)) &>> regionShift == region)
    guard let number = hints.find(region) else { return nil }
    return unsafe (tables + Int(truncatingIfNeeded: number &<< pageShift)).assumingMemoryBound(to: Atomic<UInt64>.self)
  }

  @inlinable @inline(__always)
  func index(_ iova: UInt64) -> Int { Int(truncatingIfNeeded: (iova & mask(regionShift)) &>> pageShift) }

  @inlinable @inline(__always)
  func mask(_ shift: UInt64) -> UInt64 { (1 &<< shift) &- 1 }
}
