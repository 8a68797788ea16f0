/// Why an operation of this library failed, from opening a device to the last unmap.
///
/// One complete value for every error: what was tried (``operation``), what the kernel answered (``errno``),
/// where (``address``, ``byteCount``), on which device, and what to do about it (``remedy``).
public struct DMAError: Error, Hashable, Sendable, CustomStringConvertible {
  /// What kind of error it is; stable, for `catch` and tests.
  public var code: Code
  /// The call of this library, or the kernel's, that failed, such as `map` or `IOMMU_IOAS_MAP`.
  public var operation: String
  /// The kernel's answer, nil when the library refused by itself.
  public var errno: Errno?
  /// The address it was about: an IOVA, or a host address where ``code`` is about one; nil when none.
  public var address: UInt64?
  /// Length in bytes of what it was about, nil when none.
  public var byteCount: UInt64?
  /// The PCI address, group or node it was about, nil when none.
  public var device: String?
  /// One sentence on what happened, beyond the code: the other range of an overlap, the limit and the need.
  public var detail: String?
  /// One sentence on what to do.
  public var remedy: String?

  /// Makes an error; everything but the code and the operation may be left out.
  public init(
    _ code: Code, _ operation: String, errno: Errno? = nil, address: UInt64? = nil, byteCount: UInt64? = nil,
    device: String? = nil, detail: String? = nil, remedy: String? = nil
  ) {
    (self.code, self.operation, self.errno) = (code, operation, errno)
    (self.address, self.byteCount, self.device) = (address, byteCount, device)
    (self.detail, self.remedy) = (detail, remedy)
  }

  /// The whole error in one or two sentences.
  public var description: String {
    var text = "\(operation): \(code.name)"
    if let device { text += ", device \(device)" }
    if let address { text += ", at 0x\(String(address, radix: 16))" }
    if let byteCount { text += ", \(byteCount) bytes" }
    if let errno { text += ": \(errno)" }
    if let detail { text += ". \(detail)" }
    if let remedy { text += ". \(remedy)" }
    return text
  }

  /// A kind of error.
  ///
  /// A structure and not an enumeration, so that a new kind does not break a `switch` in a driver.
  public struct Code: Hashable, Sendable, CustomStringConvertible {
    /// The name, as in ``DMAError/description`` and in iommuctl's JSON.
    public let name: String
    private init(_ name: String) { self.name = name }
    /// The same as ``name``.
    public var description: String { name }

    // Opening

    /// No device has this address, or the text is no PCI address.
    public static let noSuchDevice = Code("no-such-device")
    /// The device is bound to another driver than vfio-pci, or to none.
    public static let notBound = Code("not-bound")
    /// The process may not open a node or do this.
    public static let permission = Code("permission")
    /// The kernel has no IOMMU in use for this device.
    public static let noIOMMU = Code("no-iommu")
    /// The kernel lacks an interface that was asked for.
    public static let notSupported = Code("not-supported")
    /// Another device of the group is bound to a host driver.
    public static let groupNotViable = Code("group-not-viable")
    /// Interrupts of the device are not isolated by the IOMMU.
    public static let unsafeInterrupts = Code("unsafe-interrupts")
    /// The IOMMU refuses the device: not coherent, or firmware asked for direct-mapped regions.
    public static let incompatibleDevice = Code("incompatible-device")
    /// The device is in VFIO's no-IOMMU mode, which this library refuses.
    public static let noIOMMUMode = Code("no-iommu-mode")
    /// A virtual function's token is missing or wrong.
    public static let virtualFunctionToken = Code("vf-token")
    /// Someone else has the device, its group or its node open.
    public static let busy = Code("busy")
    /// sysfs or procfs says something that makes no sense, or lacks what must be there.
    public static let corruptTree = Code("corrupt-tree")
    /// There is no directory where a captured tree was named.
    public static let noSuchTree = Code("no-such-tree")

    // Mapping

    /// Nothing to map: zero bytes.
    public static let empty = Code("empty")
    /// An address or a length is not a multiple of the granule.
    public static let unaligned = Code("unaligned")
    /// Address plus length leaves 64 bits.
    public static let overflow = Code("overflow")
    /// The range is not in the IOMMU's aperture.
    public static let outsideAperture = Code("outside-aperture")
    /// The range touches a reserved region.
    public static let reserved = Code("reserved")
    /// The range is above the device's mask, or the mask leaves nothing.
    public static let outsideMask = Code("outside-mask")
    /// The range is in use: both ranges are in the detail.
    public static let overlap = Code("overlap")
    /// No free range of this size and alignment is left.
    public static let noSpace = Code("no-space")
    /// Over the limit of lockable memory.
    public static let memoryLock = Code("memlock")
    /// The kernel's limit of mappings is reached (type1: 65,535).
    public static let tooManyMappings = Code("too-many-mappings")
    /// A list takes more segments than the device does; see ``DMAConstraints``.
    public static let tooManySegments = Code("too-many-segments")
    /// Nothing is mapped there.
    public static let notMapped = Code("not-mapped")
    /// The memory is not of this process, or cannot be pinned as asked.
    public static let badMemory = Code("bad-memory")
    /// The memory is not registered, and has to be: ``RegistrationPolicy/requireRegistered``.
    public static let notRegistered = Code("not-registered")
    /// Out of memory.
    public static let outOfMemory = Code("out-of-memory")
    /// The kernel did something else than it was asked: byte counts differ.
    public static let mismatch = Code("mismatch")

    // Life

    /// The device or the domain is closed.
    public static let closed = Code("closed")
    /// The device has gone away.
    public static let gone = Code("gone")
    /// The process is a fork of the one that opened the device.
    public static let forked = Code("forked")
    /// Time is up.
    public static let timedOut = Code("timed-out")
    /// The device cannot do this: no such BAR, interrupt or reset.
    public static let noSuchResource = Code("no-such-resource")
    /// An argument makes no sense.
    public static let invalidArgument = Code("invalid-argument")
    /// The kernel answered an error that has no better name here; see ``DMAError/errno``.
    public static let system = Code("system")
  }
}
