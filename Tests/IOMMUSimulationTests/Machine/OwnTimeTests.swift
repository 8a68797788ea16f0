import IOMMU
import IOMMUSimulation
import Testing

/// A machine whose clock does not follow the real one.
@Suite struct OwnTimeTests {
  private static func machine(_ devices: [String: any DeviceModel] = [:]) -> SimulatedHost {
    var machine = SimulatedMachine.vtd
    machine.followsRealTime = false
    return SimulatedHost(machine, devices: devices)
  }

  /// It stands still until something takes time.
  @Test func onlyWhatIsChargedAndSleptPasses() throws {
    let machine = Self.machine([IOMMUFDRig.address: EduModel(addressBits: 64)]), kernel = machine.kernel
    #expect(kernel.now() > 0, "0 means no time")
    let began = kernel.now()
    #expect(try kernel.waitReadable([try kernel.createEvent()], timeout: .zero) == nil)
    #expect(kernel.now() == began && kernel.coarseNow() == began)
    kernel.sleep(.nanoseconds(7))
    #expect(kernel.now() == began + 7)
    let charged = machine.chargedTime, before = kernel.now()
    let device = try Device(IOMMUFDRig.address, on: machine.host, translation: .process)
    let taken = kernel.now() - before
    #expect(machine.chargedTime - charged == .nanoseconds(Int64(taken)) && taken > 0)
    device.close()
  }

  /// Who waits in vain finds that the time is up.
  @Test func waitingInVain() throws {
    let kernel = Self.machine().kernel, event = try kernel.createEvent(), began = kernel.now()
    #expect(try kernel.waitReadable([event], timeout: .seconds(3600)) == nil)
    #expect(kernel.now() == began + 3_600_000_000_000)
    try kernel.signalEvent(event)
    #expect(try kernel.waitReadable([event], timeout: .seconds(3600)) == 0)
    #expect(kernel.now() == began + 3_600_000_000_000)
    kernel.close(event)
  }
}

/// What a request of a device takes, without data.
@Suite struct TouchTests {
  private static let address = IOMMUFDRig.address

  /// Four tables for the first page, one entry for its neighbour, nothing for what is cached; in the simulation's own format one each.
  /// What the second stage of a VT-d takes beside does not count.
  @Test(arguments: [(SimulatedMachine.smmuv3Nested, [4, 1, 0]), (.vtdNested, [4, 1, 0]), (.vtd, [1, 1, 0])])
  func tableReads(_ preset: SimulatedMachine, _ expected: [Int]) throws {
    let machine = SimulatedHost(preset, devices: [Self.address: EduModel(addressBits: 64)])
    let device = try Device(Self.address, on: machine.host, translation: .process)
    let mapping = try device.dma.map(try device.dma.buffer(byteCount: 8192), .fromDevice)
    let first = mapping.address.rawValue
    func touch(_ iova: UInt64, _ byteCount: Int = 8, isWrite: Bool = true) -> Int? {
      machine.kernel.deviceTouches(PCIAddress(Self.address)!, iova, byteCount: byteCount, isWrite: isWrite)
    }
    let reads = [touch(first), touch(first + 4096), touch(first, 8192)]
    #expect(reads == expected && machine.counters.bytesWritten == 0 && machine.faults.isEmpty)
    #expect(touch(first + 8192) == nil && machine.faults.map(\.iova) == [first + 8192])
    #expect(machine.faults.allSatisfy(\.isWrite) && touch(first + 4090, 16, isWrite: false) == 0)
    _ = try mapping.unmap()
    device.close()
    #expect(touch(first) == nil)
  }
}
