/// The configuration space of a PCI device: 256 bytes, 4096 on PCI Express.
///
/// ```swift
/// let vendor = try config.load(at: 0x00, as: UInt16.self)
/// ```
///
/// Each access is one `pread` or `pwrite` of 8, 16 or 32 bits on VFIO's config region, little-endian. The kernel
/// shows a virtual copy of some registers (BARs, interrupt disable, parts of the capabilities) and ignores writes to
/// what it guards. Throws ``DMAError/Code/invalidArgument`` for an offset that is not aligned or outside,
/// ``DMAError/Code/closed`` after the device was closed, ``DMAError/Code/gone`` when it has gone away.
public final class ConfigSpace: Sendable {
  /// The length in bytes; offsets lie below it.
  public let byteCount: Int
  let handle: DeviceHandle
  private let region: VFIORegionInfo

  /// Opens the config region. Throws ``DMAError/Code/noSuchResource`` when it is not there.
  package init(_ handle: DeviceHandle, region: VFIORegionInfo) throws(DMAError) {
    guard region.byteCount >= 64, region.canRead, let byteCount = Int(exactly: min(region.byteCount, 4096))
    else {
      throw DMAError(
        .noSuchResource, "VFIO_DEVICE_GET_REGION_INFO", byteCount: region.byteCount, device: handle.name,
        detail: "The kernel shows no config space")
    }
    (self.handle, self.region, self.byteCount) = (handle, region, byteCount)
  }

  /// Reads 8 bits at an offset in bytes.
  public func load(at offset: Int, as type: UInt8.Type) throws(DMAError) -> UInt8 { try read(offset) }
  /// Reads 16 bits at an offset in bytes, a multiple of 2.
  public func load(at offset: Int, as type: UInt16.Type) throws(DMAError) -> UInt16 { try read(offset) }
  /// Reads 32 bits at an offset in bytes, a multiple of 4.
  public func load(at offset: Int, as type: UInt32.Type) throws(DMAError) -> UInt32 { try read(offset) }

  /// Writes 8 bits at an offset in bytes.
  public func store(_ value: UInt8, at offset: Int) throws(DMAError) { try write(value, offset) }
  /// Writes 16 bits at an offset in bytes, a multiple of 2.
  public func store(_ value: UInt16, at offset: Int) throws(DMAError) { try write(value, offset) }
  /// Writes 32 bits at an offset in bytes, a multiple of 4.
  public func store(_ value: UInt32, at offset: Int) throws(DMAError) { try write(value, offset) }

  private func read<Word: FixedWidthInteger>(_ offset: Int) throws(DMAError) -> Word {
    try check("pread", offset, MemoryLayout<Word>.size)
    return try handle.load(region, at: offset)
  }

  private func write<Word: FixedWidthInteger>(_ value: Word, _ offset: Int) throws(DMAError) {
    try check("pwrite", offset, MemoryLayout<Word>.size)
    try handle.store(value, region, at: offset)
  }

  private func check(_ operation: String, _ offset: Int, _ width: Int) throws(DMAError) {
    if offset >= 0, offset <= byteCount - width, offset % width == 0 { return }
    throw DMAError(
      .invalidArgument, operation, address: UInt64(bitPattern: Int64(offset)), byteCount: UInt64(width),
      device: handle.name,
      detail: "Config space has \(byteCount) bytes, and an offset is a multiple of the width")
  }
}

// MARK: - The header

extension ConfigSpace {
  /// The vendor's number. Throws ``DMAError/Code/gone`` for 0xffff, which is what a device that has gone away reads as.
  public func vendorID() throws(DMAError) -> UInt16 {
    let vendor = try load(at: 0, as: UInt16.self)
    if vendor == 0xffff { throw gone("read the vendor's number") }
    return vendor
  }

  /// The device's number among its vendor's.
  public func deviceID() throws(DMAError) -> UInt16 { try load(at: 2, as: UInt16.self) }

  /// The bits of the command register that a driver has to do with.
  public struct Command: OptionSet, Hashable, Sendable {
    /// The register's bits.
    public let rawValue: UInt16
    /// Wraps the register's bits.
    public init(rawValue: UInt16) { self.rawValue = rawValue }
    /// The device answers at its I/O port BARs.
    public static let io = Command(rawValue: 1 << 0)
    /// The device answers at its memory BARs.
    public static let memory = Command(rawValue: 1 << 1)
    /// The device may do DMA, and signal MSI and MSI-X, which are DMA.
    public static let busMaster = Command(rawValue: 1 << 2)
    /// The device does not signal INTx.
    public static let interruptDisable = Command(rawValue: 1 << 10)
  }

  /// The command register.
  public func command() throws(DMAError) -> Command {
    Command(rawValue: try load(at: 4, as: UInt16.self))
  }

  /// Sets and clears bits of the command register and leaves the others; writes only when something changes.
  ///
  /// Changes by several threads do not lose each other; those by plain stores do. Throws ``DMAError/Code/gone`` when
  /// the register reads as all ones.
  ///
  /// - Warning: ``Device`` sets ``Command/busMaster`` once the device is attached to a domain, and clears it before it
  ///   is detached. Leave it alone, unless to stop DMA for a while.
  public func updateCommand(set: Command = [], clear: Command = []) throws(DMAError) {
    try handle.exclusively("change the command register") { () throws(DMAError) in
      let old = try command()
      if old.rawValue == 0xffff { throw gone("read the command register") }
      let new = old.subtracting(clear).union(set)
      if new != old { try store(new.rawValue, at: 4) }
    }
  }

  func gone(_ operation: String) -> DMAError {
    DMAError(
      .gone, operation, device: handle.name, detail: "Config space reads as all ones",
      remedy: "Close the device")
  }
}
