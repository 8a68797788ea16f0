import IOMMU
import Synchronization

/// A model in its slot, with the lock that makes its calls one at a time.
///
/// The kernel's lock is never held while a slot's is taken: a model calls back into the kernel for its DMA.
final class DeviceSlot: Sendable {
  let bus: DeviceBus
  private let model: Mutex<any DeviceModel>

  init(_ model: any DeviceModel, at address: PCIAddress) {
    self.model = Mutex(model)
    bus = DeviceBus(port: BusPort(address: address))
  }

  func attach(_ kernel: SimulatedKernel) {
    bus.port.connect(kernel)
    model.withLock { $0.attach(to: bus) }
  }

  func read(bar: Int, offset: UInt64, width: Int) -> UInt64 {
    model.withLock { $0.read(bar: bar, offset: offset, width: width, bus: bus) }
  }

  func write(_ value: UInt64, bar: Int, offset: UInt64, width: Int) {
    model.withLock { $0.write(value, bar: bar, offset: offset, width: width, bus: bus) }
  }

  func reset() { model.withLock { $0.reset() } }
  func wake() { model.withLock { $0.wake(bus: bus) } }
  var hasPendingTransactions: Bool { model.withLock { $0.hasPendingTransactions } }

  /// The model as it is now, when it is of this type: a copy of a structure, the object itself of a class.
  func snapshot<Model: DeviceModel>(as type: Model.Type) -> Model? { model.withLock { $0 as? Model } }
}
