import PageTables

/// A translation whose stage 1 the process writes: what a domain needs beyond ``Translation``.
///
/// An unmap is ``clear(iova:byteCount:)`` and ``invalidate(iova:byteCount:)``; who puts invalidations off calls the first
/// at once, and one ``invalidateAll()`` for many of them later. Until then devices may reach what was cleared.
///
/// Memory must be *registered* before it can be mapped without a system call: the kernel pins it and enters it into stage 2.
/// A map of memory that nobody registered registers it for the mapping's life, or is refused: ``requiresRegistration``.
package protocol ProcessOwnedTranslation: Translation {
  /// Clears the entries of whole mappings, without an invalidation and without a system call; returns the bytes that were
  /// mapped. ENOENT for a mapping that the range cuts; those before stay cleared. O(mappings · log n).
  func clear(iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64
  /// Invalidates what is cached of a range; on return devices reach it no more. The kernel call behind it is one
  /// `IOMMU_HWPT_INVALIDATE` for each physical IOMMU; then memory is unregistered that only mappings there had registered.
  func invalidate(iova: UInt64, byteCount: UInt64) throws(Errno)
  /// Invalidates the whole tag, with one command for each physical IOMMU; on return devices reach nothing of what was
  /// cleared before the call. The kernel call behind it is `IOMMU_HWPT_INVALIDATE`.
  func invalidateAll() throws(Errno)

  /// Pins memory and enters it into stage 2, in areas of at most `areaByteCount`; by its file where there is one and the kernel can. Maps of it
  /// or of parts of it cost no system call then. Returns the areas, and how many of them went by file. The kernel calls behind
  /// it are `IOMMU_IOAS_MAP_FILE` and `IOMMU_IOAS_MAP`.
  func register(
    address: UInt64, byteCount: UInt64, file: Int32?, areaByteCount: UInt64
  ) throws(Errno) -> (areas: Int, fileAreas: Int)
  /// Lets no later map find the registration of the memory that begins at an address; it goes on for those that there are.
  func hide(address: UInt64)
  /// Ends the hidden registration of the memory that begins at an address. Nothing of it may be mapped, or cached by devices.
  /// When the kernel does not let go of it, it stays pinned, and a later call tries again.
  func unregister(address: UInt64) throws(Errno)
  /// Ends a registration of which nothing was ever mapped. When the kernel does not let go of it, it is pinned until the
  /// translation is closed.
  func giveUp(address: UInt64)

  /// Whether a map of memory that is not registered is ``Errno/notRegistered`` instead, with nothing done.
  var requiresRegistration: Bool { get set }

  /// What decides between the range of an unmap and everything.
  var budget: InvalidationBudget { get }

  /// Whether all that is registered has to be memory that this process may write, whatever devices do with it: then a map of other
  /// memory is EFAULT.
  var takesWritableMemoryOnly: Bool { get }
  /// Invalidation commands that this process sent, and waits for their completion: one for each `IOMMU_HWPT_INVALIDATE`, or on
  /// VT-d for each command.
  var invalidations: UInt64 { get }
  var syncs: UInt64 { get }
  /// System calls made by maps, unmaps, registrations and invalidations; not those of opening and closing.
  var systemCalls: UInt64 { get }
  /// Maps of memory that was not registered.
  var implicitRegistrations: UInt64 { get }
  /// Ranges that unmaps kept track of for their invalidation; none where it is put off.
  var gatheredRanges: UInt64 { get }
  /// Bytes of memory that is pinned for page tables.
  var tableBytes: UInt64 { get }
  /// How tables without entries come back while devices are attached; nil where the tables are of another kind.
  var reclaim: TableReclaim? { get }
}

/// Tables in a hardware's format, of which a map and an unmap of what fits into one table, of registered memory, is a few stores:
/// no system call, no lock, nothing that waits. Such calls may be made with a spin lock held.
package protocol HardwareTables: ProcessOwnedTranslation {
  /// What both of the following come to mostly. For as long as this lives.
  var shortWay: ShortWay { get }
  /// Maps, if that is all there is to do; else false, and nothing has changed: ``Translation/map(iova:address:byteCount:access:)`` does
  /// it.
  func mapHere(iova: UInt64, address: UInt64, byteCount: UInt64, access: DMAAccess) -> Bool
  /// Clears whole mappings of registered memory without an invalidation, as ``ProcessOwnedTranslation/clear(iova:byteCount:)``, if
  /// that is all there is to do: how many bytes were mapped; else nil, and nothing has changed.
  func clearHere(iova: UInt64, byteCount: UInt64) -> UInt64?
  /// A mistake that a test has this make, to see that it would notice: tables are used again while hardware may walk them.
  var reusesTablesEarly: Bool { get set }
}

/// What a map and an unmap need of such tables where memory and table are known: without a reference to count, or a call.
package struct ShortWay: BitwiseCopyable, Sendable {
  let known: KnownRegistrations
  let pages: PageWriter

  /// ``HardwareTables/mapHere(iova:address:byteCount:access:)``, or false as well where what is needed is not known.
  @inline(__always)
  func map(iova: UInt64, address: UInt64, byteCount: UInt64, canWrite: Bool) -> Bool {
    guard let ipa = known.ipa(of: address, byteCount: byteCount) else { return false }
    return pages.map(iova, to: ipa, byteCount: byteCount, canWrite: canWrite)
  }
}

extension ProcessOwnedTranslation {
  package var takesWritableMemoryOnly: Bool { false }
  package var gatheredRanges: UInt64 { 0 }
  package var tableBytes: UInt64 { 0 }
  package var reclaim: TableReclaim? { nil }
}

extension Errno {
  /// The memory is not registered, or not all of it in one registration, and has to be: no answer of the kernel's, which was not
  /// asked. Errors do not show it.
  package static let notRegistered = Errno(rawValue: 0)
}
