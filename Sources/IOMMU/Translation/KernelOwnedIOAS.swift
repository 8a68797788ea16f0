package import AddressSpace
import Synchronization

/// Page tables that the kernel owns, reached through an iommufd IOAS.
///
/// One IOAS a domain, one explicit hardware page table (HWPT) a physical IOMMU: an automatic domain, which attaching
/// to the IOAS itself would make, is torn down area by area inside the detach.
package final class KernelOwnedIOAS: Translation {
  package let interface = Interface.iommufd
  private let kernel: any Kernel
  private let descriptor: IOMMUFDDescriptor
  /// The iommufd descriptor.
  package let iommufd: Int32
  /// The id of the address space.
  package let ioas: UInt32
  private let state = Mutex(State())
  private let filesRefused = Atomic<Bool>(false)

  private struct State {
    var tables: [Table] = []
    var isClosed = false
  }
  /// A hardware page table and the attached devices that use it.
  private struct Table {
    var id: UInt32
    var unit: String?
    var devices: [UInt32]
  }

  /// Opens `/dev/iommu`, or takes over `descriptor`, and makes an address space.
  package init(kernel: any Kernel, descriptor: Int32? = nil) throws(DMAError) {
    let opened = try IOMMUFDDescriptor(kernel: kernel, descriptor: descriptor)
    self.kernel = kernel
    (self.descriptor, iommufd, ioas) = (opened, opened.iommufd, opened.ioas)
  }
  package static let path = IOMMUFDDescriptor.path

  /// Over an address space that nothing is in.
  init(_ opened: IOMMUFDDescriptor) {
    kernel = opened.kernel
    (descriptor, iommufd, ioas) = (opened, opened.iommufd, opened.ioas)
  }

  deinit { close() }

  /// The alignment is the smallest page (1 before the first attach); iommufd does not report the larger ones.
  package func pageSizes() throws(Errno) -> PageSizes {
    PageSizes(rawValue: max(try kernel.ioasRanges(iommufd, ioas: ioas).alignment, 4096))
  }

  package func usableRanges() throws(Errno) -> IOVARanges {
    IOVARanges(try kernel.ioasRanges(iommufd, ioas: ioas).ranges)
  }

  @inline(__always)
  package func map(iova: UInt64, address: UInt64, byteCount: UInt64, access: DMAAccess) throws(Errno) {
    let placed = try kernel.ioasMap(
      iommufd, ioas: ioas, flags: Self.flags(access), address: address, byteCount: byteCount, iova: iova)
    if placed != iova { throw .inputOutput }
  }

  package func map(iova: UInt64, file: Int32, start: UInt64, byteCount: UInt64, access: DMAAccess) throws(Errno) {
    do throws(Errno) {
      let placed = try kernel.ioasMapFile(
        iommufd, ioas: ioas, flags: Self.flags(access), file: file, start: start, byteCount: byteCount, iova: iova)
      if placed != iova { throw .inputOutput }
    } catch {
      if error == .notTypewriter { filesRefused.store(true, ordering: .relaxed) }
      throw error
    }
  }

  package var directCalls: DirectCalls? { DirectCalls(.iommufd, of: kernel, iommufd, ioas: ioas) }

  package var canMapFiles: Bool { !filesRefused.load(ordering: .relaxed) }

  package func unmap(iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64 {
    try kernel.ioasUnmap(iommufd, ioas: ioas, iova: iova, byteCount: byteCount)
  }

  /// Unmap all comes after the last detach, where it costs no invalidation; then tables, address space, descriptor.
  package func close() {
    // A fork's unmap would be the parent's; its descriptors go when it ends.
    guard ProcessGuard.isOwner else { return }
    let tables: [Table]? = state.withLock { state in
      if state.isClosed { return nil }
      state.isClosed = true
      defer { state.tables = [] }
      return state.tables
    }
    guard let tables else { return }
    _ = try? kernel.ioasUnmap(iommufd, ioas: ioas, iova: 0, byteCount: .max)
    for table in tables { try? kernel.iommufdDestroy(iommufd, id: table.id) }
    try? kernel.iommufdDestroy(iommufd, id: ioas)
    kernel.close(iommufd)
  }

  @inline(__always)
  static func flags(_ access: DMAAccess) -> UInt32 {
    IOASMapFlags.fixed | (access.canRead ? IOASMapFlags.readable : 0) | (access.canWrite ? IOASMapFlags.writable : 0)
  }
}

// MARK: - Attaching

extension KernelOwnedIOAS {
  package func attach(_ target: AttachTarget) throws(DMAError) -> Attachment {
    let name = target.address.description
    let descriptor = try self.descriptor.open(target)
    do throws(DMAError) {
      let device = try self.descriptor.bind(descriptor, target)
      try attach(descriptor, device: device, target)
      return Attachment(target: target, descriptor: descriptor, deviceID: device)
    } catch {
      kernel.close(descriptor)  // also unbinds
      var error = error
      error.device = error.device ?? name
      throw error
    }
  }

  /// Joins a table of the same physical IOMMU, or makes one: a table of another IOMMU answers EINVAL.
  private func attach(_ descriptor: Int32, device: UInt32, _ target: AttachTarget) throws(DMAError) {
    let candidates = state.withLock {
      $0.tables.filter { $0.unit == nil || target.unit == nil || $0.unit == target.unit }
    }
    for table in candidates {
      do throws(Errno) {
        _ = try kernel.vfioAttach(descriptor, pageTable: table.id)
        state.withLock { state in
          if let index = state.tables.firstIndex(where: { $0.id == table.id }) {
            state.tables[index].devices.append(device)
          }
        }
        return
      } catch {
        if error != .invalidArgument { throw .attaching(error, target, kernel) }
      }
    }
    let id: UInt32
    do throws(Errno) {
      id = try kernel.hwptAllocate(iommufd, flags: 0, device: device, pageTable: ioas)
    } catch {
      throw error == .noMemory
        ? DMAError(.outOfMemory, "IOMMU_HWPT_ALLOC", errno: error, device: target.address.description)
        : .attaching(error, target, kernel, "IOMMU_HWPT_ALLOC")
    }
    do throws(Errno) {
      _ = try kernel.vfioAttach(descriptor, pageTable: id)
    } catch {
      try? kernel.iommufdDestroy(iommufd, id: id)
      throw .attaching(error, target, kernel)
    }
    state.withLock { $0.tables.append(Table(id: id, unit: target.unit, devices: [device])) }
  }

  /// Detach leaves the device blocked. A table without devices goes at once: the kernel has flushed its tag then, and
  /// the IOAS keeps the mappings for those that stay.
  package func detach(_ attachment: Attachment) {
    try? kernel.vfioDetach(attachment.descriptor)
    let empty: [UInt32] = state.withLock { state in
      var empty: [UInt32] = []
      for index in state.tables.indices {
        state.tables[index].devices.removeAll { $0 == attachment.deviceID }
        if state.tables[index].devices.isEmpty, state.tables.count > 1 { empty.append(state.tables[index].id) }
      }
      state.tables.removeAll { empty.contains($0.id) }
      return empty
    }
    for id in empty { try? kernel.iommufdDestroy(iommufd, id: id) }
    kernel.close(attachment.descriptor)
  }
}
