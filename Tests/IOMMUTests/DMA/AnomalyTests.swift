import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// The first kernel call fails, then the second, and so on, until the whole job is done without: each time the error is
/// complete, and nothing is left behind.
@Suite struct AnomalyTests {
  private static let address = "0000:00:02.0"
  private static let ways: [(Interface, TranslationChoice)] = [
    (.iommufd, .process), (.iommufd, .kernel), (.type1, .kernel),
  ]

  /// What a driver does in its life. Errors go to `failures`; what can go on goes on.
  private static func drive(_ device: Device, _ failures: inout [DMAError]) {
    func attempt(_ body: () throws(DMAError) -> Void) {
      do throws(DMAError) { try body() } catch { failures.append(error) }
    }
    let dma = device.dma, page = UnsafeMutableRawBufferPointer.allocate(byteCount: 8192, alignment: 4096)
    defer { unsafe page.deallocate() }
    attempt { () throws(DMAError) in
      let ring = try dma.allocate(UInt64.self, count: 64)
      ring[0] = 1
      unsafe precondition(dma.translate(ring.address) == ring.unsafeBaseAddress)
    }
    attempt { () throws(DMAError) in
      let mapping = try dma.map(try dma.buffer(byteCount: 5000), .bidirectional)
      unsafe precondition(dma.translate(mapping.address, byteCount: 5000) != nil)
      _ = try mapping.unmap()
    }
    attempt { () throws(DMAError) in _ = try dma.map(try dma.buffer(byteCount: 1), .toDevice) }
    attempt { () throws(DMAError) in
      let memory = UnsafeRawBufferPointer(page)
      let mapping = try unsafe dma.map(unsafe: memory, .fromDevice, at: IOVA(0x10_0000))
      try mapping.unmap()
    }
    attempt { () throws(DMAError) in
      var list = ScatterList()
      for _ in 0..<3 { list.append(try dma.buffer(byteCount: 4096)) }
      _ = try dma.map(list, .toDevice).unmap()
    }
    attempt { () throws(DMAError) in _ = try dma.allocate(UInt8.self, count: 1 << 20) }
    attempt { () throws(DMAError) in
      let interrupt = try device.interrupt(0)
      try interrupt.trigger()
      _ = try interrupt.tryTake()
    }
    attempt { () throws(DMAError) in _ = try device.registers(bar: 0)[0] }
  }

  /// As ``drive(_:_:)``, for memory that is mapped once for all, and for copies.
  private static func driveStanding(_ device: Device, _ failures: inout [DMAError]) {
    func attempt(_ body: () throws(DMAError) -> Void) {
      do throws(DMAError) { try body() } catch { failures.append(error) }
    }
    let dma = device.dma, pages = Pages(2)
    attempt { () throws(DMAError) in
      try dma.switchProtection(to: .persistent)
      _ = try dma.map(try dma.buffer(byteCount: 600 << 10), .toDevice).unmap()
      let registration = try unsafe dma.register(unsafe: pages.all)
      try unsafe dma.map(unsafe: pages.part(0..<4096), .fromDevice).unmap()
      try registration.unregister()
    }
    attempt { () throws(DMAError) in
      try dma.switchProtection(to: .bounce)
      _ = try dma.map(try dma.buffer(byteCount: 300 << 10), .bidirectional).unmap()
      try unsafe dma.map(unsafe: pages.part(1..<100), .fromDevice).unmap()
    }
    attempt { () throws(DMAError) in try dma.switchProtection(to: .strict) }
  }

  @Test(arguments: ways, [Errno.noMemory, .noDevice])
  func nothingIsLeftBehind(_ way: (Interface, TranslationChoice), _ errno: Errno) throws {
    try Self.failEach(way, errno, after: 0, Self.drive)
  }

  /// Each call after those that open the device.
  @Test(arguments: ways, [Errno.noMemory, .noDevice])
  func nothingOfStandingMapsIsLeftBehind(_ way: (Interface, TranslationChoice), _ errno: Errno) throws {
    let machine = SimulatedHost(devices: [Self.address: EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel)
    let device = try Device(Self.address, on: Host(kernel: kernel), interface: way.0, translation: way.1)
    let opening = kernel.callCount
    device.close()
    try Self.failEach(way, errno, after: opening, Self.driveStanding)
  }

  private static func failEach(
    _ way: (Interface, TranslationChoice), _ errno: Errno, after first: Int,
    _ drive: (Device, inout [DMAError]) -> Void
  ) throws {
    let (interface, translation) = way
    var n = first
    while true {
      n += 1
      let machine = SimulatedHost(devices: [Self.address: EduModel(addressBits: 64)])
      let kernel = FaultingKernel(machine.kernel)
      var failures: [DMAError] = [], leaked: UInt64 = 0
      kernel.fail(n, with: errno)
      do throws(DMAError) {
        let device = try Device(Self.address, on: Host(kernel: kernel), interface: interface, translation: translation)
        drive(device, &failures)
        let statistics = device.dma.statistics
        leaked = statistics.leakedBytes
        device.close()
        if leaked == 0 { #expect(statistics.liveMappings == 0, "\(n)") }
      } catch { failures.append(error) }
      let failed = kernel.failedName ?? "-"
      for error in failures {
        #expect(error.device != nil && !error.operation.isEmpty, "\(n) \(failed): \(error)")
        #expect(error.errno == errno || error.errno == nil, "\(n) \(failed): \(error)")
      }
      #expect(failures.count <= 1, "\(n) \(failed): one failure breaks one operation: \(failures)")
      if leaked == 0 {
        #expect(machine.isClean, "\(n) \(failed): \(machine.kernel.census)")
      } else {
        var left = machine.kernel.census
        // The memory that the device may reach, and what it is carved from, stays.
        (left.memoryMappings, left.memoryFiles, left.events) = (0, 0, 0)
        #expect(left.isEmpty, "\(n) \(failed): \(left)")
      }
      if !kernel.hasFailed { break }
    }
    #expect(n > max(50, first + 20))
  }
}
