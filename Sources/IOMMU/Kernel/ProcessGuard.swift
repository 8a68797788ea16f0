import CIOMMU
import Synchronization

/// Tells a process from its forks.
///
/// A fork inherits the parent's IOMMU descriptors but none of its pins: what it maps, unmaps or frees would be
/// the parent's. One word in a page that a fork gets zeroed (`MADV_WIPEONFORK`) says who we are, at the price of a load.
@safe
package enum ProcessGuard {
  /// Not 0 in the process that first asked. Where the kernel cannot wipe pages (before Linux 4.14), in every one.
  nonisolated(unsafe) static let word = unsafe wipedWord() ?? keptWord()

  /// Whether this process is the one that first asked.
  package static var isOwner: Bool { unsafe word.pointee != 0 }

  private static func keptWord() -> UnsafePointer<UInt64> {
    let word = UnsafeMutablePointer<UInt64>.allocate(capacity: 1)
    unsafe word.initialize(to: 1)
    return unsafe UnsafePointer(word)
  }

  private static func wipedWord() -> UnsafePointer<UInt64>? {
    let length = ci_page_size()
    let flags = CI_MAP_PRIVATE | CI_MAP_ANONYMOUS
    let address = ci_mmap(nil, length, CI_PROT_READ | CI_PROT_WRITE, flags, -1, 0)
    guard address > 0, let page = unsafe UnsafeMutableRawPointer(bitPattern: Int(address)) else { return nil }
    guard unsafe ci_madvise(page, length, CI_MADV_WIPEONFORK) == 0 else { return nil }
    let word = unsafe page.assumingMemoryBound(to: UInt64.self)
    unsafe word.pointee = 1
    return unsafe UnsafePointer(word)
  }
}
