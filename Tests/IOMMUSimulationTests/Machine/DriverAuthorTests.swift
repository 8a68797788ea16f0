import IOMMU
import IOMMUSimulation
import Testing

/// What a driver author's own test looks like, and the pieces it is made of.
@Suite struct DriverAuthorTests {
  // The device under test in a closure: a doorbell at 0x10 sends bytes to the address at 0x00 and interrupts.
  static let sender = ScratchModel { registers, offset, bus in
    guard offset == 0x10 else { return }
    try? bus.write([UInt8](repeating: 0xab, count: Int(registers[0x10] & 0xff)), to: registers[0])
    bus.interrupt()
  }

  @Test func tenLines() throws {
    let rig = try IOMMUFDRig(model: Self.sender)
    try rig.map(at: 0x8000)
    try rig.registers.write(0, 0x8000, width: 8)
    try rig.registers.write(0x10, 4, width: 4)
    #expect(rig.memory[0] == 0xabab_abab)
    #expect(rig.machine.faults.isEmpty)
    rig.close()
    #expect(rig.machine.isClean)
  }

  /// A class keeps its own state, and can be looked at from outside.
  final class Counter: DeviceModel {
    let calls = SynchronizedCount()
    var identity: DeviceIdentity { DeviceIdentity(vendor: 1, device: 2, bars: [.memory(16)]) }
    func read(bar: Int, offset: UInt64, width: Int, bus: DeviceBus) -> UInt64 {
      calls.add()
      return 0
    }
    func write(_ value: UInt64, bar: Int, offset: UInt64, width: Int, bus: DeviceBus) {}
  }

  @Test func modelsMayBeClasses() throws {
    let model = Counter()
    let rig = try IOMMUFDRig(model: model)
    _ = rig.registers[0, 4]
    #expect(model.calls.value == 1)
    #expect(rig.machine.model(at: IOMMUFDRig.address, as: Counter.self) === model)
    #expect(rig.machine.model(at: IOMMUFDRig.address, as: EduModel.self) == nil)
    #expect(rig.machine.model(at: "0000:09:00.0", as: Counter.self) == nil)
    rig.close()
  }

  /// Keeps its bus and does DMA whenever it likes.
  struct Keeper: DeviceModel {
    let box = Box()
    var identity: DeviceIdentity { DeviceIdentity(vendor: 1, device: 2) }
    func read(bar: Int, offset: UInt64, width: Int, bus: DeviceBus) -> UInt64 { 0 }
    func write(_ value: UInt64, bar: Int, offset: UInt64, width: Int, bus: DeviceBus) {}
    func attach(to bus: DeviceBus) { box.bus = bus }
    final class Box: @unchecked Sendable { var bus: DeviceBus? }
  }

  @Test func modelsMayKeepTheirBus() throws {
    let model = Keeper()
    var rig: IOMMUFDRig? = try IOMMUFDRig(model: model)
    let bus = try #require(model.box.bus)
    try rig!.map(at: 0x1000)
    rig!.memory[8] = 0x1234_5678_9abc_def0
    #expect(try bus.load(0x1008, as: UInt64.self) == 0x1234_5678_9abc_def0)
    #expect(try bus.load(0x1008, as: UInt16.self) == 0xdef0)
    try bus.store(UInt32(0x55aa_55aa), to: 0x1010)
    #expect(rig!.memory[0x10] == 0x55aa_55aa)
    #expect(throws: DeviceBus.Failure.refused) { try bus.read(0x2000, byteCount: 4) }
    #expect(throws: DeviceBus.Failure.refused) { try bus.write([1], to: .max) }
    #expect(try bus.read(0x9000, byteCount: 0).isEmpty)
    try rig!.registers.setConfig(4, 0, width: 2)
    #expect(throws: DeviceBus.Failure.notBusMaster) { try bus.read(0x1000, byteCount: 4) }
    rig!.close()
    // The machine is not kept by its device.
    rig = nil
    #expect(throws: DeviceBus.Failure.gone) { try bus.read(0x1000, byteCount: 4) }
    bus.interrupt()
    bus.setPin(true)
    bus.wake(after: .seconds(1))
    #expect(!bus.usesMessages)
  }

  @Test func presetsAndDefaults() throws {
    let host = Host.simulated()
    #expect(host.isSimulated && host.kernel.name == "simulated")
    #expect(try host.kernel.listDirectory("/sys/bus/pci/devices") == ["0000:00:02.0"])
    let type1 = Host.simulated(interfaces: [.type1])
    #expect(throws: Errno.noEntry) { try type1.kernel.open("/dev/iommu") }
    let several = Host.simulated(.smmuv3, devices: ["0000:01:00.0": EduModel(), "02:00.0": NVMeModel()])
    #expect(try several.kernel.listDirectory("/sys/bus/pci/devices") == ["0000:01:00.0", "0000:02:00.0"])
  }

  @Test func wrongAddressesTrap() async {
    await #expect(processExitsWith: .failure) { _ = SimulatedHost(devices: ["nowhere": EduModel()]) }
    await #expect(processExitsWith: .failure) {
      _ = SimulatedHost(devices: ["03:00.0": EduModel(), "0000:03:00.0": EduModel()])
    }
  }
}
