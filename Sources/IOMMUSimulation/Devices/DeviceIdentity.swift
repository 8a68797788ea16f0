/// What the config space of a simulated device says.
public struct DeviceIdentity: Hashable, Sendable {
  /// A memory BAR.
  public struct BAR: Hashable, Sendable {
    /// Length in bytes: a power of two of at least 16, or 0 for a BAR that is not there.
    public var byteCount: UInt64
    /// Whether the BAR takes two slots and can lie above 4 GiB.
    public var is64Bit: Bool

    /// A memory BAR of a length in bytes.
    public static func memory(_ byteCount: UInt64, is64Bit: Bool = false) -> BAR {
      BAR(byteCount: byteCount, is64Bit: is64Bit)
    }
    /// No BAR in this slot.
    public static var none: BAR { BAR(byteCount: 0, is64Bit: false) }
  }

  /// The vendor's number, 16 bits.
  public var vendor: UInt16
  /// The vendor's number for the device, 16 bits.
  public var device: UInt16
  /// Subsystem numbers; those of the device itself when left out.
  public var subsystemVendor: UInt16, subsystemDevice: UInt16
  /// Base class, subclass and programming interface, 24 bits; `0x010802` is an NVMe controller.
  public var classCode: UInt32
  /// Revision, 8 bits.
  public var revision: UInt8
  /// The BARs from 0 on, at most six; a 64-bit one is followed by ``BAR/none``.
  public var bars: [BAR]
  /// Whether the device has an INTx pin.
  public var hasINTx: Bool
  /// Number of MSI messages: 0, or a power of two up to 32.
  public var msiCount: Int
  /// Number of MSI-X messages: 0…2048.
  public var msixCount: Int
  /// The BAR and the byte offset of the MSI-X table. VFIO keeps the table to itself: a model never sees accesses to it.
  public var msixTable: (bar: Int, offset: UInt32) { (msixBAR, msixOffset) }
  private var msixBAR = 0
  private var msixOffset: UInt32 = 0
  private var hasTableBAR = false
  /// Whether the device has a PCI Express capability, and so 4096 bytes of config space.
  public var isExpress: Bool
  /// Whether the device can reset itself (Function Level Reset); implies PCI Express.
  public var canReset: Bool
  /// How many address bits the device drives, 1…64. Bits above are dropped silently, as defective or old devices do.
  public var addressBits: Int

  /// Makes an identity; everything but the numbers may be left out.
  ///
  /// A device with MSI-X gets one more BAR for the table unless `msixTable` says where in its own BARs it is.
  /// Traps on what no PCI device can have: more than six BARs, 65 address bits.
  public init(
    vendor: UInt16, device: UInt16, classCode: UInt32 = 0xff0000, revision: UInt8 = 0, bars: [BAR] = [],
    hasINTx: Bool = true, msiCount: Int = 1, msixCount: Int = 0, msixTable: (bar: Int, offset: UInt32)? = nil,
    isExpress: Bool = false, canReset: Bool = false, addressBits: Int = 64
  ) {
    (self.vendor, self.device, self.classCode, self.revision) = (vendor, device, classCode, revision)
    (subsystemVendor, subsystemDevice) = (vendor, device)
    (self.bars, self.hasINTx, self.msiCount, self.msixCount) = (bars, hasINTx, msiCount, msixCount)
    (self.isExpress, self.canReset, self.addressBits) = (isExpress || canReset, canReset, addressBits)
    if let msixTable {
      (msixBAR, msixOffset) = msixTable
    } else if msixCount > 0 {
      (msixBAR, hasTableBAR) = (bars.count, true)
      self.bars.append(.memory(msixCount <= 256 ? 8192 : 65536))
    }
    precondition(self.bars.count <= 6, "a PCI device has at most six BARs")
    precondition((1...64).contains(addressBits), "a device drives 1…64 address bits")
    precondition(
      [0, 1, 2, 4, 8, 16, 32].contains(msiCount), "MSI has a power of two of messages, at most 32")
    precondition((0...2048).contains(msixCount), "MSI-X has at most 2048 vectors")
  }

  /// Whether the device is a PCI-to-PCI bridge, by its class.
  var isBridge: Bool { classCode >> 8 == 0x0604 }

  /// The offsets of the MSI-X table's BAR that VFIO or nobody answers for: the table, and all of a BAR of its own.
  var tableRange: Range<UInt64> {
    let first = UInt64(msixOffset)
    return hasTableBAR ? 0..<bars[msixBAR].byteCount : first..<first + UInt64(msixCount) * 16
  }
}
