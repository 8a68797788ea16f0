import IOMMU

/// The objects of iommufd that nested translation is made of: what kernel and IOMMU offer, and in which order it goes.
extension Cases {
  static let nesting: [ConformanceCase] = [
    ConformanceCase(.conformance, "nesting/offered") { environment in
      let raw = try RawDevice(environment.devices.edu, environment)
      try raw.bind()
      if environment.nestsOnSMMU {
        try offered(raw, environment)
      } else {
        try notOffered(raw, environment)
      }
    },
    ConformanceCase(.conformance, "nesting/raw-teardown") { environment in
      let smmu = try NestedSMMU(environment)
      try smmu.attach()
      let ids = [(smmu.nested!, "a nested table attached to"), (smmu.events!.id, "an event queue that is open")]
      let users = [(smmu.viommu, "a vIOMMU in use"), (smmu.parent, "a parent in use"), (smmu.ioas, "an IOAS in use")]
      for (id, what) in ids + users {
        try expectErrno(.busy, what: "destroying \(what)") { () throws(Errno) in try smmu.destroy(id) }
      }
      // The exception: a vDEVICE goes while the device is attached, and then no command can name the device.
      try smmu.send(SMMUWords.invalidate(contextOf: NestedSMMU.stream))
      try smmu.destroyVDevice()
      try expectErrno(.inputOutput, what: "a command for a vDEVICE that is gone") { () throws(Errno) in
        try smmu.send(SMMUWords.invalidate(contextOf: NestedSMMU.stream))
      }
      try smmu.send(SMMUWords.invalidate(asid: NestedSMMU.asid))
      try smmu.kernel.vfioDetach(smmu.raw.device)
      try smmu.destroyEvents()
      try expectErrno(.busy, what: "destroying a vIOMMU with a nested table alone") { () throws(Errno) in
        try smmu.destroy(smmu.viommu)
      }
      try smmu.takeDown()
    },
    ConformanceCase(.conformance, "nesting/raw-refusals") { environment in
      let smmu = try NestedSMMU(environment)
      // `arm_smmu_attach_prepare_vmaster`: events and commands would have no name for the device.
      let unnamed = try smmu.makeNested()
      try expectErrno(.noEntry, what: "attaching without a vDEVICE") { () throws(Errno) in
        try smmu.kernel.vfioAttach(smmu.raw.device, pageTable: unnamed)
      }
      try smmu.destroy(unnamed)
      try expectErrno(.notSupported, what: "a nested table over the parent itself") { () throws(Errno) in
        try smmu.makeNested(over: smmu.parent)
      }
      for configuration: UInt64 in [1, 6, 7] {  // stage 2, with or without stage 1, is the kernel's to add
        try expectErrno(.inputOutput, what: "configuration \(configuration)") { () throws(Errno) in
          try smmu.makeNested(configuration: configuration)
        }
      }
      try smmu.attach()
      try expectErrno(.inputOutput, what: "a command for an unknown stream") { () throws(Errno) in
        try smmu.send(SMMUWords.invalidate(contextOf: NestedSMMU.stream + 1))
      }
      try expectErrno(.inputOutput, what: "CMD_SYNC") { () throws(Errno) in try smmu.send(SMMUWords.sync) }
      try expectErrno(.invalidArgument, what: "no command") { () throws(Errno) in try smmu.send() }
      try expectErrno(.notSupported, what: "a command for the nested table") { () throws(Errno) in
        try smmu.send(to: smmu.nested!, SMMUWords.invalidateAll)
      }
      let all = [
        SMMUWords.invalidate(page: NestedSMMU.address, asid: NestedSMMU.asid),
        SMMUWords.invalidate(asid: NestedSMMU.asid), SMMUWords.invalidate(contextOf: NestedSMMU.stream),
      ]
      try expectEqual(try smmu.send(all[0], all[1], all[2], SMMUWords.invalidateAll), 4, "commands handled")
      try smmu.takeDown()
    },
    ConformanceCase(.conformance, "nesting/vtd-objects") { environment in
      let raw = try RawDevice(environment.devices.edu, environment)
      try raw.bind()
      try vtdObjects(raw)
    },
  ]

