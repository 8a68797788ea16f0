import AddressSpace
import PageTables
import Synchronization

extension ProcessOwnedSMMU {
  /// Makes the translation with a device that is bound, which is attached to it then and which ``attach(_:)`` will return.
  ///
  /// When this throws nothing is left but the address space and the binding: the kernel may own the tables there.
  static func make(_ descriptor: IOMMUFDDescriptor, _ target: AttachTarget) throws(NestingRefusal) -> ProcessOwnedSMMU {
    let device = target.bound!
    let identity = try identity(descriptor, device.id)
    let stage2: Stage2
    do throws(RangeStoreFailure) { stage2 = try Stage2(descriptor) } catch { throw NestingRefusal("open", .noMemory) }
    return try descriptor.withNestParent(device.id) { parent throws(NestingRefusal) in
      let (tables, last) = try PinnedTables.make(descriptor, stage2) { identity.granule(page: $0) }
      let translation = ProcessOwnedSMMU(
        descriptor, identity, stage2, tables, outputBits: UInt8(64 - last.leadingZeroBitCount))
      do throws(NestingRefusal) { try translation.begin(with: device, target, parent: parent) } catch {
        translation.abandon()
        throw error
      }
      return translation
    }
  }

  /// What the hardware is, if it will do. The kernel says whether it nests before it looks at the parent's number.
  private static func identity(_ descriptor: IOMMUFDDescriptor, _ device: UInt32) throws(NestingRefusal) -> SMMUIdentity
  {
    let kernel = descriptor.kernel, identity = try registers(descriptor, device)
    if let reason = identity.refusal(page: UInt64(kernel.pageByteCount)) { throw NestingRefusal(reason) }
    do throws(Errno) {
      let id = try kernel.viommuAllocate(
        descriptor.iommufd, type: NestingTypes.smmuVIOMMU, device: device, pageTable: .max)
      try? kernel.iommufdDestroy(descriptor.iommufd, id: id)
    } catch {
      switch error {
      case .noEntry: break
      case .notSupported:
        throw NestingRefusal(
          "The SMMU cannot nest stages: it lacks stage 1 or 2 (S1P, S2P), or cacheable writes of the root complex (CANWBS) "
            + "and S2FWB, or has an erratum; IOMMU_VIOMMU_ALLOC answers EOPNOTSUPP")
      default: throw NestingRefusal("IOMMU_VIOMMU_ALLOC", error)
      }
    }
    return identity
  }

  /// What the registers say.
  private static func registers(_ descriptor: IOMMUFDDescriptor, _ device: UInt32) throws(NestingRefusal)
    -> SMMUIdentity
  {
    let info: HardwareInfo
    do throws(Errno) { info = try descriptor.kernel.hardwareInfo(descriptor.iommufd, device: device) } catch {
      throw NestingRefusal("IOMMU_GET_HW_INFO", error)
    }
    guard let identity = SMMUIdentity(info) else { throw NestingRefusal("The IOMMU is not an SMMUv3") }
    return identity
  }

  /// Whether the SMMU of a device that is to join reads the tables, and knows the commands, that the first one's does.
  func admit(_ device: UInt32) throws(NestingRefusal) {
    let identity = try Self.registers(descriptor, device)
    let reason = identity.refusal(
      joining: self.identity, granule: stage1.table.geometry.granule, page: UInt64(kernel.pageByteCount))
    if let reason { throw NestingRefusal(reason) }
  }

  /// Doorbells, the first slice, the device; and whether it all answers as it should.
  private func begin(with device: BoundDevice, _ target: AttachTarget, parent: UInt32) throws(NestingRefusal) {
    do throws(Errno) {
      try stage1.mapAgain(
        Self.doorbells.start.rawValue, Self.doorbells.start.rawValue, Self.doorbells.byteCount,
        [.readable, .writable, .device], for: self)
    } catch { throw NestingRefusal("Doorbells", error) }
    var slice = try descriptor.makeSlice(
      device.id, unit: target.unit, parent: parent, contextAddress: contextAddress)
    state.withLock { $0.slices = [slice] }
    _ = channel.tags.set([slice.viommu])
    try descriptor.join(&slice, device: device.id, descriptor: device.descriptor, target, publishing: keep)
    let attachment = Attachment(target: target, descriptor: device.descriptor, deviceID: device.id)
    state.withLock { $0.first = attachment }
    try check(slice)
    channel.counts.reset()
  }

  /// The in-place check: the kernel takes each kind of command that will be sent, the tables read back as they were written,
  /// and the SMMU has not complained of them. What the calls take is the measure for later ones.
  private func check(_ slice: SMMUSlice) throws(NestingRefusal) {
    guard let found = stage1.table.translate(Self.doorbells.start.rawValue),
      found.address == Self.doorbells.start.rawValue
    else { throw NestingRefusal("The self-check failed: the doorbells are not in stage 1") }
    do throws(Errno) {
      try sendContextCommand(slice)
      try calibrate()
    } catch { throw NestingRefusal("IOMMU_HWPT_INVALIDATE", error) }
    if let event = readEvents(of: slice).first {
      throw NestingRefusal("The self-check failed: the SMMU reports \(event.name)")
    }
  }

  private func sendContextCommand(_ slice: SMMUSlice) throws(Errno) {
    for member in slice.members {
      let command = SMMUCommand.contextDescriptor(stream: member.number)
      let done = try unsafe withUnsafeBytes(of: command) { bytes throws(Errno) in
        try unsafe kernel.hwptInvalidate(
          descriptor.iommufd, pageTable: slice.viommu, type: NestingTypes.smmuCommand, entries: bytes,
          byteCount: bytes.count)
      }
      if done != 1 { throw .inputOutput }
    }
  }

  /// Times calls of one command and of several, for a page that nothing uses.
  private func calibrate() throws(Errno) {
    try channel.calibrate(several: Limits.budgetCommands) { count throws(Errno) in
      try send(SMMUPlan(shape, pages: count))
    }
  }
}

extension SMMUPlan {
  /// Commands for the first page, over and over.
  fileprivate init(_ shape: Shape, pages: Int) {
    self.init(shape)
    repeatPage(0, count: pages)
  }
}
