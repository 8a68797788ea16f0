import Synchronization

/// Where invalidations go: the nested page table or vIOMMU of each physical IOMMU of a domain, by iommufd's number.
///
/// A copy of what a translation knows of them, which is had without reference counts.
final class HardwareTags: Sendable {
  private struct List {
    var ids = InlineArray<8, UInt32>(repeating: 0)
    var count = 0

    func contains(_ id: UInt32) -> Bool { (0..<count).contains { ids[$0] == id } }
  }
  private let list = Mutex(List())

  /// Takes over which there are; false, and nothing has changed, when they are more than a domain can have.
  func set(_ ids: [UInt32]) -> Bool {
    list.withLock { list in
      guard ids.count <= list.ids.count else { return false }
      list.count = ids.count
      for (index, id) in ids.enumerated() { list.ids[index] = id }
      return true
    }
  }

  /// Does something for each; an error ends it, unless the tag is gone since: with its last device, when the kernel has flushed it.
  @inline(__always)
  func forEach(_ body: (UInt32) throws(Errno) -> Void) throws(Errno) {
    let known = list.withLock { $0 }
    for index in 0..<known.count {
      do throws(Errno) { try body(known.ids[index]) } catch {
        if list.withLock({ $0.contains(known.ids[index]) }) { throw error }
      }
    }
  }
}
