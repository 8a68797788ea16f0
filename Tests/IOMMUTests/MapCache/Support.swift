import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// A buffer that is mapped again and again: of the driver's between two maps.
final class RecurringBuffer: @unchecked Sendable {
  private var buffer: DMABuffer?

  /// Where its memory is.
  let place: UInt

  init(_ dma: DMADomain, byteCount: Int = 64) throws {
    let new = try dma.buffer(byteCount: byteCount)
    place = Self.place(of: new)
    buffer = consume new
  }

  private static func place(of buffer: borrowing DMABuffer) -> UInt {
    unsafe buffer.bytes.withUnsafeBytes { UInt(bitPattern: $0.baseAddress) }
  }

  /// Maps and unmaps it; the address that it had.
  func use(_ dma: DMADomain, _ direction: DMADirection = .bidirectional) throws -> IOVA {
    let mapping = try map(dma, direction), address = mapping.address
    take(try mapping.unmap())
    return address
  }

  func map(_ dma: DMADomain, _ direction: DMADirection = .bidirectional) throws -> Mapping {
    try dma.map(buffer.take()!, direction)
  }

  func take(_ new: consuming DMABuffer) { buffer = consume new }

  func drop() { buffer = nil }
}

/// A domain that keeps maps.
enum Caching {
  typealias Tables = LazyTests.Tables

  /// Invalidations are dear, and nothing goes by time.
  static func options(_ byteCount: Int = 64 << 20, _ timeout: Duration = LazyTests.patient) -> AutomaticOptions {
    var options = AutomaticOptions()
    (options.isInvalidationDear, options.cacheByteCount, options.cacheTimeout) = (true, byteCount, timeout)
    return options
  }

  /// The machine is clean afterwards, but for memory that is leaked.
  static func withDomain(
    _ tables: Tables, _ options: AutomaticOptions = options(), leaks: Bool = false,
    _ body: (FaultingKernel, Device, SimulatedHost) throws -> Void
  ) throws {
    let machine = SimulatedHost(devices: [LazyTests.address: EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel)
    do {
      let device = try Device(
        LazyTests.address, on: Host(kernel: kernel), interface: tables.interface, translation: .kernel)
      defer { kernel.letGo() }
      try device.dma.switchProtection(to: .automatic(options))
      try body(kernel, device, machine)
      device.close()
      #expect(device.dma.statistics.cachedBytes == 0)
    }
    #expect(leaks ? machine.kernel.census.pinnedBytes == 0 : machine.isClean)
  }

  /// Maps and unmaps a page at an address that must be free.
  static func mapPage(_ dma: DMADomain, at address: IOVA) throws {
    let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
    defer { unsafe page.deallocate() }
    try unsafe dma.map(unsafe: UnsafeRawBufferPointer(page), .toDevice, at: address).unmap()
  }

  /// Whether a write of the device goes through.
  static func writes(_ address: IOVA, _ device: Device, _ machine: SimulatedHost) throws -> Bool {
    let faults = machine.faults.count
    try EndToEndTests.transfer(try device.registers(bar: 0), address, 8, toDevice: false)
    return machine.faults.count == faults
  }
}
