import IOMMU
import IOMMUSimulation
import Testing

/// INTx, MSI, MSI-X and the two event interrupts.
@Suite struct InterruptTests {
  /// Raises edu's interrupt by its registers, and takes it back.
  func raise(_ rig: IOMMUFDRig, _ bits: UInt64 = 1) throws { try rig.registers.write(0x60, bits, width: 4) }
  func acknowledge(_ rig: IOMMUFDRig, _ bits: UInt64 = 1) throws {
    try rig.registers.write(0x64, bits, width: 4)
  }

  @Test func information() throws {
    let rig = try IOMMUFDRig()
    let kernel = rig.kernel
    #expect(
      try kernel.vfioInterruptInfo(rig.device, index: VFIOPCI.intx) == VFIOInterruptInfo(flags: 7, count: 1))
    #expect(
      try kernel.vfioInterruptInfo(rig.device, index: VFIOPCI.msi) == VFIOInterruptInfo(flags: 9, count: 1))
    #expect(try kernel.vfioInterruptInfo(rig.device, index: VFIOPCI.msix).count == 0)
    #expect(try kernel.vfioInterruptInfo(rig.device, index: VFIOPCI.request).count == 1)
    // The error interrupt is PCI Express's.
    #expect(throws: Errno.invalidArgument) { try kernel.vfioInterruptInfo(rig.device, index: VFIOPCI.error) }
    #expect(throws: Errno.invalidArgument) { try kernel.vfioInterruptInfo(rig.device, index: 5) }
    rig.close()
    let nvme = try IOMMUFDRig(model: NVMeModel())
    #expect(
      try nvme.kernel.vfioInterruptInfo(nvme.device, index: VFIOPCI.msix)
        == VFIOInterruptInfo(flags: 1, count: 65))
    #expect(try nvme.kernel.vfioInterruptInfo(nvme.device, index: VFIOPCI.error).count == 1)
    nvme.close()
  }

  @Test func messages() throws {
    let rig = try IOMMUFDRig()
    let event = try rig.kernel.createEvent()
    try raise(rig)
    #expect(try rig.kernel.takeEvent(event) == nil)
    try rig.kernel.vfioSetInterrupts(rig.device, index: VFIOPCI.msi, start: 0, events: [event])
    try raise(rig)
    try raise(rig)
    #expect(try rig.kernel.takeEvent(event) == 2)
    // Looped back by the kernel, as the selftest does it.
    try rig.kernel.vfioInterruptAction(rig.device, index: VFIOPCI.msi, start: 0, count: 1, .trigger)
    #expect(try rig.kernel.takeEvent(event) == 1)
    // No bus mastering, no message.
    try rig.registers.setConfig(4, 2, width: 2)
    try raise(rig)
    #expect(try rig.kernel.takeEvent(event) == nil)
    try rig.registers.enable()
    // Untied, then off.
    try rig.kernel.vfioSetInterrupts(rig.device, index: VFIOPCI.msi, start: 0, events: [-1])
    try raise(rig)
    #expect(try rig.kernel.takeEvent(event) == nil)
    try rig.kernel.vfioInterruptAction(rig.device, index: VFIOPCI.msi, start: 0, count: 0, .trigger)
    rig.kernel.close(event)
    rig.close()
  }

  @Test func theKernelKeepsTheEvent() throws {
    let rig = try IOMMUFDRig()
    let event = try rig.kernel.createEvent()
    try rig.kernel.vfioSetInterrupts(rig.device, index: VFIOPCI.msi, start: 0, events: [event])
    rig.kernel.close(event)
    try raise(rig)
    rig.close()
  }

  @Test func levelOfThePin() throws {
    let rig = try IOMMUFDRig()
    let event = try rig.kernel.createEvent()
    try rig.kernel.vfioSetInterrupts(rig.device, index: VFIOPCI.intx, start: 0, events: [event])
    try raise(rig)
    #expect(try rig.kernel.takeEvent(event) == 1)
    // It masked itself; while the pin is driven an unmask brings it again.
    try raise(rig, 2)
    #expect(try rig.kernel.takeEvent(event) == nil)
    try rig.kernel.vfioInterruptAction(rig.device, index: VFIOPCI.intx, start: 0, count: 1, .unmask)
    #expect(try rig.kernel.takeEvent(event) == 1)
    try acknowledge(rig, 3)
    try rig.kernel.vfioInterruptAction(rig.device, index: VFIOPCI.intx, start: 0, count: 1, .unmask)
    #expect(try rig.kernel.takeEvent(event) == nil)
    // Masked by the driver.
    try rig.kernel.vfioInterruptAction(rig.device, index: VFIOPCI.intx, start: 0, count: 1, .mask)
    try raise(rig)
    #expect(try rig.kernel.takeEvent(event) == nil)
    rig.kernel.close(event)
    rig.close()
  }

  @Test func manyVectors() throws {
    let rig = try IOMMUFDRig(model: ManyVectors())
    let events = try (0..<4).map { _ in try rig.kernel.createEvent() }
    try rig.kernel.vfioSetInterrupts(rig.device, index: VFIOPCI.msix, start: 2, events: events)
    for vector in 0..<8 as Range<UInt64> { try rig.registers.write(0, vector, width: 4) }
    #expect(try events.map { try rig.kernel.takeEvent($0) } == [1, 1, 1, 1])
    // One at a time later on: MSI-X can be resized while it is on.
    try rig.kernel.vfioSetInterrupts(rig.device, index: VFIOPCI.msix, start: 7, events: [events[0]])
    try rig.registers.write(0, 7, width: 4)
    #expect(try rig.kernel.takeEvent(events[0]) == 1)
    events.forEach(rig.kernel.close)
    rig.close()
  }

  /// Sends the vector that is written to its register.
  struct ManyVectors: DeviceModel {
    var identity: DeviceIdentity {
      DeviceIdentity(vendor: 1, device: 2, bars: [.memory(4096)], msiCount: 4, msixCount: 8, isExpress: true)
    }
    func read(bar: Int, offset: UInt64, width: Int, bus: DeviceBus) -> UInt64 { 0 }
    func write(_ value: UInt64, bar: Int, offset: UInt64, width: Int, bus: DeviceBus) {
      bus.interrupt(Int(value))
    }
  }

  typealias Row = Rule<IOMMUFDRig>

  static func set(_ index: UInt32, _ start: UInt32, _ events: [Int32])
    -> @Sendable (IOMMUFDRig) throws -> Void
  {
    { try $0.kernel.vfioSetInterrupts($0.device, index: index, start: start, events: events) }
  }

  static func act(
    _ index: UInt32, _ start: UInt32, _ count: UInt32, _ action: VFIOInterruptAction
  ) -> @Sendable (IOMMUFDRig) throws -> Void {
    { try $0.kernel.vfioInterruptAction($0.device, index: index, start: start, count: count, action) }
  }

  static let rules: [Row] = [
    Row("SET_IRQS of an index that is none", .invalidArgument, "vfio_main.c", set(5, 0, [-1])),
    Row(
      "SET_IRQS beyond the last vector", .invalidArgument, "vfio_main.c", set(VFIOPCI.msix, 6, [-1, -1, -1])),
    Row("SET_IRQS from beyond the last vector", .invalidArgument, "vfio_main.c", set(VFIOPCI.msi, 4, [])),
    Row("SET_IRQS of INTx with two events", .invalidArgument, "vfio_main.c", set(VFIOPCI.intx, 0, [-1, -1])),
    Row("SET_IRQS with no descriptor", .badDescriptor, "vfio_pci_intrs.c", set(VFIOPCI.msi, 0, [9999])),
    Row("SET_IRQS with another descriptor", .invalidArgument, "vfio_pci_intrs.c", set(VFIOPCI.msi, 0, [0])),
    Row("SET_IRQS of MSI while MSI-X is on", .invalidArgument, "vfio_pci_intrs.c") {
      try set(VFIOPCI.msix, 0, [-1])($0)
      try set(VFIOPCI.msi, 0, [-1])($0)
    },
    Row("SET_IRQS of MSI after MSI-X was switched off", nil, "vfio_pci_intrs.c") {
      try set(VFIOPCI.msix, 0, [-1])($0)
      try act(VFIOPCI.msix, 0, 0, .trigger)($0)
      try set(VFIOPCI.msi, 0, [-1])($0)
    },
    Row("SET_IRQS of more MSI than were switched on", .invalidArgument, "vfio_pci_intrs.c") { rig in
      let event = try rig.kernel.createEvent()
      defer { rig.kernel.close(event) }
      try set(VFIOPCI.msi, 0, [event, event])(rig)
      try set(VFIOPCI.msi, 2, [event])(rig)
    },
    Row("a failed SET_IRQS leaves MSI off", nil, "vfio_pci_intrs.c") {
      try? set(VFIOPCI.msi, 0, [9999])($0)
      try set(VFIOPCI.msix, 0, [-1])($0)
    },
    Row("masking MSI", .notTypewriter, "vfio_pci_intrs.c", act(VFIOPCI.msi, 0, 1, .mask)),
    Row("masking INTx that is off", .invalidArgument, "vfio_pci_intrs.c", act(VFIOPCI.intx, 0, 1, .mask)),
    Row("triggering MSI that is off", .invalidArgument, "vfio_pci_intrs.c", act(VFIOPCI.msi, 0, 1, .trigger)),
    Row(
      "switching MSI off that is off", .invalidArgument, "vfio_pci_intrs.c", act(VFIOPCI.msi, 0, 0, .trigger)),
    Row("the request interrupt", nil, "vfio_pci_intrs.c") { rig in
      let event = try rig.kernel.createEvent()
      defer { rig.kernel.close(event) }
      try set(VFIOPCI.request, 0, [event])(rig)
      try act(VFIOPCI.request, 0, 1, .trigger)(rig)
      _ = try #require(try rig.kernel.takeEvent(event))
      try act(VFIOPCI.request, 0, 0, .trigger)(rig)
    },
    Row(
      "the request interrupt, not set", .invalidArgument, "vfio_pci_intrs.c",
      act(VFIOPCI.request, 0, 1, .trigger)),
    Row("the error interrupt", nil, "vfio_pci_intrs.c", set(VFIOPCI.error, 0, [-1])),
    Row("masking the error interrupt", .notTypewriter, "vfio_pci_intrs.c", act(VFIOPCI.error, 0, 1, .mask)),
  ]

  @Test(arguments: rules)
  func rule(_ row: Row) throws {
    let rig = try IOMMUFDRig(model: ManyVectors())
    row.check(rig)
    rig.close()
  }
}
