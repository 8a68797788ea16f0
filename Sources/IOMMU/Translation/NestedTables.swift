import AddressSpace
import Synchronization

/// The nested page tables of a process-owned translation where they stand straight on nest parents: one of each for every physical
/// IOMMU, all with the same stage 1, and the devices that are attached to them.
///
/// Devices are attached to nested tables only, never to a parent or the IOAS. The source is `drivers/iommu/iommufd/hw_pagetable.c`.
final class NestedTables: Sendable {
  private let descriptor: IOMMUFDDescriptor
  private let stage2: Stage2
  /// What describes stage 1 to the kernel.
  private let data: HWPTData
  /// Where invalidations go: the nested tables' numbers.
  private let tags: HardwareTags
  private let state = Mutex(State())

  private struct State {
    var tables: [Table] = []
    var isClosed = false
  }
  /// The tables for one physical IOMMU, and the attached devices that use them.
  private struct Table {
    var nested: UInt32, parent: UInt32
    var unit: String?
    var devices: [UInt32]
  }

  init(_ descriptor: IOMMUFDDescriptor, _ stage2: Stage2, _ data: HWPTData, _ tags: HardwareTags) {
    (self.descriptor, self.stage2, self.data, self.tags) = (descriptor, stage2, data, tags)
  }

  private var kernel: any Kernel { descriptor.kernel }
  var isClosed: Bool { state.withLock { $0.isClosed } }
}

// MARK: - Attaching

extension NestedTables {
  /// Opens and binds a device unless it is, asks whether it may join, and attaches it.
  func join(
    _ target: AttachTarget, admitting: (UInt32) throws(DMAError) -> Void = { _ in }
  ) throws(DMAError) -> Attachment {
    try stage2.changing { () throws(DMAError) in
      let device = try descriptor.open(target)
      let id: UInt32
      do throws(DMAError) {
        id = try descriptor.bind(device, target)
        try admitting(id)
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

  /// The first device, with a parent that is there already and stays when this fails.
  func begin(with device: BoundDevice, _ target: AttachTarget, parent: UInt32) throws(NestingRefusal) -> Attachment {
    let nested: UInt32
    do throws(Errno) { nested = try makeNested(device.id, over: parent) } catch {
      throw NestingRefusal("IOMMU_HWPT_ALLOC", error)
    }
    let table = Table(nested: nested, parent: parent, unit: target.unit, devices: [device.id])
    do throws(Errno) {
      try add(table)
      _ = try kernel.vfioAttach(device.descriptor, pageTable: nested)
    } catch {
      forget(table)
      try? kernel.iommufdDestroy(descriptor.iommufd, id: nested)
      throw NestingRefusal(NestingRefusal.attach, error)
    }
    return Attachment(target: target, descriptor: device.descriptor, deviceID: device.id)
  }

  private func makeNested(_ device: UInt32, over parent: UInt32) throws(Errno) -> UInt32 {
    try kernel.hwptAllocate(descriptor.iommufd, flags: 0, device: device, pageTable: parent, data: data)
  }

  private func makeTable(_ device: UInt32, _ target: AttachTarget) throws(DMAError) -> Table {
    let iommufd = descriptor.iommufd
    var parent: UInt32?
    do throws(Errno) {
      parent = try kernel.hwptAllocate(
        iommufd, flags: HWPTFlags.nestParent, device: device, pageTable: descriptor.ioas)
      let nested = try makeNested(device, over: parent!)
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

  private func forget(_ table: Table) {
    state.withLock { state in
      state.tables.removeAll { $0.nested == table.nested }
      _ = tags.set(state.tables.map(\.nested))
    }
  }

  private func remove(_ table: Table) {
    forget(table)
    try? kernel.iommufdDestroy(descriptor.iommufd, id: table.nested)
    try? kernel.iommufdDestroy(descriptor.iommufd, id: table.parent)
  }
}

// MARK: - Detaching

extension NestedTables {
  /// Detach leaves the device blocked. Tables without devices go at once, unless they are the last: the kernel has flushed
  /// their tag then.
  func detach(_ attachment: Attachment) { stage2.changing { leave(attachment) } }

  private func leave(_ attachment: Attachment) {
    try? kernel.vfioDetach(attachment.descriptor)
    let empty: [Table] = state.withLock { state in
      for index in state.tables.indices { state.tables[index].devices.removeAll { $0 == attachment.deviceID } }
      return state.tables.count > 1 ? state.tables.filter(\.devices.isEmpty) : []
    }
    for table in empty { remove(table) }
    kernel.close(attachment.descriptor)
  }

  /// After the last detach: nested tables, all of stage 2 in steps, which cost no invalidation then, parents, IOAS.
  func close() {
    // A fork's unmap would be the parent's; its descriptors go when it ends.
    guard ProcessGuard.isOwner, let tables = takeTables() else { return }
    let (iommufd, ioas) = (descriptor.iommufd, descriptor.ioas)
    for table in tables { try? kernel.iommufdDestroy(iommufd, id: table.nested) }
    stage2.takeOutAll()
    for table in tables { try? kernel.iommufdDestroy(iommufd, id: table.parent) }
    try? kernel.iommufdDestroy(iommufd, id: ioas)
    kernel.close(iommufd)
  }

  /// Gives the first device's table back, where it cannot be used; the parent, the address space and the binding stay.
  func abandon(_ first: Attachment?) {
    if let first { try? kernel.vfioDetach(first.descriptor) }
    for table in takeTables() ?? [] { try? kernel.iommufdDestroy(descriptor.iommufd, id: table.nested) }
  }

  private func takeTables() -> [Table]? {
    let tables: [Table]? = state.withLock { state in
      if state.isClosed { return nil }
      state.isClosed = true
      defer { state.tables = [] }
      return state.tables
    }
    if tables != nil { _ = tags.set([]) }
    return tables
  }
}
