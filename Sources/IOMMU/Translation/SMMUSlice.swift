/// What a translation has on one physical SMMU, and the devices behind it.
struct SMMUSlice {
  /// A device, its vDEVICE and the number by which commands and events name it.
  struct Member {
    var device: UInt32, vdevice: UInt32, number: UInt32
    var address: PCIAddress?, group: Int
    /// Its descriptor, where nobody asked for the device: another of its group is attached, and the kernel attaches them all.
    var companion: Int32?
  }

  var unit: String?
  var parent: UInt32, viommu: UInt32
  var events: (id: UInt32, descriptor: Int32)?
  var nested: UInt32
  var members: [Member] = []
  /// No device gets a number that another had: events that nobody has read may tell of that one.
  var nextNumber: UInt32 = 1
}

extension IOMMUFDDescriptor {
  /// How many records an event queue holds; a device that faults without end must not keep more memory than that.
  private static var eventDepth: UInt32 { 128 }

  /// Makes a slice over a nest parent, in the order of creation; nothing is left of it when a step fails. The parent stays.
  func makeSlice(
    _ device: UInt32, unit: String?, parent: UInt32, contextAddress: UInt64
  ) throws(NestingRefusal) -> SMMUSlice {
    var done: [UInt32] = []
    do throws(NestingRefusal) {
      let viommu = try step("IOMMU_VIOMMU_ALLOC") { () throws(Errno) in
        try kernel.viommuAllocate(iommufd, type: NestingTypes.smmuVIOMMU, device: device, pageTable: parent)
      }
      done.append(viommu)
      let words = SMMUContext.entry(descriptorAt: contextAddress)
      let bytes = words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } }
      let nested = try step("IOMMU_HWPT_ALLOC") { () throws(Errno) in
        try kernel.hwptAllocate(
          iommufd, flags: 0, device: device, pageTable: viommu,
          data: HWPTData(type: NestingTypes.smmuData, bytes: bytes))
      }
      done.append(nested)
      let events = try step("IOMMU_VEVENTQ_ALLOC") { () throws(Errno) in try makeEventQueue(viommu) }
      return SMMUSlice(unit: unit, parent: parent, viommu: viommu, events: events, nested: nested)
    } catch {
      for id in done.reversed() { try? kernel.iommufdDestroy(iommufd, id: id) }
      throw error
    }
  }

  /// nil before Linux 6.15, where all faults are in the kernel's log.
  private func makeEventQueue(_ viommu: UInt32) throws(Errno) -> (id: UInt32, descriptor: Int32)? {
    do throws(Errno) {
      return try kernel.eventQueueAllocate(
        iommufd, viommu: viommu, type: NestingTypes.smmuEventQueue, depth: Self.eventDepth)
    } catch {
      if error == .notTypewriter { return nil }
      throw error
    }
  }

  private func step<Value>(
    _ operation: String, _ call: () throws(Errno) -> Value
  ) throws(NestingRefusal) -> Value {
    do throws(Errno) { return try call() } catch { throw NestingRefusal(operation, error) }
  }

  /// Gives a device its number on a slice and attaches it to the nested table; the other devices of its group get theirs first,
  /// since the kernel attaches all of a group. Nothing is left of it when a step fails, but that numbers are not given twice.
  ///
  /// - Parameter publish: Says what the slice is from now on. It has the devices before they are attached, as their first events may
  ///   be read before that call has returned.
  func join(
    _ slice: inout SMMUSlice, device: UInt32, descriptor: Int32, _ target: AttachTarget,
    publishing publish: (SMMUSlice) -> Void
  ) throws(NestingRefusal) {
    var joined = slice
    do throws(NestingRefusal) {
      try number(device, target.address, target.group, companion: nil, in: &joined)
      for companion in companions(of: target) where !joined.members.contains(where: { $0.address == companion.address })
      {
        try bind(companion, target.group, in: &joined)
      }
      publish(joined)
      do throws(Errno) { _ = try kernel.vfioAttach(descriptor, pageTable: slice.nested) } catch {
        throw NestingRefusal(NestingRefusal.attach, error)
      }
    } catch {
      slice.nextNumber = joined.nextNumber
      publish(slice)
      for member in joined.members.dropFirst(slice.members.count).reversed() { release(member) }
      throw error
    }
    slice = joined
  }

  private func number(
    _ device: UInt32, _ address: PCIAddress, _ group: Int, companion: Int32?, in slice: inout SMMUSlice
  ) throws(NestingRefusal) {
    let number = slice.nextNumber
    do throws(Errno) {
      let id = try kernel.vdeviceAllocate(iommufd, viommu: slice.viommu, device: device, number: UInt64(number))
      slice.nextNumber += 1
      slice.members.append(
        .init(device: device, vdevice: id, number: number, address: address, group: group, companion: companion))
    } catch { throw NestingRefusal("IOMMU_VDEVICE_ALLOC", error) }
  }

  /// A device of the same group, and its own node; nil where it is not vfio-pci's.
  private typealias Companion = (address: PCIAddress, node: String?)

  private func companions(of target: AttachTarget) -> [Companion] {
    let host = Host(kernel: kernel), members = (try? host.group(target.group))?.devices ?? []
    return members.filter { $0 != target.address }.map { member in
      (member, (try? host.device(member, named: false))?.cdev.map { "/dev/vfio/devices/\($0)" })
    }
  }

  /// Opens and binds a device that shares its group with one that is to be attached.
  private func bind(_ companion: Companion, _ group: Int, in slice: inout SMMUSlice) throws(NestingRefusal) {
    guard let node = companion.node else {
      throw NestingRefusal(
        "\(companion.address), of the same group, is not bound to vfio-pci, and all of a group are attached")
    }
    let descriptor: Int32
    do throws(Errno) { descriptor = try kernel.open(node) } catch {
      throw NestingRefusal("open", error, "\(companion.address), of the same group, cannot be opened: \(error.name)")
    }
    do throws(NestingRefusal) {
      let id: UInt32
      do throws(Errno) { id = try kernel.vfioBind(descriptor, iommufd: iommufd, token: nil) } catch {
        let reason = "\(companion.address), of the same group, cannot be bound: \(error.name)"
        throw NestingRefusal("VFIO_DEVICE_BIND_IOMMUFD", error, reason)
      }
      try number(id, companion.address, group, companion: descriptor, in: &slice)
    } catch {
      kernel.close(descriptor)
      throw error
    }
  }

  /// Takes a device's number back, and unbinds it where nobody asked for it.
  func release(_ member: SMMUSlice.Member) {
    try? kernel.iommufdDestroy(iommufd, id: member.vdevice)
    if let descriptor = member.companion { kernel.close(descriptor) }
  }

  /// Destroys a slice without devices, in the only order that the kernel takes: the nested table, the queue, whose descriptor is
  /// closed before, what vDEVICEs there are, the vIOMMU. The parent stays.
  func destroy(_ slice: SMMUSlice, closingQueue close: (Int32) -> Void) {
    try? kernel.iommufdDestroy(iommufd, id: slice.nested)
    if let events = slice.events {
      close(events.descriptor)
      try? kernel.iommufdDestroy(iommufd, id: events.id)
    }
    for member in slice.members { release(member) }
    try? kernel.iommufdDestroy(iommufd, id: slice.viommu)
  }
}
