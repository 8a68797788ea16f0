/// An invalidation of a process's first stage on VT-d: a range of pages of 4 KiB, or everything.
///
/// The corresponding structure is `struct iommu_hwpt_vtd_s1_invalidate`, 24 bytes. The kernel makes one descriptor of each, for the
/// smallest aligned power of two of pages that has the range, and waits for it: `intel_nested_cache_invalidate_user` and
/// `calculate_psi_aligned_address` in `drivers/iommu/intel`.
package struct VTdCommand: BitwiseCopyable, Hashable, Sendable {
  package var address: UInt64
  /// How many pages: never 0, of which the kernel would make nearly all there are. `UInt64.max` for everything, from address 0 on.
  package var pageCount: UInt64
  /// `IOMMU_VTD_INV_FLAGS_LEAF`: nothing but leaves has changed.
  package var flags: UInt32 = 0
  package var reserved: UInt32 = 0

  @inline(__always)
  package init(address: UInt64, pageCount: UInt64, leafOnly: Bool = false) {
    (self.address, self.pageCount, flags) = (address, pageCount, leafOnly ? 1 : 0)
  }

  /// The whole tag.
  @inline(__always)
  package static var everything: VTdCommand { VTdCommand(address: 0, pageCount: .max) }

  /// Whether the kernel takes it, and makes a descriptor of just these pages.
  package var isValid: Bool {
    if self == .everything { return true }
    let isBlock = pageCount > 0 && pageCount & (pageCount - 1) == 0 && pageCount <= 1 << 51
    return isBlock && address & (pageCount << 12 - 1) == 0 && flags & ~1 == 0 && reserved == 0
  }
}
