public import IOMMU
public import IOMMUSimulation

/// Where cases run: a machine, one of its interfaces, and its devices.
public struct Environment: Sendable {
  /// The machine.
  public let host: Host
  /// The interface that this row is about.
  public let interface: Interface
  /// Who writes the page tables of the devices that the library opens.
  public let translation: TranslationChoice
  /// The machine's name, as the guest runner has it.
  public let machine: String
  /// The window into a simulated machine, nil for a real one.
  public let simulated: SimulatedHost?
  /// Where the devices are.
  public let devices: Devices
  /// Debug mode for the devices that cases open; nil for none.
  public var debug: DebugOptions?
  /// How long and from which seed random programs run, where that was said.
  public var steps: Int?, seed: UInt64?
  /// The domains of the devices that cases have open, for what only they know of faults.
  let domains = OpenDomains()
  /// Prints a line between those of the cases.
  public var say: @Sendable (String) -> Void = { _ in }

  /// The devices' addresses: those of `Tests/VirtualHardware/runner/machines.py`.
  public struct Devices: Sendable {
    /// edu devices that drive 32 address bits.
    public var edu = "0000:00:02.0", secondEdu = "0000:00:03.0"
    /// An edu device that drives 28.
    public var narrowEdu = "0000:00:04.0"
    /// More edu devices, each in a group of its own, where there are any.
    public var spareEdus: [String] = []
    /// An NVMe controller with a namespace of 64 MiB: MSI-X, function-level reset.
    public var nvme = "0000:00:05.0"
    /// An igb network controller, nil where there is none.
    public var igb: String? = "0000:01:00.0"
    /// Devices that share a group: two edu and, last, one with a driver of the host's.
    public var sharedGroup: [String] = []
    /// Makes the usual addresses.
    public init() {}
  }

  /// An environment on a running machine.
  public init(
    host: Host, interface: Interface, translation: TranslationChoice = .kernel, machine: String,
    simulated: SimulatedHost? = nil, devices: Devices
  ) {
    (self.host, self.interface, self.translation, self.machine) = (host, interface, translation, machine)
    (self.simulated, self.devices) = (simulated, devices)
  }

  /// Whether the machine exists only in this process.
  public var isSimulated: Bool { simulated != nil }

  package var kernel: any Kernel { host.kernel }

  /// Whether QEMU's virtio-iommu translates, which has no caching and reports fewer faults.
  var isVirtio: Bool { machine == "virtio" }
  /// Whether an Arm SMMU translates.
  var isSMMU: Bool { machine.hasPrefix("smmuv3") }
  /// Whether the kernel lets this process own stage-1 tables of an SMMUv3.
  var nestsOnSMMU: Bool { machine == "smmuv3-nested" }
  /// The same of a VT-d, which no emulator allows.
  var nestsOnVTd: Bool { machine == "vtd-nested" }

  /// Where faults of stage 1, or of the kernel's tables, are told.
  var faultSource: Fault.Source { translation == .process && nestsOnSMMU ? .eventQueue : .kernelLog }

  /// Whether the machine was booted without interrupt remapping; then nothing but that error is to be seen on it.
  var lacksInterruptRemapping: Bool { machine.hasSuffix("-no-remapping") }

  /// The same machine asked through another kernel, such as one that fails on purpose.
  func asking(_ kernel: any Kernel) -> Environment {
    var copy = Environment(
      host: Host(kernel: kernel), interface: interface, translation: translation, machine: machine,
      simulated: simulated, devices: devices)
    copy.say = say
    (copy.debug, copy.steps, copy.seed) = (debug, steps, seed)
    return copy
  }

  /// How many system calls are right: tables of the process take fewer than the kernel's.
  func calls(_ kernel: UInt64, process: UInt64) -> UInt64 { translation == .process ? process : kernel }

  /// Opens a device through this row's interface.
  func open(_ address: String, sharing domain: DMADomain? = nil) throws(DMAError) -> Device {
    let device = try Device(
      address, on: host, interface: interface, translation: translation, sharing: domain,
      debug: domain == nil ? debug : nil)
    domains.note(device)
    return device
  }

  /// What sysfs says of a device.
  func details(_ address: String) throws -> PCIDevice {
    guard let parsed = PCIAddress(address) else { throw Failure("\(address) is no PCI address") }
    return try host.device(parsed, named: false)
  }

  /// Puts a number into QEMU's trace: a write to the host bridge's Interrupt Line, which nothing uses.
  func mark(_ number: UInt8) throws {
    guard !isSimulated else { return }
    let file = try kernel.open("/sys/bus/pci/devices/0000:00:00.0/config")
    defer { kernel.close(file) }
    let done = try unsafe withUnsafeBytes(of: number) { byte throws(Errno) in
      try unsafe kernel.pwrite(file, byte, at: 0x3c)
    }
    try expectEqual(done, 1, "bytes of a mark")
  }
}
