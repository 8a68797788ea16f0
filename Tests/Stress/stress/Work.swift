import AddressSpaceModels
import Glibc
import IOMMU
import IOMMUSimulation
import Synchronization

/// A device whose bus the threads use by themselves.
final class BusModel: DeviceModel {
  private let kept = Mutex<DeviceBus?>(nil)
  var bus: DeviceBus? { kept.withLock { $0 } }
  var identity: DeviceIdentity { EduModel(addressBits: 64).identity }
  func attach(to bus: DeviceBus) { kept.withLock { $0 = bus } }
  func read(bar: Int, offset: UInt64, width: Int, bus: DeviceBus) -> UInt64 { 0 }
  func write(_ value: UInt64, bar: Int, offset: UInt64, width: Int, bus: DeviceBus) {}
}

/// What threads do with a domain: the things that a driver does.
struct Work: Sendable {
  private let dma: DMADomain
  /// nil where the device may go at any time: then nothing is transferred.
  private let bus: DeviceBus?
  /// In debug mode the CPU is kept out of what a device owns: only the device looks there.
  private let isDebugged: Bool

  init(_ dma: DMADomain, _ bus: DeviceBus?) {
    (self.dma, self.bus, isDebugged) = (dma, bus, dma.debugOptions != nil)
  }

  /// One of them.
  func operate(_ run: Run, _ numbers: inout SplitMix64) throws(DMAError) {
    run.note()
    switch numbers.next(8) {
    case 0:
      var list = ScatterList()
      for _ in 0...numbers.next(6) { list.append(try dma.buffer(byteCount: 1 + numbers.next(12_000))) }
      let mapped = try dma.map(list, .bidirectional)
      if numbers.next(2) == 0 { _ = try mapped.unmap() }
    case 1:
      let offset = 4096 * numbers.next(15)
      do throws(DMAError) { try link(at: offset) } catch {
        // Links cannot be copied, so that .bounce has none.
        if error.code != .notSupported { throw error }
      }
    case 2: _ = try dma.allocate(UInt64.self, count: 1 + numbers.next(1000))
    case 3: try foreign(run, &numbers)
    default: try single(run, &numbers)
    }
  }

  private func link(at offset: Int) throws(DMAError) {
    var reservation = try dma.reserve(byteCount: 16 << 12)
    try reservation.link(try dma.buffer(byteCount: 4096), at: offset, .toDevice)
    let linked = try reservation.sync()
    _ = try linked.destroy()
  }

  /// A buffer, what the CPU stored there, and what the device does.
  private func single(_ run: Run, _ numbers: inout SplitMix64) throws(DMAError) {
    var buffer = try dma.buffer(byteCount: 16 + numbers.next(20_000))
    let value = numbers.next(), direction = [DMADirection.toDevice, .fromDevice, .bidirectional][numbers.next(3)]
    buffer.store(value)
    let mapping = try dma.map(buffer, direction)
    let found = unsafe dma.translate(mapping.address)
    // A copy that the device only writes begins as zeros.
    let isVisible = !isDebugged && direction != .fromDevice
    if unsafe found == nil || (isVisible && found!.loadUnaligned(as: UInt64.self) != value) {
      run.fail("an address leads elsewhere")
    }
    transfer(run, mapping.address.rawValue, value, direction)
    guard numbers.next(4) > 0 else { return }
    buffer = try mapping.unmap()
    let written = buffer.load(at: 8, as: UInt64.self)
    if bus != nil, direction != .toDevice, written != ~value { run.fail("what the device wrote did not come") }
  }

  /// Memory of the caller's, which may be copied.
  private func foreign(_ run: Run, _ numbers: inout SplitMix64) throws(DMAError) {
    let value = numbers.next(), count = 4096 * (1 + numbers.next(3))
    let pages = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 4096)
    defer { unsafe pages.deallocate() }
    unsafe pages.storeBytes(of: value, as: UInt64.self)
    let mapping = try unsafe dma.map(unsafe: UnsafeRawBufferPointer(pages), .bidirectional)
    transfer(run, mapping.address.rawValue, value, .bidirectional)
    try mapping.unmap()
    let written = unsafe pages.load(fromByteOffset: 8, as: UInt64.self)
    if bus != nil, written != ~value { run.fail("what the device wrote did not come") }
  }

  /// The device reads the value, and writes another behind it.
  private func transfer(_ run: Run, _ address: UInt64, _ value: UInt64, _ direction: DMADirection) {
    guard let bus else { return }
    do throws(DeviceBus.Failure) {
      if direction != .fromDevice, try bus.load(address, as: UInt64.self) != value {
        run.fail("the device reads something else")
      }
      if direction != .toDevice { try bus.store(~value, to: address + 8) }
    } catch { run.fail("the device got no further: \(error)") }
  }
}
