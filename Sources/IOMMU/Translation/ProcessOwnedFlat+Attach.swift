import AddressSpace
import Synchronization

extension ProcessOwnedFlat {
  package func attach(_ target: AttachTarget) throws(DMAError) -> Attachment {
    try stage2.changing { () throws(DMAError) in try join(target) }
  }

  private func join(_ target: AttachTarget) throws(DMAError) -> Attachment {
    let device = try descriptor.open(target)
    let id: UInt32
    do throws(DMAError) {
      id = try descriptor.bind(device, target)
      try attach(device, id: id, target)
    } catch {
      kernel.close(device)  // also unbinds
      throw error.on(target.address.description)
    }
    let attachment = Attachment(target: target, descriptor: device, deviceID: id)
    do throws(Errno) { try stage2.limitSpace() } catch {
      leave(attachment)
      throw DMAError(.system, "IOMMU_IOAS_IOVA_RANGES", errno: error, device: target.address.description)
    }
    return attachment
  }

  /// Joins the nested table of the same physical IOMMU, or makes one over a parent of its own.
  private func attach(_ device: Int32, id: UInt32, _ target: AttachTarget) throws(DMAError) {
    let candidates = state.withLock {
      $0.tables.filter { $0.unit == nil || target.unit == nil || $0.unit == target.unit }
    }
    for table in candidates {
      do throws(Errno) {
        _ = try kernel.vfioAttach(device, pageTable: table.nested)
        state.withLock { state in
          guard let index = state.tables.firstIndex(where: { $0.nested == table.nested }) else { return }
          state.tables[index].devices.append(id)
        }
        return
      } catch {
        if error != .invalidArgument { throw .attaching(error, target, kernel) }
      }
    }
    let table = try makeTable(id, target)
    do throws(Errno) {
      // The tag is known before any device can fill it.
      try add(table)
      _ = try kernel.vfioAttach(device, pageTable: table.nested)
    } catch {
      remove(table)
      throw .attaching(error, target, kernel)
    }
  }

  private func makeTable(_ device: UInt32, _ target: AttachTarget) throws(DMAError) -> Table {
    let iommufd = descriptor.iommufd
    var parent: UInt32?
    do throws(Errno) {
      parent = try kernel.hwptAllocate(
        iommufd, flags: HWPTFlags.nestParent, device: device, pageTable: descriptor.ioas)
      let nested = try kernel.hwptAllocate(
        iommufd, flags: 0, device: device, pageTable: parent!, data: FlatFormat.data(table))
      return Table(nested: nested, parent: parent!, unit: target.unit, devices: [device])
    } catch {
      if let parent { try? kernel.iommufdDestroy(iommufd, id: parent) }
      throw error == .noMemory
        ? DMAError(.outOfMemory, "IOMMU_HWPT_ALLOC", errno: error, device: target.address.description)
        : .attaching(error, target, kernel, "IOMMU_HWPT_ALLOC")
    }
  }

  private func add(_ table: Table) throws(Errno) {
    let isKnown = state.withLock { state in
      state.tables.append(table)
      return tags.set(state.tables.map(\.nested))
    }
    if !isKnown { throw .noSpace }
  }

  private func remove(_ table: Table) {
    state.withLock { state in
      state.tables.removeAll { $0.nested == table.nested }
      _ = tags.set(state.tables.map(\.nested))
    }
    destroy(table)
  }

  private func destroy(_ table: Table) {
    try? kernel.iommufdDestroy(descriptor.iommufd, id: table.nested)
    try? kernel.iommufdDestroy(descriptor.iommufd, id: table.parent)
  }

  /// Detach leaves the device blocked. Tables without devices go at once, unless they are the last: the kernel has flushed
  /// their tag then.
  package func detach(_ attachment: Attachment) { stage2.changing { leave(attachment) } }

  private func leave(_ attachment: Attachment) {
    try? kernel.vfioDetach(attachment.descriptor)
    let empty: [Table] = state.withLock { state in
      for index in state.tables.indices { state.tables[index].devices.removeAll { $0 == attachment.deviceID } }
      return state.tables.count > 1 ? state.tables.filter(\.devices.isEmpty) : []
    }
    for table in empty { remove(table) }
    kernel.close(attachment.descriptor)
  }

  /// After the last detach: nested tables, all of stage 2 at once, which costs no invalidation then, parents, IOAS.
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
    _ = tags.set([])
    let (iommufd, ioas) = (descriptor.iommufd, descriptor.ioas)
    for table in tables { try? kernel.iommufdDestroy(iommufd, id: table.nested) }
    _ = try? kernel.ioasUnmap(iommufd, ioas: ioas, iova: 0, byteCount: .max)
    for table in tables { try? kernel.iommufdDestroy(iommufd, id: table.parent) }
    try? kernel.iommufdDestroy(iommufd, id: ioas)
    kernel.close(iommufd)
  }
}
