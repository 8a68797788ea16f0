import Synchronization

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
/// Dropping it closes it. All methods may be called from any thread.
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
  /// Whether the machine exists only in this process.
  public let isSimulated: Bool

  private let kernel: any Kernel
  private let handle: DeviceHandle
  private let attachment: Attachment
  private let vectors: InterruptVectors
  private let deviceReset: DeviceReset
  private let regionCount: UInt32
  private let bars = Mutex<[Int: Registers]>([:])
  private let closing = Atomic<Bool>(false)

  init(_ opened: OpenedDevice) throws(DMAError) {
    address = opened.attachment.target.address
    dma = DMADomain(core: opened.core, deviceName: address.description)
    config = opened.config
    interface = opened.core.translation.interface
    interfaceReason = opened.reason
    isSimulated = opened.kernel.isSimulated
    kernel = opened.kernel
    handle = opened.handle
    attachment = opened.attachment
    regionCount = opened.info.regionCount
    deviceReset = DeviceReset(opened.handle, info: opened.info)
    let info = { (index: UInt32) in try? opened.kernel.vfioInterruptInfo(opened.attachment.descriptor, index: index) }
    vectors = InterruptVectors(
      opened.handle, intx: info(VFIOPCI.intx), msi: info(VFIOPCI.msi), msix: info(VFIOPCI.msix))
    events = DeviceEvents(opened.handle, error: info(VFIOPCI.error), request: info(VFIOPCI.request))
    do throws(DMAError) {
      // Bus mastering comes last: until here the device can start no DMA of its own.
      try config.updateCommand(set: [.memory, .busMaster])
      try events.start { [weak self] event in
        if event == .releaseRequested { self?.close() }
      }
    } catch {
      close()
      throw error
    }
  }

  deinit { close() }

  /// Whether ``close()`` was called, by anyone.
  public var isClosed: Bool { closing.load(ordering: .acquiring) }

  /// A BAR, the same object each time.
  ///
  /// The kernel calls behind it are `VFIO_DEVICE_GET_REGION_INFO` and `mmap`.
  /// - Throws: `.noSuchResource` when the device has no such BAR, `.gone`, `.closed`.
  public func registers(bar: Int) throws(DMAError) -> Registers {
    if let known = bars.withLock({ $0[bar] }) { return known }
    guard (0..<6).contains(bar), bar < regionCount else {
      throw DMAError(.noSuchResource, "registers(bar:)", device: handle.name, detail: "There is no BAR \(bar)")
    }
    let kernel = kernel
    let info = try handle.use("VFIO_DEVICE_GET_REGION_INFO") { descriptor throws(Errno) in
      try kernel.vfioRegionInfo(descriptor, index: UInt32(bar))
    }
    let registers = try Registers(handle, region: info)
    return bars.withLock { bars in
      if let other = bars[bar] { return other }  // another thread was first
      bars[bar] = registers
      return registers
    }
  }

  /// An interrupt vector as an event, the same object each time.
  ///
  /// Without a kind, the kind in use; else the best that the device has: MSI-X, MSI, INTx. The kernel call behind it is
  /// `VFIO_DEVICE_SET_IRQS`.
  /// - Throws: `.noSuchResource` beyond the device's vectors, with their number in the detail; `.gone`, `.closed`.
  public func interrupt(_ vector: Int, _ kind: Interrupt.Kind? = nil) throws(DMAError) -> Interrupt {
    try vectors.interrupt(vector, kind)
  }

  /// How many vectors of a kind the device has.
  public func interruptCount(_ kind: Interrupt.Kind) -> Int { vectors.count(kind) }

  /// Whether the kernel knows a reset for the device.
  public var canReset: Bool { deviceReset.isSupported }

  /// Resets the device: its registers and queues are as after power-on; config space and interrupts are kept by the kernel.
  ///
  /// The kernel call behind it is `VFIO_DEVICE_RESET`.
  /// - Throws: `.noSuchResource` with the reason when there is no reset, `.busy`, `.gone`, `.closed`.
  public func reset() throws(DMAError) { try deviceReset.perform(config) }

  /// Brings the device to rest and gives it back.
  ///
  /// Bus mastering off, wait for transactions under way (at most 200 ms), reset where the device can, interrupts off,
  /// detach; after the domain's last device everything is unmapped at once, which costs one invalidation however much is
  /// mapped. Mappings that are alive then give their buffers back as ever. The second call does nothing.
  public func close() {
    guard closing.compareExchange(expected: false, desired: true, ordering: .sequentiallyConsistent).exchanged else { return }
    // A fork has the numbers of the parent's descriptors, and must not touch the parent's device.
    guard ProcessGuard.isOwner else { return }
    try? config.updateCommand(clear: .busMaster)
    _ = try? config.waitForTransactions(timeout: Limits.pendingTransactions)
    if deviceReset.isSupported { try? deviceReset.perform(nil) }
    vectors.close()
    events.close()
    for registers in bars.withLock({ Array($0.values) }) { registers.close() }
    handle.close()
    dma.core.detach(attachment)
  }
}

extension DomainCore {
  /// A device leaves; with the last one the domain ends.
  func detach(_ attachment: Attachment) {
    translation.detach(attachment)
    if deviceCount.wrappingSubtract(1, ordering: .acquiringAndReleasing).newValue == 0 { close() }
  }
}
