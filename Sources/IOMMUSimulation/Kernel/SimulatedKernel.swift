import IOMMU
import Synchronization

/// A small kernel in this process: iommufd's and VFIO's objects and errors, PCI devices, an IOMMU, and the files that
/// show them.
///
/// Where a real Linux answers something else than this kernel, this kernel is wrong. One lock guards all of it; a
/// device model is called without it, because models do DMA from inside their register accesses. Descriptors of
/// device nodes exist only here; memory files, memory and event descriptors are the process's own, and counted.
package final class SimulatedKernel: Kernel {
  package let name = "simulated"
  package let isSimulated = true

  private let state: Mutex<KernelState>
  /// The clock, which is read without the lock.
  let ahead: VirtualClock.Ahead

  /// Boots a machine. Traps when a device's address is no PCI address or taken twice: that is the test's mistake.
  package init(_ machine: SimulatedMachine) {
    let slots = machine.devices.map { device in
      guard let address = PCIAddress(device.address) else {
        preconditionFailure("\(device.address) is no PCI address")
      }
      return (device: device, address: address, slot: DeviceSlot(device.model, at: address))
    }
    precondition(Set(slots.map(\.address)).count == slots.count, "two devices have one address")
    let state = KernelState(machine)
    state.boot(slots)
    ahead = state.clock.ahead
    self.state = Mutex(state)
    for slot in slots { slot.slot.attach(self) }
  }

  /// Runs a call with the lock held.
  func locked<Result: Sendable>(
    _ body: @Sendable (KernelState) throws(Errno) -> Result
  ) throws(Errno) -> Result {
    try state.withLock { (state) throws(Errno) in try body(state) }
  }

  /// The same for calls that cannot fail.
  func locked<Result: Sendable>(_ body: @Sendable (KernelState) -> Result) -> Result {
    state.withLock { state in body(state) }
  }
}
