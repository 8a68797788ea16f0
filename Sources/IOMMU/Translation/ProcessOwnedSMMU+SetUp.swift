import AddressSpace
import PageTables
import Synchronization

extension ProcessOwnedSMMU {
  /// Makes the translation with a device that is bound, which is attached to it then and which ``attach(_:)`` will return.
  ///
  /// When this throws nothing is left but the address space and the binding: the kernel may own the tables there.
  static func make(_ descriptor: IOMMUFDDescriptor, _ target: AttachTarget) throws(SMMURefusal) -> ProcessOwnedSMMU {
    let device = target.bound!, kernel = descriptor.kernel
    let identity = try identity(descriptor, device.id)
    let stage2: Stage2
    do throws(RangeStoreFailure) { stage2 = try Stage2(descriptor) } catch { throw SMMURefusal("open", .noMemory) }
    let parent: UInt32
    do throws(Errno) {
      parent = try kernel.hwptAllocate(
        descriptor.iommufd, flags: HWPTFlags.nestParent, device: device.id, pageTable: descriptor.ioas)
    } catch { throw SMMURefusal("IOMMU_HWPT_ALLOC", error) }
    do throws(SMMURefusal) {
      let translation = try make(descriptor, identity, stage2)
      do throws(SMMURefusal) { try translation.begin(with: device, target, parent: parent) } catch {
        translation.abandon()
        throw error
      }
      return translation
    } catch {
      var refusal = error
      do throws(Errno) {
        _ = try kernel.ioasUnmap(descriptor.iommufd, ioas: descriptor.ioas, iova: 0, byteCount: .max)
        try kernel.iommufdDestroy(descriptor.iommufd, id: parent)
      } catch {
        // The address space has memory of tables still: no device may be attached to it.
        refusal.isFinal = true
      }
      throw refusal
    }
  }

  /// What the hardware is, if it will do. The kernel says whether it nests before it looks at the parent's number.
  private static func identity(_ descriptor: IOMMUFDDescriptor, _ device: UInt32) throws(SMMURefusal) -> SMMUIdentity {
    let kernel = descriptor.kernel, info: HardwareInfo
    do throws(Errno) { info = try kernel.hardwareInfo(descriptor.iommufd, device: device) } catch {
      throw SMMURefusal("IOMMU_GET_HW_INFO", error)
    }
    guard let identity = SMMUIdentity(info) else { throw SMMURefusal("The IOMMU is not an SMMUv3") }
    if let reason = identity.refusal(page: UInt64(kernel.pageByteCount)) { throw SMMURefusal(reason) }
    do throws(Errno) {
      let id = try kernel.viommuAllocate(
        descriptor.iommufd, type: NestingTypes.smmuVIOMMU, device: device, pageTable: .max)
      try? kernel.iommufdDestroy(descriptor.iommufd, id: id)
    } catch {
      switch error {
      case .noEntry: break
      case .notSupported:
        throw SMMURefusal(
          "The SMMU cannot nest stages: it lacks stage 1 or 2 (S1P, S2P), or cacheable writes of the root complex (CANWBS) "
            + "and S2FWB, or has an erratum; IOMMU_VIOMMU_ALLOC answers EOPNOTSUPP")
      default: throw SMMURefusal("IOMMU_VIOMMU_ALLOC", error)
      }
    }
    return identity
  }

  /// Memory for tables, and the first of them.
  private static func make(
    _ descriptor: IOMMUFDDescriptor, _ identity: SMMUIdentity, _ stage2: Stage2
  ) throws(SMMURefusal) -> ProcessOwnedSMMU {
    do throws(Errno) {
      let ranges = try descriptor.kernel.ioasRanges(descriptor.iommufd, ioas: descriptor.ioas)
      try stage2.limitSpace()
      guard let end = ranges.ranges.map(\.last.rawValue).max(), let granule = identity.granule(page: ranges.alignment)
      else { throw .notSupported }
      let last = min(end, Stage2.reachable.last.rawValue)
      let reserved = min(Limits.tables, Int(clamping: last / 8) & ~(Limits.tablePiece - 1))
      let tables = try PinnedTables(descriptor, stage2.memory, granule: granule, byteCount: reserved)
      return ProcessOwnedSMMU(
        descriptor, identity, stage2, tables, outputBits: UInt8(64 - last.leadingZeroBitCount))
    } catch { throw SMMURefusal("Memory for page tables", error) }
  }

  /// Doorbells, the first slice, the device; and whether it all answers as it should.
  private func begin(with device: BoundDevice, _ target: AttachTarget, parent: UInt32) throws(SMMURefusal) {
    do throws(Errno) {
      try mapAgain(
        Self.doorbells.start.rawValue, Self.doorbells.start.rawValue, Self.doorbells.byteCount,
        [.readable, .writable, .device])
    } catch { throw SMMURefusal("Doorbells", error) }
    var slice = try descriptor.makeSlice(
      device.id, unit: target.unit, parent: parent, contextAddress: contextAddress)
    state.withLock { $0.slices = [slice] }
    _ = tags.set([slice.viommu])
    try descriptor.join(&slice, device: device.id, descriptor: device.descriptor, target)
    let attachment = Attachment(target: target, descriptor: device.descriptor, deviceID: device.id)
    state.withLock { state in
      state.slices = [slice]
      state.first = attachment
    }
    try check(slice)
    counts.reset()
  }

  /// The in-place check: the kernel takes each kind of command that will be sent, the tables read back as they were written,
  /// and the SMMU has not complained of them. What the calls take is the measure for later ones.
  private func check(_ slice: SMMUSlice) throws(SMMURefusal) {
    guard let found = table.translate(Self.doorbells.start.rawValue), found.address == Self.doorbells.start.rawValue
    else { throw SMMURefusal("The self-check failed: the doorbells are not in stage 1") }
    do throws(Errno) {
      try sendContextCommand(slice)
      try calibrate()
    } catch { throw SMMURefusal("IOMMU_HWPT_INVALIDATE", error) }
    if let event = readEvents(of: slice).first {
      throw SMMURefusal("The self-check failed: the SMMU reports \(event.name)")
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
    var times: (one: UInt64, several: UInt64) = (.max, .max)
    for _ in 0..<Limits.budgetTimings {
      let began = kernel.costClock()
      try send(SMMUPlan(shape, pages: 1))
      let between = kernel.costClock()
      try send(SMMUPlan(shape, pages: Limits.budgetCommands))
      times = (min(times.one, between &- began), min(times.several, kernel.costClock() &- between))
    }
    budget.calibrate(one: times.one, several: times.several, count: Limits.budgetCommands)
  }
}

extension SMMUPlan {
  /// Commands for the first page, over and over.
  fileprivate init(_ shape: Shape, pages: Int) {
    self.init(shape)
    repeatPage(0, count: pages)
  }
}

extension Limits {
  /// How often an invalidation is timed when a device is opened, and how many commands the longer one has.
  package static let budgetTimings = 4, budgetCommands = 16
}
