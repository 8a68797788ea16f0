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
  ) throws(SMMURefusal) -> SMMUSlice {
    var done: [UInt32] = []
    do throws(SMMURefusal) {
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
  ) throws(SMMURefusal) -> Value {
    do throws(Errno) { return try call() } catch { throw SMMURefusal(operation, error) }
  }

  /// Gives a device its number on a slice and attaches it to the nested table; the other devices of its group get theirs first,
  /// since the kernel attaches all of a group. Nothing is left of it when a step fails.
  func join(
    _ slice: inout SMMUSlice, device: UInt32, descriptor: Int32, _ target: AttachTarget
  ) throws(SMMURefusal) {
    var joined = slice
    do throws(SMMURefusal) {
      try number(device, target.address, target.group, companion: nil, in: &joined)
      for companion in companions(of: target) where !joined.members.contains(where: { $0.address == companion.address })
      {
        try bind(companion, target.group, in: &joined)
      }
      do throws(Errno) { _ = try kernel.vfioAttach(descriptor, pageTable: slice.nested) } catch {
        throw SMMURefusal(SMMURefusal.attach, error)
      }
    } catch {
      for member in joined.members.dropFirst(slice.members.count).reversed() { release(member) }
      throw error
    }
    slice = joined
  }

  private func number(
    _ device: UInt32, _ address: PCIAddress, _ group: Int, companion: Int32?, in slice: inout SMMUSlice
  ) throws(SMMURefusal) {
    let number = slice.nextNumber
    do throws(Errno) {
      let id = try kernel.vdeviceAllocate(iommufd, viommu: slice.viommu, device: device, number: UInt64(number))
      slice.nextNumber += 1
      slice.members.append(
        .init(device: device, vdevice: id, number: number, address: address, group: group, companion: companion))
    } catch { throw SMMURefusal("IOMMU_VDEVICE_ALLOC", error) }
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
  private func bind(_ companion: Companion, _ group: Int, in slice: inout SMMUSlice) throws(SMMURefusal) {
    guard let node = companion.node else {
      throw SMMURefusal(
        "\(companion.address), of the same group, is not bound to vfio-pci, and all of a group are attached")
    }
    let descriptor: Int32
    do throws(Errno) { descriptor = try kernel.open(node) } catch {
      throw SMMURefusal("open", error, "\(companion.address), of the same group, cannot be opened: \(error.name)")
    }
    do throws(SMMURefusal) {
      let id: UInt32
      do throws(Errno) { id = try kernel.vfioBind(descriptor, iommufd: iommufd, token: nil) } catch {
        let reason = "\(companion.address), of the same group, cannot be bound: \(error.name)"
        throw SMMURefusal("VFIO_DEVICE_BIND_IOMMUFD", error, reason)
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

/// Why stage 1 on an SMMU cannot be the process's: a step of the set-up and what the kernel answered, or a reason.
struct SMMURefusal: Error {
  var operation: String
  var errno: Errno?
  var reason: String

  init(_ operation: String, _ errno: Errno, _ reason: String? = nil) {
    (self.operation, self.errno) = (operation, errno)
    self.reason = reason ?? "\(operation) answers \(errno.name)"
  }

  init(_ reason: String) { (operation, errno, self.reason) = ("open", nil, reason) }

  /// Whether the kernel's tables would not do either.
  var isFinal = false

  /// Whether a vIOMMU or its table is of another physical SMMU than the device.
  var isOfAnotherUnit: Bool {
    errno == .invalidArgument && (operation == "IOMMU_VDEVICE_ALLOC" || operation == Self.attach)
  }
  static let attach = "VFIO_DEVICE_ATTACH_IOMMUFD_PT"

  /// As an error of a device that was to join a domain, whose tables are the process's already.
  func joining(_ target: AttachTarget, _ kernel: any Kernel) -> DMAError {
    guard let errno else { return error(target.address.description) }
    var error = DMAError.attaching(errno, target, kernel, operation)
    if error.detail == nil { error.detail = reason }
    return error
  }

  /// As an error for whoever asked for the process's tables.
  func error(_ device: String) -> DMAError {
    DMAError(
      errno == .noMemory ? .outOfMemory : .notSupported, operation, errno: errno, device: device,
      detail: "The page tables cannot be the process's. \(reason)",
      remedy: "Leave the translation to the library, or ask for the kernel's")
  }
}
