import IOMMU
import Synchronization

/// A model in its slot, with the lock that makes its calls one at a time.
///
/// The kernel's lock is never held while a slot's is taken: a model calls back into the kernel for its DMA.
final class DeviceSlot: Sendable {
  let bus: DeviceBus
  private let model: Mutex<any DeviceModel>
  /// Where the MSI-X table is. VFIO owns it: it reads as all ones and writes go nowhere.
  private let table: (bar: Int, range: Range<UInt64>)

  init(_ model: any DeviceModel, at address: PCIAddress) {
    let identity = model.identity
    table = (identity.msixTable.bar, identity.tableRange)
    self.model = Mutex(model)
    bus = DeviceBus(port: BusPort(address: address))
  }

  func attach(_ kernel: SimulatedKernel) {
    bus.port.connect(kernel)
    model.withLock { $0.attach(to: bus) }
  }

  /// Reads registers in naturally aligned pieces, as VFIO does.
  func readBytes(bar: Int, offset: UInt64, byteCount: Int) -> [UInt8] {
    var bytes: [UInt8] = []
    bytes.reserveCapacity(byteCount)
    for piece in AccessPieces(offset: offset, byteCount: byteCount) {
      let isTable = bar == table.bar && table.range.contains(piece.offset)
      let value =
        isTable
        ? .max : model.withLock { $0.read(bar: bar, offset: piece.offset, width: piece.width, bus: bus) }
      for index in 0..<piece.width { bytes.append(UInt8(truncatingIfNeeded: value >> (UInt64(index) * 8))) }
    }
    return bytes
  }

  /// Writes registers in naturally aligned pieces.
  func writeBytes(_ bytes: ArraySlice<UInt8>, bar: Int, offset: UInt64) {
    for piece in AccessPieces(offset: offset, byteCount: bytes.count)
    where bar != table.bar || !table.range.contains(piece.offset) {
      let first = bytes.startIndex + Int(piece.offset - offset)
      let value = bytes[first..<first + piece.width].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
      model.withLock { $0.write(value, bar: bar, offset: piece.offset, width: piece.width, bus: bus) }
    }
  }

  func reset() { model.withLock { $0.reset() } }
  func wake() { model.withLock { $0.wake(bus: bus) } }
  var hasPendingTransactions: Bool { model.withLock { $0.hasPendingTransactions } }

  /// The model as it is now, when it is of this type: a copy of a structure, the object itself of a class.
  func snapshot<Model: DeviceModel>(as type: Model.Type) -> Model? { model.withLock { $0 as? Model } }
}

/// An access cut into naturally aligned pieces of 8, 4, 2 and 1 bytes, as VFIO does it.
struct AccessPieces: Sequence, IteratorProtocol {
  var offset: UInt64
  var byteCount: Int

  mutating func next() -> (offset: UInt64, width: Int)? {
    guard byteCount > 0 else { return nil }
    let width = [8, 4, 2, 1].first { $0 <= byteCount && offset % UInt64($0) == 0 }!
    defer {
      offset += UInt64(width)
      byteCount -= width
    }
    return (offset, width)
  }
}
