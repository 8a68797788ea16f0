import IOMMU

// iommufd's vIOMMUs, device numbers and event queues. Rules of `drivers/iommu/iommufd/{viommu,eventq}.c` and of
// `drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3-iommufd.c`.

extension KernelState {
  private func device(_ id: UInt32, in context: IOMMUFDContext) throws(Errno) -> DeviceState {
    guard case .device(let device)? = context.objects[id] else { throw .noEntry }
    return device
  }

  private func viommu(_ id: UInt32, in context: IOMMUFDContext) throws(Errno) -> VIOMMU {
    guard case .viommu(let viommu)? = context.objects[id] else { throw .noEntry }
    return viommu
  }

  /// What the hardware cannot do is said before the page table is looked at.
  func viommuAllocate(_ descriptor: Int32, type: UInt32, device id: UInt32, pageTable: UInt32) throws(Errno) -> UInt32 {
    let context = try iommufdContext(descriptor)
    guard type != 0 else { throw .notSupported }
    let device = try device(id, in: context)
    guard type == NestingTypes.smmuVIOMMU, machine.hasVIOMMU else { throw .notSupported }
    guard case .pageTable(let parent)? = context.objects[pageTable], parent.parent == nil else { throw .noEntry }
    guard parent.isNestParent, iommu!.unit(of: parent.domain) == device.unit else { throw .invalidArgument }
    let viommu = VIOMMU(over: parent, unit: device.unit)
    viommu.id = context.add(.viommu(viommu))
    parent.users += 1
    nestingObjectCount += 1
    return viommu.id
  }

  func vdeviceAllocate(_ descriptor: Int32, viommu id: UInt32, device deviceID: UInt32, number: UInt64) throws(Errno)
    -> UInt32
  {
    let context = try iommufdContext(descriptor)
    let viommu = try viommu(id, in: context), device = try device(deviceID, in: context)
    guard viommu.unit == device.unit else { throw .invalidArgument }
    guard device.vdevice == nil, viommu.devices[number] == nil else { throw .exists }
    let vdevice = VDevice(viommu, device, number: number)
    vdevice.id = context.add(.vdevice(vdevice))
    (viommu.devices[number], device.vdevice) = (vdevice, vdevice)
    viommu.users += 1
    nestingObjectCount += 1
    return vdevice.id
  }

  func eventQueueAllocate(_ descriptor: Int32, viommu id: UInt32, type: UInt32, depth: UInt32) throws(Errno)
    -> (id: UInt32, descriptor: Int32)
  {
    let context = try iommufdContext(descriptor)
    guard type != 0 else { throw .notSupported }
    guard depth > 0, depth <= 1 << 19 else { throw .invalidArgument }
    let viommu = try viommu(id, in: context)
    guard type == NestingTypes.smmuEventQueue else { throw .notSupported }
    guard viommu.eventQueue == nil else { throw .exists }
    let queue = try VEventQueue(viommu, context, depth: depth)
    queue.id = context.add(.eventQueue(queue))
    viommu.eventQueue = queue
    viommu.users += 1
    // The open file keeps the iommufd.
    context.references += 1
    eventQueues[queue.descriptor] = queue
    nestingObjectCount += 1
    return (queue.id, queue.descriptor)
  }

  func readEventQueue(_ descriptor: Int32, byteCount: Int) throws(Errno) -> [UInt8] {
    guard let queue = eventQueues[descriptor] else { throw .badDescriptor }
    return queue.take(byteCount: byteCount)
  }
}

// MARK: - Destroying

extension KernelState {
  func destroy(_ viommu: VIOMMU, in context: IOMMUFDContext) {
    viommu.parent.users -= 1
    context.objects[viommu.id] = nil
    nestingObjectCount -= 1
  }

  /// A device may be attached still: commands that name it are refused from now on, and its events go on.
  func destroy(_ vdevice: VDevice, in context: IOMMUFDContext) {
    vdevice.viommu.devices[vdevice.number] = nil
    vdevice.viommu.users -= 1
    vdevice.device.vdevice = nil
    context.objects[vdevice.id] = nil
    nestingObjectCount -= 1
  }

  func destroy(_ queue: VEventQueue, in context: IOMMUFDContext) {
    queue.viommu.eventQueue = nil
    queue.viommu.users -= 1
    context.objects[queue.id] = nil
    nestingObjectCount -= 1
  }

  /// The process closed an event queue's descriptor; false when it is none.
  func closeEventQueue(_ descriptor: Int32) -> Bool {
    guard let queue = eventQueues.removeValue(forKey: descriptor) else { return false }
    queue.isOpen = false
    release(queue.context)
    return true
  }
}

// MARK: - Nested page tables

extension KernelState {
  /// A page table whose stage 1 is the process's, by a stream table entry of 16 bytes.
  func makeNested(
    over viommu: VIOMMU, for device: DeviceState, flags: UInt32, _ data: HWPTData, in context: IOMMUFDContext
  ) throws(Errno) -> UInt32 {
    guard viommu.unit == device.unit else { throw .invalidArgument }
    guard flags == 0 else { throw .notSupported }
    guard data.type == NestingTypes.smmuData, data.bytes.count >= 16 else { throw .invalidArgument }
    guard data.bytes.dropFirst(16).allSatisfy({ $0 == 0 }) else { throw .tooBig }
    let words = SMMUCommand(bytes: data.bytes.prefix(16))
    let entry = try StreamTableEntry(validating: words.word0, words.word1)
    let domain = try iommu!.makeDomain(over: viommu.parent.domain, entry, unit: viommu.unit)
    let nested = HWPageTable(viommu.parent.ioas, domain, isAutomatic: false)
    (nested.parent, nested.viommu) = (viommu.parent, viommu)
    viommu.users += 1
    nested.id = context.add(.pageTable(nested))
    pageTableCount += 1
    return nested.id
  }

  /// What attaching a group to a page table takes of the hardware: the same IOMMU on SMMUv3, and for a stage 1 of the
  /// process's a number of each device.
  func checkAttach(_ group: GroupState, to table: HWPageTable) throws(Errno) {
    if let nesting = iommu!.domains[table.domain]?.vtd, let registers = machine.effectiveVTdRegisters {
      try nesting.stage1.check(registers)
    }
    guard machine.iommu == .smmuv3 else { return }
    for member in group.members {
      guard member.unit == iommu!.unit(of: table.domain) else { throw .invalidArgument }
      let translates = iommu!.domains[table.domain]?.hardware?.entry.translates == true
      if let viommu = table.viommu, translates, viommu.number(of: member) == nil { throw .noEntry }
    }
  }

  /// Whose event queue hears of a group's devices, and under which numbers: `arm_smmu_attach_prepare_vmaster`.
  func noteEvents(of group: GroupState, in table: HWPageTable?) {
    for member in group.members {
      member.events = nil
      guard let viommu = table?.viommu, let number = viommu.number(of: member) else { continue }
      member.events = (viommu, UInt32(truncatingIfNeeded: number))
    }
  }
}