  /// On VT-d a nested table stands on the parent itself, and takes commands; each holds what it was made of.
  private static func vtdObjects(_ raw: RawDevice) throws {
    let (kernel, iommufd, device) = (raw.kernel, raw.space, raw.deviceID)
    let stage1 = [0, 0x1000, 48].flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } }
    func nest(over parent: UInt32, _ bytes: [UInt8]) throws(Errno) -> UInt32 {
      let data = HWPTData(type: NestingTypes.vtdData, bytes: bytes)
      return try kernel.hwptAllocate(iommufd, flags: 0, device: device, pageTable: parent, data: data)
    }
    func send(_ table: UInt32, type: UInt32 = NestingTypes.vtdCommand, _ command: VTdCommand) throws(Errno) -> Int {
      try unsafe withUnsafeBytes(of: command) { bytes throws(Errno) in
        try unsafe kernel.hwptInvalidate(
          iommufd, pageTable: table, type: type, entries: bytes, byteCount: bytes.count)
      }
    }
    let ioas = try kernel.ioasAllocate(iommufd)
    let plain = try kernel.hwptAllocate(iommufd, flags: 0, device: device, pageTable: ioas)
    let parent = try kernel.hwptAllocate(iommufd, flags: HWPTFlags.nestParent, device: device, pageTable: ioas)
    try expectErrno(.invalidArgument, what: "a table over one that is no parent") { () throws(Errno) in
      try nest(over: plain, stage1)
    }
    try expectErrno(.invalidArgument, what: "a short description") { () throws(Errno) in
      try nest(over: parent, Array(stage1.dropLast()))
    }
    let nested = try nest(over: parent, stage1)
    try expectEqual(try send(nested, .everything), 1, "commands")
    try expectErrno(.invalidArgument, what: "another format's command") { () throws(Errno) in
      try send(nested, type: NestingTypes.smmuCommand, .everything)
    }
    try expectErrno(.invalidArgument, what: "a command for the parent") { () throws(Errno) in
      try send(parent, .everything)
    }
    var command = VTdCommand(address: 0x1001, pageCount: 1)
    try expectErrno(.invalidArgument, what: "a command in mid page") { () throws(Errno) in try send(nested, command) }
    (command.address, command.flags) = (0x1000, 2)
    try expectErrno(.notSupported, what: "an unknown flag") { () throws(Errno) in try send(nested, command) }
    for (id, what) in [(parent, "a parent with a nested table"), (ioas, "an IOAS with a parent")] {
      try expectErrno(.busy, what: "destroying \(what)") { () throws(Errno) in
        try kernel.iommufdDestroy(iommufd, id: id)
      }
    }
    for id in [nested, plain, parent, ioas] { try kernel.iommufdDestroy(iommufd, id: id) }
  }

  /// Parent, vIOMMU, vDEVICE, event queue; each holds what it was made of.
  private static func offered(_ raw: RawDevice, _ environment: Environment) throws {
    let (kernel, iommufd, device) = (raw.kernel, raw.space, raw.deviceID)
    let type = NestingTypes.smmuVIOMMU, queueType = NestingTypes.smmuEventQueue
    let ioas = try kernel.ioasAllocate(iommufd)
    let plain = try kernel.hwptAllocate(iommufd, flags: 0, device: device, pageTable: ioas)
    let parent = try kernel.hwptAllocate(iommufd, flags: HWPTFlags.nestParent, device: device, pageTable: ioas)
    try expectErrno(.noEntry, what: "a vIOMMU over nothing") { () throws(Errno) in
      try kernel.viommuAllocate(iommufd, type: type, device: device, pageTable: .max)
    }
    try expectErrno(.invalidArgument, what: "a vIOMMU over a table that is no parent") { () throws(Errno) in
      try kernel.viommuAllocate(iommufd, type: type, device: device, pageTable: plain)
    }
    let viommu = try kernel.viommuAllocate(iommufd, type: type, device: device, pageTable: parent)
    let named = try kernel.vdeviceAllocate(iommufd, viommu: viommu, device: device, number: 0x42)
    try expectErrno(.exists, what: "a second vDEVICE of a device") { () throws(Errno) in
      try kernel.vdeviceAllocate(iommufd, viommu: viommu, device: device, number: 0x43)
    }
    let queue = try kernel.eventQueueAllocate(iommufd, viommu: viommu, type: queueType, depth: 8)
    try expectErrno(.exists, what: "a second event queue") { () throws(Errno) in
      try kernel.eventQueueAllocate(iommufd, viommu: viommu, type: queueType, depth: 8).id
    }
    func busy(_ id: UInt32, _ what: String) throws {
      try expectErrno(.busy, what: "destroying \(what)") { () throws(Errno) in
        try kernel.iommufdDestroy(iommufd, id: id)
      }
    }
    try busy(queue.id, "an event queue that is open")
    kernel.close(queue.descriptor)
    try busy(viommu, "a vIOMMU with an event queue")
    try kernel.iommufdDestroy(iommufd, id: queue.id)
    try busy(viommu, "a vIOMMU with a vDEVICE")
    try kernel.iommufdDestroy(iommufd, id: named)
    try busy(parent, "a parent with a vIOMMU")
    try kernel.iommufdDestroy(iommufd, id: viommu)
    try kernel.iommufdDestroy(iommufd, id: plain)
    try busy(ioas, "an IOAS with a parent")
    for id in [parent, ioas] { try kernel.iommufdDestroy(iommufd, id: id) }
  }

  /// EOPNOTSUPP, of the vIOMMU before the kernel looks at the parent; that alone is no promise: Linux makes parents on every
  /// SMMUv3 with two stages, but lets a process nest only where its devices cannot go past the caches.
  private static func notOffered(_ raw: RawDevice, _ environment: Environment) throws {
    let (kernel, iommufd, device) = (raw.kernel, raw.space, raw.deviceID)
    try expectErrno(.notSupported, what: "a vIOMMU") { () throws(Errno) in
      try kernel.viommuAllocate(iommufd, type: NestingTypes.smmuVIOMMU, device: device, pageTable: .max)
    }
    // The simulated kernel nests a format of its own.
    if environment.isSimulated { return }
    let ioas = try kernel.ioasAllocate(iommufd)
    if environment.isSMMU {
      let parent = try kernel.hwptAllocate(
        iommufd, flags: HWPTFlags.nestParent, device: device, pageTable: ioas)
      try kernel.iommufdDestroy(iommufd, id: parent)
    } else {
      try expectErrno(.notSupported, what: "a parent") { () throws(Errno) in
        try kernel.hwptAllocate(iommufd, flags: HWPTFlags.nestParent, device: device, pageTable: ioas)
      }
    }
    try kernel.iommufdDestroy(iommufd, id: ioas)
  }
}
