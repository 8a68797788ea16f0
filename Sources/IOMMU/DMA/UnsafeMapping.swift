public import AddressSpace

/// Memory of the caller's that a device may reach, until ``unmap()`` or until this value is dropped.
///
/// The caller keeps the memory alive and at its place meanwhile, and touches it as the direction allows: nothing here can
/// check that, hence the name.
@safe
public struct UnsafeMapping: ~Copyable, @unchecked Sendable {
  let core: Unmanaged<DomainCore>
  /// The mapped pages; `address` may lie within the first where widening was allowed.
  let pages: (address: IOVA, byteCount: Int)
  /// The address to give to the device.
  public let address: IOVA
  /// Length in bytes.
  public let byteCount: Int

  init(core: Unmanaged<DomainCore>, pages: (address: IOVA, byteCount: Int), address: IOVA, byteCount: Int) {
    unsafe self.core = core
    self.pages = pages
    self.address = address
    self.byteCount = byteCount
  }

  deinit { _ = unsafe DomainCore.dropUnsafe(core, pages.address, pages.byteCount) }

  /// Takes the memory out of the device's reach.
  ///
  /// - Throws: `.system` with the kernel's errno, `.mismatch`, `.forked`: the device may still reach the memory then; keep it
  ///   until the device is closed.
  public consuming func unmap() throws(DMAError) {
    let (core, pages) = unsafe (core, pages)
    discard self
    if let error = unsafe DomainCore.dropUnsafe(core, pages.address, pages.byteCount) { throw error }
  }
}
