import IOMMU

// VFIO devices. Rules of `drivers/vfio/{vfio_main,device_cdev}.c` and `drivers/vfio/pci`.

extension KernelState {
  func deviceFile(_ descriptor: Int32) throws(Errno) -> DeviceFile {
    guard let file = descriptors.files[descriptor] else { throw .badDescriptor }
    guard case .device(let device) = file else { throw .notTypewriter }
    return device
  }

  /// A device that answers ioctls: bound, and still there.
  func usableDevice(_ descriptor: Int32) throws(Errno) -> DeviceState {
    let file = try deviceFile(descriptor)
    guard file.isUsable else { throw .invalidArgument }
    guard !file.device.isGone else { throw .noDevice }
    return file.device
  }

  func vfioDeviceInfo(_ descriptor: Int32) throws(Errno) -> VFIODeviceInfo {
    let device = try usableDevice(descriptor)
    return VFIODeviceInfo(flags: 2 | (device.identity.canReset ? 1 : 0), regionCount: 9, interruptCount: 5)
  }

  func vfioRegionInfo(_ descriptor: Int32, index: UInt32) throws(Errno) -> VFIORegionInfo {
    let device = try usableDevice(descriptor)
    // 8 is VGA, which only display devices have.
    guard index < 8 else { throw .invalidArgument }
    let byteCount: UInt64 =
      switch index {
      case 0..<6: device.barByteCount(Int(index))
      case VFIOPCI.config: UInt64(device.config.byteCount)
      default: 0
      }
    // No MMAP flag: each access is a call, so that the model sees it.
    return VFIORegionInfo(
      flags: byteCount == 0 ? 0 : 3, index: index, byteCount: byteCount, offset: UInt64(index) << 40)
  }

  /// The id, and the slot of a device whose reset belongs to its opening.
  func vfioBind(
    _ descriptor: Int32, iommufd: Int32, token: [UInt8]?
  ) throws(Errno) -> (id: UInt32, resets: DeviceSlot?) {
    let file = try deviceFile(descriptor)
    let device = file.device
    guard iommufd >= 0 else { throw .invalidArgument }
    guard file.groupFile == nil else { throw .invalidArgument }
    if let group = device.group {
      guard group.openFile == nil else { throw .busy }
    }
    guard !file.isUsable else { throw .invalidArgument }
    try checkToken(token, of: device)
    let context = try boundContext(iommufd)
    guard device.openCount == 0 else { throw .invalidArgument }
    guard !device.isGone else { throw .noDevice }
    let id = try bind(device, to: context)
    file.binding = (context, id)
    file.isUsable = true
    device.group!.boundNodeCount += 1
    return (id, opened(device))
  }

  /// What a descriptor given to BIND must be: EBADF for none, EBADFD for another kind of file.
  private func boundContext(_ descriptor: Int32) throws(Errno) -> IOMMUFDContext {
    if case .iommufd(let context)? = descriptors.files[descriptor] { return context }
    guard !DescriptorTable.isSimulated(descriptor) else {
      throw descriptors.files[descriptor] == nil ? .badDescriptor : Errno(rawValue: 77)
    }
    throw HostSystem.isOpen(descriptor) ? Errno(rawValue: 77) : .badDescriptor
  }

  /// A virtual function's token: EACCES without it or with another; a physical function takes none.
  func checkToken(_ token: [UInt8]?, of device: DeviceState) throws(Errno) {
    guard let expected = device.spec.token else {
      guard token == nil else { throw .invalidArgument }
      return
    }
    guard let token, token == UUIDBytes.parse(expected) else { throw .accessDenied }
  }

  func vfioAttach(_ descriptor: Int32, pageTable: UInt32) throws(Errno) -> UInt32 {
    let (device, context) = try boundDevice(descriptor)
    return try attach(device, to: pageTable, in: context)
  }

  func vfioDetach(_ descriptor: Int32) throws(Errno) {
    let (device, context) = try boundDevice(descriptor)
    detach(device, in: context)
  }

  /// Attach and detach exist for a device's own node only.
  private func boundDevice(_ descriptor: Int32) throws(Errno) -> (DeviceState, IOMMUFDContext) {
    let device = try usableDevice(descriptor)
    guard let binding = try deviceFile(descriptor).binding else { throw .notTypewriter }
    return (device, binding.context)
  }

  /// The first open of a device: enabled, its bus-master bit clear, and reset where it can be.
  func opened(_ device: DeviceState) -> DeviceSlot? {
    device.openCount += 1
    guard device.openCount == 1 else { return nil }
    device.config.enable()
    return device.identity.canReset ? device.slot : nil
  }

  /// The last close: interrupts off, bus master off, and a reset where the device can.
  func closed(_ device: DeviceState) -> DeviceSlot? {
    device.openCount -= 1
    guard device.openCount == 0 else { return nil }
    device.interrupts.disableAll()
    device.config.disable()
    return device.identity.canReset && !device.isGone ? device.slot : nil
  }

  /// Checks a reset and resets config space; the caller resets the model.
  func vfioReset(_ descriptor: Int32) throws(Errno) -> DeviceSlot {
    let device = try usableDevice(descriptor)
    guard device.identity.canReset else { throw .invalidArgument }
    device.config.resetKeepingCommand()
    return device.slot
  }
}

extension DeviceState {
  func barByteCount(_ index: Int) -> UInt64 {
    index < identity.bars.count ? identity.bars[index].byteCount : 0
  }
}

/// The 16 bytes of a UUID's text.
enum UUIDBytes {
  static func parse(_ text: String) -> [UInt8]? {
    let digits = text.filter { $0 != "-" }
    guard text.count == 36, digits.count == 32 else { return nil }
    var bytes: [UInt8] = []
    var rest = Substring(digits)
    while !rest.isEmpty {
      guard let byte = UInt8(rest.prefix(2), radix: 16) else { return nil }
      bytes.append(byte)
      rest = rest.dropFirst(2)
    }
    return bytes
  }
}
