/// A PCI device that this process drives through VFIO: its registers, its interrupts, its events and its DMA.
///
/// ```swift
/// let nic = try Device("0000:03:00.0")
/// let bar = try nic.registers(bar: 0), irq = try nic.interrupt(0)
/// let ring = try nic.dma.allocate(UInt64.self, count: 256)
/// ```
///
/// While it is open nobody else drives it, and its DMA reaches what ``dma`` maps and nothing else. When the kernel wants
/// the device back (unplug, unbind), the default answer is ``close()``; ``DeviceEvents/onEvent(_:)`` replaces that.
/// It is closed when the last of it and of its domain, registers and interrupts is dropped: a function may go on with these
/// after its last use of the device. All methods may be called from any thread.
public final class Device: Sendable {
  /// Where it sits.
  public let address: PCIAddress
  /// What it may reach.
  public let dma: DMADomain
  /// Its config space.
  public let config: ConfigSpace
  /// Its error and release-request interrupts.
  public let events: DeviceEvents
  /// How the kernel is reached.
  public let interface: Interface
  /// Why that interface was chosen, in one sentence.
  public let interfaceReason: String
  /// Who writes the page tables that translate for it, and why.
  public let translation: TranslationInUse
  /// Whether the machine exists only in this process.
  public let isSimulated: Bool

  private let session: DeviceSession

  init(_ opened: OpenedDevice) throws(DMAError) {
    address = opened.attachment.target.address
    // Before the device can do DMA, so that no fault of it is missed.
    let faultLog = FaultLog(kernel: opened.kernel, device: address)
    session = try DeviceSession(opened, faultLog)
    dma = DMADomain(
      core: opened.core, deviceName: address.description, owner: session, faultLog: faultLog,
      translation: opened.translation)
    config = session.config
    events = session.events
    interface = opened.core.translation.interface
    interfaceReason = opened.reason
    translation = opened.translation
    isSimulated = opened.kernel.isSimulated
  }

  /// Whether ``close()`` was called, by anyone.
  public var isClosed: Bool { session.isClosed }

  /// A BAR, the same object each time.
  ///
  /// The kernel calls behind it are `VFIO_DEVICE_GET_REGION_INFO` and `mmap`.
  /// - Throws: `.noSuchResource` when the device has no such BAR, `.gone`, `.closed`.
  public func registers(bar: Int) throws(DMAError) -> Registers { try session.registers(bar: bar) }

  /// An interrupt vector as an event, the same object each time.
  ///
  /// Without a kind, the kind in use; else the best that the device has: MSI-X, MSI, INTx. The kernel call behind it is
  /// `VFIO_DEVICE_SET_IRQS`.
  /// - Throws: `.noSuchResource` beyond the device's vectors, with their number in the detail; `.gone`, `.closed`.
  public func interrupt(_ vector: Int, _ kind: Interrupt.Kind? = nil) throws(DMAError) -> Interrupt {
    try session.vectors.interrupt(vector, kind, owner: session)
  }

  /// How many vectors of a kind the device has.
  public func interruptCount(_ kind: Interrupt.Kind) -> Int { session.vectors.count(kind) }

  /// Whether the kernel knows a reset for the device.
  public var canReset: Bool { session.deviceReset.isSupported }

  /// Resets the device: its registers and queues are as after power-on; config space and interrupts are kept by the kernel.
  ///
  /// The kernel call behind it is `VFIO_DEVICE_RESET`.
  /// - Throws: `.noSuchResource` with the reason when there is no reset, `.busy`, `.gone`, `.closed`.
  public func reset() throws(DMAError) { try session.deviceReset.perform(session.config) }

  /// Brings the device to rest and gives it back.
  ///
  /// Bus mastering off, wait for transactions under way (at most 200 ms), reset where the device can, interrupts off,
  /// detach; after the domain's last device everything is unmapped at once, which costs one invalidation however much is
  /// mapped. Mappings that are alive then give their buffers back as ever. The second call does nothing. It waits for the kernel
  /// calls that other threads have under way, and not for what they meant to call after that: see <doc:GuaranteesAndDuties>.
  public func close() { session.close() }
}
