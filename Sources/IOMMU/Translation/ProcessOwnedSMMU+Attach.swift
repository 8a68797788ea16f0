import AddressSpace
import Synchronization

extension ProcessOwnedSMMU {
  package func attach(_ target: AttachTarget) throws(DMAError) -> Attachment {
    let first = state.withLock { state -> Attachment? in
      guard let first = state.first, target.bound?.id == first.deviceID else { return nil }
      state.first = nil
      return first
    }
    if let first { return first }
    return try stage2.changing { () throws(DMAError) in try join(target) }
  }

  private func join(_ target: AttachTarget) throws(DMAError) -> Attachment {
    let name = target.address.description
    if let known = try takeCompanion(target) { return known }
    let device = try descriptor.open(target)
    do throws(DMAError) {
      let id = try descriptor.bind(device, target)
      do throws(NestingRefusal) {
        try admit(id)
        try attach(device, id: id, target)
      } catch { throw error.joining(target, kernel) }
      do throws(Errno) { try stage2.limitSpace() } catch {
        leave(device, id)
        throw DMAError(.system, "IOMMU_IOAS_IOVA_RANGES", errno: error)
      }
      return Attachment(target: target, descriptor: device, deviceID: id)
    } catch {
      kernel.close(device)  // also unbinds
      throw error.on(name)
    }
  }

  /// The device is bound already where another one of its group is attached; nil where it is not, or no more.
  private func takeCompanion(_ target: AttachTarget) throws(DMAError) -> Attachment? {
    let found: (member: SMMUSlice.Member, nested: UInt32)? = state.withLock { state in
      for index in state.slices.indices {
        let members = state.slices[index].members
        guard let at = members.firstIndex(where: { $0.address == target.address && $0.companion != nil }) else {
          continue
        }
        // A launcher's descriptor takes the place of ours.
        if target.descriptor != nil {
          state.slices[index].members.remove(at: at)
        } else {
          state.slices[index].members[at].companion = nil
        }
        return (members[at], state.slices[index].nested)
      }
      return nil
    }
    guard let (member, nested) = found else { return nil }
    if target.descriptor != nil {
      descriptor.release(member)
      return nil
    }
    do throws(Errno) { _ = try kernel.vfioAttach(member.companion!, pageTable: nested) } catch {
      leave(member.companion!, member.device)
      kernel.close(member.companion!)
      throw .attaching(error, target, kernel)
    }
    return Attachment(target: target, descriptor: member.companion!, deviceID: member.device)
  }

  /// Joins the slice of the same physical SMMU, or makes one.
  private func attach(_ device: Int32, id: UInt32, _ target: AttachTarget) throws(NestingRefusal) {
    let candidates = state.withLock {
      $0.slices.filter { $0.unit == nil || target.unit == nil || $0.unit == target.unit }
    }
    for var slice in candidates {
      do throws(NestingRefusal) {
        try descriptor.join(&slice, device: id, descriptor: device, target, publishing: keep)
        return
      } catch {
        if !error.isOfAnotherUnit { throw error }
      }
    }
    let parent: UInt32
    do throws(Errno) {
      parent = try kernel.hwptAllocate(
        descriptor.iommufd, flags: HWPTFlags.nestParent, device: id, pageTable: descriptor.ioas)
    } catch { throw NestingRefusal("IOMMU_HWPT_ALLOC", error) }
    do throws(NestingRefusal) {
      var slice = try descriptor.makeSlice(id, unit: target.unit, parent: parent, contextAddress: contextAddress)
      // The vIOMMU is known before any device can fill its tag.
      guard add(slice) else {
        destroy(slice)
        throw NestingRefusal("A domain has at most eight physical SMMUs")
      }
      do throws(NestingRefusal) {
        try descriptor.join(&slice, device: id, descriptor: device, target, publishing: keep)
      } catch {
        remove(slice)
        destroy(slice)
        throw error
      }
    } catch {
      try? kernel.iommufdDestroy(descriptor.iommufd, id: parent)
      throw error
    }
  }

