import Synchronization

/// An open device: what ``Device`` shows, and what its domain, registers and interrupts keep open.
///
/// Swift may destroy a `Device` after its last use, in the middle of a function that goes on with its registers: so these
/// hold this, which closes itself when the last of them goes. It holds none of them, or nobody ever would.
final class DeviceSession: Sendable {
  let kernel: any Kernel
  let core: DomainCore
  let attachment: Attachment
  let handle: DeviceHandle
  let config: ConfigSpace
  let vectors: InterruptVectors
  let events: DeviceEvents
  let deviceReset: DeviceReset
  private let faultLog: FaultLog
  private let regionCount: UInt32
  private let bars = Mutex<[Int: WeakRegisters]>([:])
  private let closing = Atomic<Bool>(false)

  private struct WeakRegisters {
    weak var value: Registers?
  }

  /// Takes over what was opened, and lets the device do DMA; if that fails everything is given back.
  init(_ opened: OpenedDevice, _ faultLog: FaultLog) throws(DMAError) {
    self.faultLog = faultLog
    kernel = opened.kernel
    core = opened.core
    attachment = opened.attachment
    handle = opened.handle
    config = opened.config
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

  var isClosed: Bool { closing.load(ordering: .acquiring) }

  func registers(bar: Int) throws(DMAError) -> Registers {
    if let known = bars.withLock({ $0[bar]?.value }) { return known }
    guard (0..<6).contains(bar), bar < regionCount else {
      throw DMAError(.noSuchResource, "registers(bar:)", device: handle.name, detail: "There is no BAR \(bar)")
    }
    let kernel = kernel
    let info = try handle.use("VFIO_DEVICE_GET_REGION_INFO") { descriptor throws(Errno) in
      try kernel.vfioRegionInfo(descriptor, index: UInt32(bar))
    }
    let registers = try Registers(handle, region: info, owner: self)
    let known = bars.withLock { bars -> Registers in
      if let other = bars[bar]?.value { return other }  // another thread was first
      bars[bar] = WeakRegisters(value: registers)
      return registers
    }
    // Closed meanwhile: close() may have looked before these were listed.
    if isClosed { known.close() }
    return known
  }

  /// See ``Device/close()``.
  func close() {
    guard closing.compareExchange(expected: false, desired: true, ordering: .sequentiallyConsistent).exchanged else {
      return
    }
    // A fork has the numbers of the parent's descriptors, and must not touch the parent's device.
    guard ProcessGuard.isOwner else { return }
    try? config.updateCommand(clear: .busMaster)
    _ = try? config.waitForTransactions(timeout: Limits.pendingTransactions)
    if deviceReset.isSupported { try? deviceReset.perform(nil) }
    vectors.close()
    events.close()
    for registers in bars.withLock({ $0.values.compactMap(\.value) }) { registers.close() }
    handle.close()
    // The device does nothing any more, and what it was given is still known: the last look at what it was refused.
    if core.debug != nil { _ = core.collectFaults(faultLog) }
    core.deviceLeaves(attachment)
  }
}
