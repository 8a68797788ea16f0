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
}

extension KernelState {
  /// A read of a region at `index << 40 | offset`.
  func readRegion(_ descriptor: Int32, byteCount: Int, at position: UInt64) throws(Errno) -> RegionAccess {
    let (device, index, offset) = try region(descriptor, at: position)
    if index == VFIOPCI.config {
      guard offset < UInt64(device.config.byteCount) else { throw .badAddress }
      let count = min(byteCount, device.config.byteCount - Int(offset))
      if device.isGone { return .done([UInt8](repeating: 0xff, count: count)) }
      return .done(device.config.read(Int(offset), count, hasPending: false))
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
      guard offset < UInt64(device.config.byteCount) else { throw .badAddress }
      let count = min(bytes.count, device.config.byteCount - Int(offset))
      if device.isGone { return .done([UInt8](repeating: 0, count: count)) }
      let resets = device.config.write(Int(offset), Array(bytes.prefix(count)))
      return resets ? .reset(device.slot) : .done([UInt8](repeating: 0, count: count))
    }
    let count = try barRange(device, index, offset, bytes.count)
    if device.isGone { return .done([UInt8](repeating: 0, count: count)) }
    return .model(device.slot, bar: Int(index), offset: offset, byteCount: count)
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
