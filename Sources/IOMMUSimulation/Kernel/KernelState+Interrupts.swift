import IOMMU

// Interrupts of VFIO devices. Rules of `drivers/vfio/pci/vfio_pci_intrs.c`.

extension KernelState {
  func vfioInterruptInfo(_ descriptor: Int32, index: UInt32) throws(Errno) -> VFIOInterruptInfo {
    let device = try usableDevice(descriptor)
    guard index < 5, index != VFIOPCI.error || device.identity.isExpress else { throw .invalidArgument }
    let count = device.interrupts.count(index)
    // MSI-X can be resized while it is in use; MSI and the events cannot; INTx masks itself.
    let flags: UInt32 = index == VFIOPCI.intx ? 7 : index == VFIOPCI.msix && count > 0 ? 1 : 9
    return VFIOInterruptInfo(flags: flags, count: count)
  }

  private func checkVectors(_ device: DeviceState, _ index: UInt32, _ start: UInt32, _ count: UInt32)
    throws(Errno)
  {
    guard index < 5, count < UInt32.max - start else { throw .invalidArgument }
    let available = device.interrupts.count(index)
    guard start < available, start + count <= available else { throw .invalidArgument }
  }

  func vfioSetInterrupts(
    _ descriptor: Int32, index: UInt32, start: UInt32, events: [Int32]
  ) throws(Errno) {
    let device = try usableDevice(descriptor)
    try checkVectors(device, index, start, UInt32(events.count))
    try device.interrupts.set(index, start: Int(start), events: events)
  }

  func vfioInterruptAction(
    _ descriptor: Int32, index: UInt32, start: UInt32, count: UInt32, _ action: VFIOInterruptAction
  ) throws(Errno) {
    let device = try usableDevice(descriptor)
    try checkVectors(device, index, start, count)
    try device.interrupts.act(index, start: Int(start), count: Int(count), action)
  }
}

// MARK: - The device's side

extension KernelState {
  /// A device that may speak on the bus: there, and allowed to by its command register.
  func busMaster(_ address: PCIAddress) -> Result<DeviceState, DeviceBus.Failure> {
    guard let device = devices[address], !device.isGone else { return .failure(.gone) }
    guard device.config.isBusMaster else { return .failure(.notBusMaster) }
    return .success(device)
  }

  /// A message interrupt is a write on the bus, so it takes the bus-master bit; and under a stage 1 of the process's a
  /// translation that leads to the doorbell. One that leads elsewhere writes there.
  func deviceInterrupts(_ address: PCIAddress, _ vector: Int) {
    guard case .success(let device) = busMaster(address) else { return }
    guard iommu?.isNested(address) == true else { return device.interrupts.message(vector) }
    guard device.interrupts.usesMessages,
      case .success(let segments) = translate(address, Doorbell.page + Doorbell.offset, byteCount: 4, .write),
      let place = segments.first?.host
    else { return }
    if Doorbell.contains(place) { return device.interrupts.message(vector) }
    let bytes = (0..<4).map { UInt8(truncatingIfNeeded: vector >> ($0 * 8)) }
    HostMemory.write(bytes[...], to: memory.deviceSide(of: place))
  }

  func deviceSetsPin(_ address: PCIAddress, _ asserted: Bool) {
    guard let device = devices[address], !device.isGone else { return }
    device.interrupts.setPin(asserted, isDisabled: device.config.isPinDisabled)
  }

  func deviceUsesMessages(_ address: PCIAddress) -> Bool {
    devices[address]?.interrupts.usesMessages ?? false
  }
}
