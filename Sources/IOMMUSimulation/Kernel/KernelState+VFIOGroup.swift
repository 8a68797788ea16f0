import IOMMU

// VFIO groups and containers. Rules of `drivers/vfio/{group,container}.c`.

extension KernelState {
  func groupFile(_ descriptor: Int32) throws(Errno) -> GroupFile {
    guard let file = descriptors.files[descriptor] else { throw .badDescriptor }
    guard case .group(let group) = file else { throw .notTypewriter }
    return group
  }

  func container(_ descriptor: Int32) throws(Errno) -> Container {
    guard let file = descriptors.files[descriptor] else { throw .badDescriptor }
    guard case .container(let container) = file else { throw .notTypewriter }
    return container
  }

  /// Bit 0 viable: in a container, or nobody has claimed the group's DMA. Bit 1: in a container.
  func vfioGroupStatus(_ descriptor: Int32) throws(Errno) -> UInt32 {
    let group = try groupFile(descriptor).group
    if group.container != nil { return 3 }
    return group.ownerCount == 0 && group.hostDriven.isEmpty ? 1 : 0
  }

  func vfioSetContainer(group descriptor: Int32, container containerDescriptor: Int32) throws(Errno) {
    let file = try groupFile(descriptor)
    let group = file.group
    guard let target = descriptors.files[containerDescriptor] else {
      guard !DescriptorTable.isSimulated(containerDescriptor), HostSystem.isOpen(containerDescriptor) else {
        throw .badDescriptor
      }
      throw Errno(rawValue: 77)  // EBADFD
    }
    guard group.container == nil else { throw .invalidArgument }
    // An iommufd in a container's place (compatibility mode) is not simulated: answered as any other file.
    guard case .container(let container) = target else { throw Errno(rawValue: 77) }
    guard container.groups.allSatisfy({ groups[$0]!.isNoIOMMU == group.isNoIOMMU }) else {
      throw .notPermitted
    }
    if !group.isNoIOMMU { try claim(group, for: .group) }
    if let backend = container.backend {
      do throws(Errno) {
        try attach(group, to: backend)
      } catch {
        disclaim(group)
        throw error
      }
    }
    container.groups.append(group.number)
    group.container = container
  }

  /// EINVAL without a container, EBUSY while a device of the group is open.
  func vfioUnsetContainer(group descriptor: Int32) throws(Errno) {
    let file = try groupFile(descriptor)
    guard file.group.container != nil else { throw .invalidArgument }
    guard file.references == 1 else { throw .busy }
    leaveContainer(file.group)
  }

  /// The last group that leaves takes the back end and all its maps with it.
  func leaveContainer(_ group: GroupState) {
    guard let container = group.container else { return }
    if let backend = container.backend { detach(group, from: backend) }
    container.groups.removeAll { $0 == group.number }
    if container.groups.isEmpty { container.backend = nil }
    if !group.isNoIOMMU { disclaim(group) }
    group.container = nil
  }

  /// The name is an address, then ` vf_token=<uuid>` for a virtual function.
  func vfioGroupDevice(
    _ descriptor: Int32, name: String
  ) throws(Errno) -> (descriptor: Int32, resets: DeviceSlot?) {
    let file = try groupFile(descriptor)
    let group = file.group
    let members = group.members.filter { $0.driver == "vfio-pci" && !$0.isGone }
    guard let device = members.first(where: { matches($0, name) }) else { throw .noDevice }
    try checkToken(try token(in: name.dropFirst(device.address.description.count)), of: device)
    guard let container = group.container else { throw .invalidArgument }
    guard container.backend != nil else { throw .invalidArgument }
    file.references += 1
    let slot = opened(device)
    return (descriptors.add(.device(DeviceFile(device, groupFile: file))), slot)
  }

  private func matches(_ device: DeviceState, _ name: String) -> Bool {
    let address = device.address.description
    return name == address || name.hasPrefix(address + " ")
  }

  private func token(in options: Substring) throws(Errno) -> [UInt8]? {
    var token: [UInt8]?
    for option in options.split(separator: " ") {
      guard token == nil, option.hasPrefix("vf_token=") else { throw .invalidArgument }
      guard let bytes = UUIDBytes.parse(String(option.dropFirst(9))) else { throw .invalidArgument }
      token = bytes
    }
    return token
  }

  /// Lets go of a group's file; open devices keep it.
  func release(_ file: GroupFile) {
    file.references -= 1
    guard file.references == 0 else { return }
    leaveContainer(file.group)
    file.group.openFile = nil
  }
}

// MARK: - Container

extension KernelState {
  /// VFIO's extension numbers that type1 and the no-IOMMU back end answer.
  private enum Extension {
    static let type1: UInt32 = 1, type1v2: UInt32 = 3, coherent: UInt32 = 4, noIOMMU: UInt32 = 8
    static let unmapAll: UInt32 = 9, updateAddress: UInt32 = 10
  }

  func vfioCheckExtension(_ descriptor: Int32, _ id: UInt32) throws(Errno) -> Int32 {
    let container = try container(descriptor)
    switch id {
    case Extension.type1, Extension.type1v2, Extension.unmapAll:
      let isBare = container.groups.contains { groups[$0]!.isNoIOMMU }
      return isBare ? 0 : 1
    case Extension.updateAddress, Extension.coherent: return container.backend == nil ? 0 : 1
    case Extension.noIOMMU: return machine.noIOMMUMode && container.backend == nil ? 1 : 0
    default: return 0
    }
  }

  /// EINVAL before a group is in, or a second time; ENODEV for a back end that is not there.
  func vfioSetIOMMU(_ descriptor: Int32, type: UInt32) throws(Errno) {
    let container = try container(descriptor)
    guard !container.groups.isEmpty, container.backend == nil else { throw .invalidArgument }
    let isBare = groups[container.groups[0]]!.isNoIOMMU
    switch type {
    case Extension.type1, Extension.type1v2:
      guard !isBare else { throw .noDevice }
    case Extension.noIOMMU:
      guard isBare else { throw .noDevice }
    default: throw .noDevice
    }
    let backend = Type1Backend(
      isVersion2: type != Extension.type1, isNoIOMMU: isBare, limit: machine.mappingLimit)
    var done: [GroupState] = []
    do throws(Errno) {
      for number in container.groups {
        try attach(groups[number]!, to: backend)
        done.append(groups[number]!)
      }
    } catch {
      for group in done { detach(group, from: backend) }
      throw error
    }
    container.backend = backend
  }
}
