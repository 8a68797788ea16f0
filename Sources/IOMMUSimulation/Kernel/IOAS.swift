import IOMMU

/// An I/O address space of iommufd: areas of memory, and the page tables that show them to devices.
final class IOAS {
  /// Memory at an IOVA.
  final class Area {
    let memory: PinnedMemory
    let permissions: SimulatedIOMMU.Permissions
    let account: MemoryLock.Account
    /// Whether its pages are pinned: from the first page table on.
    var isPinned = false

    init(_ memory: PinnedMemory, _ permissions: SimulatedIOMMU.Permissions, _ account: MemoryLock.Account) {
      (self.memory, self.permissions, self.account) = (memory, permissions, account)
    }
  }

  var id: UInt32 = 0
  var areas = AreaMap<Area>()
  /// What the user asked for by ALLOW_IOVAS; empty allows everything that is not reserved.
  var allowed: [Span64] = []
  /// What page tables and devices reserve, with whose it is.
  var reserved: [(span: Span64, owner: ObjectIdentifier)] = []
  var pageTables: [HWPageTable] = []
  /// Bytes; 1 until there is a page table.
  var alignment: UInt64 = 1

  /// Whether a span may be given to devices.
  func isReserved(_ span: Span64) -> Bool { reserved.contains { $0.span.overlaps(span) } }

  /// Reserves a span. EADDRINUSE when it holds areas or allowed addresses.
  func reserve(_ span: Span64, for owner: AnyObject) throws(Errno) {
    guard areas.first(in: span.start, through: span.last) == nil,
      !allowed.contains(where: { $0.overlaps(span) })
    else { throw .addressInUse }
    reserved.append((span, ObjectIdentifier(owner)))
  }

  func release(reservedFor owner: AnyObject) {
    reserved.removeAll { $0.owner == ObjectIdentifier(owner) }
  }

  /// The lowest place for a map that named none; never 0. EOVERFLOW, EINVAL or ENOSPC when there is none.
  ///
  /// The alignment is that of the memory, up to the length and to a huge page, which lets huge pages be used.
  func lowestFit(address: UInt64, byteCount: UInt64) throws(Errno) -> UInt64 {
    guard byteCount < .max / 2 else { throw .overflow }
    let page: UInt64 = 4096
    let natural = UInt64(1) << UInt64(64 - (byteCount - 1).leadingZeroBitCount)
    var step = address == 0 ? natural : min(natural, address & ~(address &- 1))
    step = min(step, 2 << 20)
    guard step >= alignment else { throw .invalidArgument }
    let offset = address & (page - 1)
    let whole = Span64(start: page, last: .max - page)
    let spans = allowed.isEmpty ? [whole] : Span64.normalised(allowed).filter { $0.overlaps(whole) }
    let holes = reserved.map(\.span) + areas.areas.map { Span64(start: $0.start, last: $0.last) }
    for span in spans {
      let clipped = Span64(start: max(span.start, whole.start), last: min(span.last, whole.last))
      for hole in Span64.complement(of: holes, in: clipped) {
        let (sum, overflow) = hole.start.addingReportingOverflow(step - 1)
        let start = (sum & ~(step - 1)) | offset
        if !overflow, start < hole.last, hole.last - start >= byteCount - 1 { return start }
      }
    }
    throw .noSpace
  }
}

/// A page table of iommufd (HWPT): one domain of the IOMMU, filled with what its IOAS maps.
final class HWPageTable {
  let ioas: IOAS
  let domain: SimulatedIOMMU.DomainID
  /// Made by an attach to an IOAS; goes with its last device.
  let isAutomatic: Bool
  /// Whether others may be nested over it.
  var isNestParent = false
  /// The table below, of a nested one; that one's IOAS is this one's too, though it does not fill it.
  var parent: HWPageTable?
  /// What a nested one was made over, where that is a vIOMMU.
  var viommu: VIOMMU?
  var id: UInt32 = 0
  /// Devices in it, and tables and vIOMMUs over it.
  var users = 0

  init(_ ioas: IOAS, _ domain: SimulatedIOMMU.DomainID, isAutomatic: Bool) {
    (self.ioas, self.domain, self.isAutomatic) = (ioas, domain, isAutomatic)
  }
}
