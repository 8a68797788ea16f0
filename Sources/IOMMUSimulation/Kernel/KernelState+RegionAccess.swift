import IOMMU

// Reads and writes of a device's regions.

/// What an access to a region comes to, once the kernel's lock is let go.
enum RegionAccess {
  /// Done: the bytes read, or nothing for a write.
  case done([UInt8])
  /// The model does it.
  case model(DeviceSlot, bar: Int, offset: UInt64, byteCount: Int)
  /// Config space was written so that the device resets itself.
  case reset(DeviceSlot)
  /// Config space of a device whose model says whether transactions are pending.
  case config(DeviceSlot, offset: Int, byteCount: Int)
}

extension KernelState {
  /// A read of a region at `index << 40 | offset`.
  func readRegion(_ descriptor: Int32, byteCount: Int, at position: UInt64) throws(Errno) -> RegionAccess {
    let (device, index, offset) = try region(descriptor, at: position)
    if index == VFIOPCI.config {
      let range = try configRange(device, offset, byteCount)
      if device.isGone { return .done([UInt8](repeating: 0xff, count: byteCount)) }
      guard device.identity.isExpress else { return .done(device.config.read(range)) }
      return .config(device.slot, offset: range.lowerBound, byteCount: byteCount)
    }
    let count = try barRange(device, index, offset, byteCount)
    // A device that is gone answers with all ones, as the bus does.
    if device.isGone { return .done([UInt8](repeating: 0xff, count: count)) }
    return .model(device.slot, bar: Int(index), offset: offset, byteCount: count)
  }

  /// A write of a region at `index << 40 | offset`.
  func writeRegion(_ descriptor: Int32, _ bytes: [UInt8], at position: UInt64) throws(Errno) -> RegionAccess {
    let (device, index, offset) = try region(descriptor, at: position)
    if index == VFIOPCI.config {
      let range = try configRange(device, offset, bytes.count)
      if device.isGone { return .done(bytes) }
      return device.config.write(range.lowerBound, bytes) ? .reset(device.slot) : .done(bytes)
    }
    let count = try barRange(device, index, offset, bytes.count)
    if device.isGone { return .done(Array(bytes.prefix(count))) }
    return .model(device.slot, bar: Int(index), offset: offset, byteCount: count)
  }

  /// Config space once the model was asked about pending transactions.
  func readConfig(_ descriptor: Int32, _ range: Range<Int>, hasPending: Bool) throws(Errno) -> [UInt8] {
    let device = try deviceFile(descriptor).device
    device.config.setPending(hasPending)
    return device.config.read(range)
  }

  /// An access to config space lies in it as a whole, or is EFAULT.
  private func configRange(
    _ device: DeviceState, _ offset: UInt64, _ byteCount: Int
  ) throws(Errno) -> Range<Int> {
    let length = UInt64(device.config.byteCount)
    guard offset < length, UInt64(byteCount) <= length - offset else { throw .badAddress }
    return Int(offset)..<Int(offset) + byteCount
  }

  private func region(
    _ descriptor: Int32, at position: UInt64
  ) throws(Errno) -> (DeviceState, index: UInt32, offset: UInt64) {
    let file = try deviceFile(descriptor)
    guard file.isUsable else { throw .invalidArgument }
    let index = UInt32(truncatingIfNeeded: position >> 40)
    guard index < 9 else { throw .invalidArgument }
    return (file.device, index, position & ((1 << 40) - 1))
  }

  /// Bytes of an access that lie in a BAR: EINVAL outside or where there is none, EIO while memory is disabled.
  private func barRange(
    _ device: DeviceState, _ index: UInt32, _ offset: UInt64, _ byteCount: Int
  ) throws(Errno) -> Int {
    let length = index < 6 ? device.barByteCount(Int(index)) : 0
    guard offset < length else { throw .invalidArgument }
    guard device.isGone || device.config.isMemoryEnabled else { throw .inputOutput }
    return min(byteCount, Int(clamping: length - offset))
  }
}
