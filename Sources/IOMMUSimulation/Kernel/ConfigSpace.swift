/// The config space of a device as VFIO shows it: 256 bytes, or 4096 with PCI Express.
struct ConfigSpace {
  private var bytes: [UInt8]
  private var writable: [UInt8]
  private let initial: [UInt8]
  private let expressOffset: Int?
  private let canReset: Bool

  private enum Offset {
    static let command = 4, revision = 8, header = 0x0e, bars = 0x10, subsystem = 0x2c
    static let line = 0x3c, pin = 0x3d
    static let msi = 0x50, msix = 0x70, express = 0x80
  }
  private enum Command {
    static let memory: UInt8 = 2, busMaster: UInt8 = 4, pinDisable: UInt8 = 4
  }

  /// A device's config space; `bases` are where the host put its BARs.
  init(_ identity: DeviceIdentity, bases: [UInt64]) {
    var builder = ConfigBuilder(byteCount: identity.isExpress ? 4096 : 256)
    builder.set(0, identity.vendor)
    builder.set(2, identity.device)
    // I/O, memory, bus master, SERR; INTx disable.
    builder.allow(Offset.command, UInt16(0x0507))
    builder.set(Offset.revision, UInt32(identity.revision) | identity.classCode << 8)
    builder.allow(0x0c, UInt8(0xff))
    builder.set(Offset.header, UInt8(identity.isBridge ? 1 : 0))
    builder.set(Offset.subsystem, identity.subsystemVendor)
    builder.set(Offset.subsystem + 2, identity.subsystemDevice)
    builder.allow(Offset.line, UInt8(0xff))
    builder.set(Offset.pin, UInt8(identity.hasINTx ? 1 : 0))
    for (index, bar) in identity.bars.enumerated() where bar.byteCount > 0 {
      let offset = Offset.bars + 4 * index
      builder.set(offset, UInt32(truncatingIfNeeded: bases[index]) | (bar.is64Bit ? 4 : 0))
      if bar.is64Bit { builder.set(offset + 4, UInt32(bases[index] >> 32)) }
      builder.allow(offset, UInt32(truncatingIfNeeded: ~(bar.byteCount - 1)) & ~0xf)
      if bar.is64Bit { builder.allow(offset + 4, UInt32(truncatingIfNeeded: ~(bar.byteCount - 1) >> 32)) }
    }
    builder.addCapabilities(identity, msi: Offset.msi, msix: Offset.msix, express: Offset.express)
    (bytes, writable, initial) = (builder.bytes, builder.writable, builder.bytes)
    expressOffset = identity.isExpress ? Offset.express : nil
    canReset = identity.canReset
  }

  var byteCount: Int { bytes.count }
  var isMemoryEnabled: Bool { bytes[Offset.command] & Command.memory != 0 }
  var isBusMaster: Bool { bytes[Offset.command] & Command.busMaster != 0 }
  var isPinDisabled: Bool { bytes[Offset.command + 1] & Command.pinDisable != 0 }
  /// All of it, as sysfs shows it.
  var image: [UInt8] { bytes }

  func read(_ range: Range<Int>) -> [UInt8] { Array(bytes[range]) }

  /// Writes what may be written; whether that asks for a function-level reset.
  mutating func write(_ offset: Int, _ data: [UInt8]) -> Bool {
    var resets = false
    for (index, byte) in data.enumerated() {
      let at = offset + index
      bytes[at] = bytes[at] & ~writable[at] | byte & writable[at]
      // Device Control, bit 15: Initiate Function Level Reset. It reads as zero.
      if let expressOffset, canReset, at == expressOffset + 9, byte & 0x80 != 0 { resets = true }
    }
    if resets { resetKeepingCommand() }
    return resets
  }

  /// Sets Transactions Pending of Device Status.
  mutating func setPending(_ isPending: Bool) {
    guard let expressOffset else { return }
    bytes[expressOffset + 10] = bytes[expressOffset + 10] & ~0x20 | (isPending ? 0x20 : 0)
  }

  /// VFIO's state at open: memory on, bus master off.
  mutating func enable() {
    bytes = initial
    bytes[Offset.command] = Command.memory
  }

  /// The state after the last close.
  mutating func disable() { bytes = initial }

  /// A reset that the kernel makes saves config space and restores it.
  mutating func resetKeepingCommand() { setPending(false) }
}