  private func add(_ slice: SMMUSlice) -> Bool {
    state.withLock { state in
      guard channel.tags.set((state.slices + [slice]).map(\.viommu)) else { return false }
      state.slices.append(slice)
      return true
    }
  }

  func keep(_ slice: SMMUSlice) {
    state.withLock { state in
      guard let index = state.slices.firstIndex(where: { $0.viommu == slice.viommu }) else { return }
      state.slices[index] = slice
      state.forgetFaults()
    }
  }

  private func remove(_ slice: SMMUSlice) {
    state.withLock { state in
      state.slices.removeAll { $0.viommu == slice.viommu }
      state.nextEvent[slice.viommu] = nil
      _ = channel.tags.set(state.slices.map(\.viommu))
    }
  }

  package func detach(_ attachment: Attachment) {
    stage2.changing {
      leave(attachment.descriptor, attachment.deviceID)
      kernel.close(attachment.descriptor)
    }
  }

  /// Detach leaves the device blocked. With the last of a group those go that nobody asked for. A slice without devices goes at
  /// once, unless it is the last: the kernel has flushed its tag then. A tag that others go on using is flushed here, once.
  private func leave(_ device: Int32, _ id: UInt32) {
    try? kernel.vfioDetach(device)
    let (gone, empty, shared): ([SMMUSlice.Member], SMMUSlice?, UInt32?) = state.withLock { state in
      guard let index = state.slices.firstIndex(where: { $0.members.contains { $0.device == id } }) else {
        return ([], nil, nil)
      }
      let members = state.slices[index].members, group = members.first { $0.device == id }!.group
      let isLast = !members.contains { $0.device != id && $0.group == group && $0.companion == nil }
      let gone = members.filter { $0.device == id || (isLast && $0.group == group) }
      state.slices[index].members.removeAll { member in gone.contains { $0.device == member.device } }
      state.forgetFaults()
      guard state.slices[index].members.isEmpty else { return (gone, nil, state.slices[index].viommu) }
      return (gone, state.slices.count > 1 ? state.slices[index] : nil, nil)
    }
    for member in gone { descriptor.release(member) }
    if let shared {
      var plan = SMMUPlan(shape)
      plan.makeEverything()
      // What it would leave behind is what others see anyway.
      try? send(plan, to: shared)
    }
    guard let empty else { return }
    remove(empty)
    destroy(empty)
    try? kernel.iommufdDestroy(descriptor.iommufd, id: empty.parent)
  }

  /// After the last detach: slices, all of stage 2 in steps, which cost no invalidation then, parents, address space.
  package func close() {
    // A fork's unmap would be the parent's; its descriptors go when it ends.
    guard ProcessGuard.isOwner else { return }
    guard let slices = takeSlices() else { return }
    let (iommufd, ioas) = (descriptor.iommufd, descriptor.ioas)
    for slice in slices { destroy(slice) }
    stage2.takeOutAll()
    for slice in slices { try? kernel.iommufdDestroy(iommufd, id: slice.parent) }
    try? kernel.iommufdDestroy(iommufd, id: ioas)
    kernel.close(iommufd)
  }

  /// Gives the set-up back where the kernel is to own the tables instead; the address space and the binding stay.
  func abandon() {
    let first = state.withLock { $0.first }
    if let first { try? kernel.vfioDetach(first.descriptor) }
    for slice in takeSlices() ?? [] { destroy(slice) }
  }

  private func takeSlices() -> [SMMUSlice]? {
    let slices: [SMMUSlice]? = state.withLock { state in
      if state.isClosed { return nil }
      state.isClosed = true
      defer { (state.slices, state.first) = ([], nil) }
      return state.slices
    }
    if slices != nil { _ = channel.tags.set([]) }
    return slices
  }
}
