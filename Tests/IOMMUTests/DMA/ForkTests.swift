import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// A fork has the parent's descriptors and none of its memory: it may do nothing, and nothing of the parent's may break.
@Suite struct ForkTests {
  /// Kernel calls that a fork would make on what is the parent's.
  static let harmful = [
    "ioasMap", "ioasUnmap", "iommufdDestroy", "vfioMap", "vfioUnmap", "vfioUnsetContainer", "vfioDetach", "vfioReset",
    "unmapMemory", "takeEvent", "signalEvent", "vfioSetInterrupts", "vfioInterruptAction", "pwrite",
  ]

  @Test func aForkIsRefusedAndBreaksNothing() async {
    await #expect(processExitsWith: .success) {
      for interface in Interface.allCases { try ForkTests.forkAndUse(interface, .vtd) }
      // Where the tables are memory that a fork does not have.
      try ForkTests.forkAndUse(.iommufd, .smmuv3Nested)
      try ForkTests.forkAndUse(.iommufd, .vtdNested, .process)
    }
  }

  /// Opens a device, forks, and uses and drops everything in the child; then the parent goes on.
  static func forkAndUse(
    _ interface: Interface, _ machine: SimulatedMachine, _ translation: TranslationChoice = .automatic
  ) throws {
    let machine = SimulatedHost(machine, devices: ["0000:00:02.0": EduModel()])
    let kernel = FaultingKernel(machine.kernel)
    var device: Device? = try Device(
      "0000:00:02.0", on: Host(kernel: kernel), interface: interface, translation: translation)
    try device!.dma.setMask(.bits(28))
    let ring = try device!.dma.allocate(UInt64.self, count: 8)
    ring[0] = 42
    let mapping = try device!.dma.map(try device!.dma.buffer(byteCount: 100), .bidirectional)
    var interrupt: Interrupt? = try device!.interrupt(0)
    try interrupt!.trigger()
    kernel.resetCounts()
    let child = fork()
    if child == 0 {
      let failure = try use(device!, interrupt!)
      // Everything goes in the child as well: deinits must not reach the parent's objects.
      _ = consume mapping
      _ = consume ring
      (device, interrupt) = (nil, nil)
      _exit(failure ?? (harmful.contains { kernel.count(of: $0) > 0 } ? 99 : 0))
    }
    var status: Int32 = -1
    _ = unsafe waitpid(child, &status, 0)
    try #require(status == 0, "the child ended with \(status >> 8), signal \(status & 127)")

    // The parent's interrupt is still there, its memory and its mapping as well.
    try #require(try interrupt!.tryTake() == 1)
    try #require(ring[0] == 42)
    let address = mapping.address
    let registers = try device!.registers(bar: 0)
    try EndToEndTests.transfer(registers, address, 64, toDevice: true)
    try #require(machine.faults.isEmpty)
    _ = try mapping.unmap()
    device!.close()
    (device, interrupt) = (nil, nil)
  }

  /// Every call must be refused as `.forked`; the number of the first that is not, nil when all are.
  private static func use(_ device: Device, _ interrupt: Interrupt) throws -> Int32? {
    let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)
    let calls: [() throws -> Void] = [
      { _ = try device.dma.buffer(byteCount: 1) },
      { _ = try device.dma.allocate(UInt8.self, count: 1) },
      { _ = try unsafe device.dma.map(unsafe: UnsafeRawBufferPointer(page), .toDevice) },
      { try device.dma.setMask(.bits(32)) },
      { try device.dma.drain() },
      { _ = try interrupt.tryTake() },
      { _ = try interrupt.wait(timeout: .seconds(1)) },
      { try interrupt.trigger() },
      { _ = try device.interrupt(1) },
      { _ = try device.config.vendorID() },
      { try device.config.updateCommand(clear: .busMaster) },
      { try device.config.store(UInt16(0), at: 4) },
      { _ = try device.registers(bar: 0) },
    ]
    for (number, call) in calls.enumerated() {
      do { try call() } catch { if (error as? DMAError)?.code == .forked { continue } }
      return Int32(number + 1)
    }
    if unsafe device.dma.translate(IOVA(0x1000)) != nil || device.dma.statistics != DMAStatistics() { return 50 }
    device.dma.onNotice { _ in }
    device.dma.setAddressPolicy(.full)
    if device.dma.addressPolicy != .sacFirst { return 51 }
    device.close()
    return nil
  }
}
