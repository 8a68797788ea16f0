package import AddressSpace
import Synchronization

/// The flat stage 1: what a simulated IOMMU walks where hardware walks page tables in memory.
///
/// An entry a mapping, of any length: IOVA to IPA, written by the process and read by the simulated hardware when its IOTLB
/// misses. It stands where the formats of real hardware come to stand, and nothing outside ``ProcessOwnedFlat`` and the
/// simulation knows it. Any thread may call it; nothing waits longer than for a few dozen instructions.
@safe
package final class FlatTable: Sendable {
  private let lock = SpinLock()
  /// Keyed by IOVA; the tag is the IPA with bits of ``Entry`` in its low part, as in a page table entry.
  private let store: RangeStore

  /// Where a part of the IOVA space leads.
  package struct Entry: Equatable, Sendable {
    /// First IOVA and length in bytes.
    package var iova: UInt64, byteCount: UInt64
    /// Where the first byte lies in stage 2.
    package var ipa: UInt64
    package var access: DMAAccess
    /// A bit for the process, which hardware ignores: the IPA range is this mapping's own, and ends with it.
    package var ownsMemory: Bool

    package init(iova: UInt64, byteCount: UInt64, ipa: UInt64, access: DMAAccess, ownsMemory: Bool = false) {
      (self.iova, self.byteCount, self.ipa) = (iova, byteCount, ipa)
      (self.access, self.ownsMemory) = (access, ownsMemory)
    }

    fileprivate init(_ node: RangeStore.Node) {
      self.init(
        iova: node.start.rawValue, byteCount: node.byteCount, ipa: node.tag & ~0xfff,
        access: DMAAccess(rawValue: UInt8(node.tag & 3)), ownsMemory: node.tag & 4 != 0)
    }
    fileprivate var tag: UInt64 { ipa | UInt64(access.rawValue) | (ownsMemory ? 4 : 0) }
  }

  /// An empty table for addresses on multiples of `granule`.
  package init(granule: PageSize) throws(RangeStoreFailure) {
    store = try RangeStore(usable: [.full], granule: granule)
  }

  /// Writes an entry; false where one is in the way, or no memory is left. O(log n).
  package func insert(_ entry: Entry) -> Bool {
    guard let range = IOVARange(start: IOVA(entry.iova), byteCount: entry.byteCount) else { return false }
    let node = RangeStore.Node(range: range, kind: .fixed, tag: entry.tag)
    store.lock(lock, insertions: 1)
    defer { lock.unlock() }
    do throws(RangeStoreFailure) { try store.insert(node) } catch { return false }
    return true
  }

  /// Clears the lowest entry in a range and returns it; nil when there is none. O(log n).
  ///
  /// - Throws: ENOENT for an entry that the range cuts, as an IOAS answers.
  package func removeFirst(in range: IOVARange) throws(Errno) -> Entry? {
    lock.lock()
    defer { lock.unlock() }
    guard let node = store.find(overlapping: range) else { return nil }
    guard range.contains(node.range), store.remove(node.start) != nil else { throw .noEntry }
    return Entry(node)
  }

  /// The walk: the entry that translates an address. O(log n).
  package func entry(at iova: UInt64) -> Entry? {
    lock.lock()
    defer { lock.unlock() }
    return store.find(containing: IOVA(iova)).map { Entry($0) }
  }

  /// How many entries there are.
  package var count: Int { lock.withLock { store.count } }
}

/// How a nested page table of the flat format is described and invalidated, in the shape of iommufd's uAPI.
package enum FlatFormat {
  /// In the place of `IOMMU_HWPT_DATA_VTD_S1` and `IOMMU_HWPT_DATA_ARM_SMMUV3`; no kernel has this number. The invalidation
  /// commands go by it too.
  package static var dataType: UInt32 { 0x7377_0001 }

  /// The description: the address of the table, which the kernel keeps alive as long as the page table.
  package static func data(_ table: FlatTable) -> HWPTData {
    let address = unsafe UInt64(UInt(bitPattern: Unmanaged.passUnretained(table).toOpaque()))
    return HWPTData(type: dataType, bytes: (0..<8).map { UInt8(truncatingIfNeeded: address >> (8 * $0)) })
  }

  /// The table that a description names. EINVAL for another length.
  package static func table(_ bytes: [UInt8]) throws(Errno) -> FlatTable {
    guard bytes.count == 8 else { throw .invalidArgument }
    let address = bytes.reversed().reduce(UInt(0)) { $0 << 8 | UInt($1) }
    guard let pointer = unsafe UnsafeRawPointer(bitPattern: address) else { throw .invalidArgument }
    return unsafe Unmanaged<FlatTable>.fromOpaque(pointer).takeUnretainedValue()
  }

  /// A command has the form of VT-d's.
  package typealias Command = VTdCommand
}
