import AddressSpace
import PageTables
import Synchronization

/// The memory of page tables: pinned, and at IPAs of its own, which no stage 1 entry leads to.
///
/// A range of this process's addresses and one of IPAs are reserved once; memory in them is entered into stage 2 as tables are
/// needed, a piece at a time, and stays. A fork does not get it.
final class PinnedTables: Sendable {
  let pool: TablePool
  private let descriptor: IOMMUFDDescriptor
  private let reservation: TableReservation
  /// The IPA of the first table.
  let address: UInt64
  /// Bytes that are in stage 2; changed by who has ``isGrowing``.
  private let ready = Atomic<Int>(0)
  private let isGrowing = Atomic<Bool>(false)

  /// Reserves, and enters the first piece.
  init(_ descriptor: IOMMUFDDescriptor, _ memory: RegisteredMemory, granule: PageSize, byteCount: Int) throws(Errno) {
    let kernel = descriptor.kernel
    // Pieces end on multiples of their greatest length.
    let address = try memory.allocate(byteCount: UInt64(byteCount), area: UInt64(Limits.areaByteCount))
    let reservation: TableReservation
    do throws(Errno) { reservation = try TableReservation(kernel, byteCount: byteCount) } catch {
      memory.free(address)
      throw error
    }
    (self.descriptor, self.reservation, self.address) = (descriptor, reservation, address)
    unsafe pool = TablePool(
      base: reservation.base, address: address, byteCount: UInt64(byteCount), granule: granule, owner: reservation)
    try grow(beyond: 0)
  }

  /// Makes more tables than there were when `known` bytes were ready; one thread does it for all that ask.
  ///
  /// - Throws: ENOMEM when the reservation is used up, or what the kernel answers to pinning.
  @inline(never)
  func grow(beyond known: Int) throws(Errno) {
    while !isGrowing.compareExchange(expected: false, desired: true, ordering: .acquiring).exchanged {
      descriptor.kernel.sleep(.microseconds(20))
    }
    defer { isGrowing.store(false, ordering: .releasing) }
    let done = ready.load(ordering: .relaxed)
    guard done == known else { return }
    let least = max(Limits.firstTables, 8 * Int(pool.granule.byteCount))
    let length = min(max(done, least), Limits.tablePiece, reservation.byteCount - done)
    guard length > 0 else { throw .noMemory }
    let host = unsafe UInt64(UInt(bitPattern: reservation.base)) + UInt64(done)
    let placed = try descriptor.kernel.ioasMap(
      descriptor.iommufd, ioas: descriptor.ioas, flags: KernelOwnedIOAS.flags(.readWrite), address: host,
      byteCount: UInt64(length), iova: address + UInt64(done))
    if placed != address + UInt64(done) { throw .inputOutput }
    pool.extend(byteCount: UInt64(length))
    ready.store(done + length, ordering: .releasing)
  }

  /// Bytes that are ready, to pass to ``grow(beyond:)``.
  var readyByteCount: Int { ready.load(ordering: .acquiring) }
}

/// A range of this process's addresses, which goes when nobody can look at a table any more.
@safe
private final class TableReservation: Sendable {
  nonisolated(unsafe) let base: UnsafeMutableRawPointer
  let byteCount: Int
  private let kernel: any Kernel

  init(_ kernel: any Kernel, byteCount: Int) throws(Errno) {
    (self.kernel, self.byteCount) = (kernel, byteCount)
    unsafe base = try kernel.mapMemory(byteCount: byteCount, descriptor: -1, offset: 0)
    // A table that a fork changes would be a copy, and one that its parent changes then too.
    try? unsafe kernel.advise(base, byteCount: byteCount, .dontFork)
  }

  /// A fork does not have it, and may have something else in its place.
  deinit {
    guard ProcessGuard.isOwner else { return }
    unsafe kernel.unmapMemory(base, byteCount: byteCount)
  }
}

extension Limits {
  /// Memory for tables of a domain, in bytes: with pages of 4 KiB it leads to 512 GiB.
  package static let tables = 1 << 30
  /// The first piece of it that is pinned, and the largest.
  package static let firstTables = 64 << 10, tablePiece = 2 << 20
}
