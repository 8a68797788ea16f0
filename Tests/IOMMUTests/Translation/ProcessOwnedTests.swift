import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Page tables of the process: what maps and unmaps cost, what the device reaches, and what is left when calls fail.
@Suite struct ProcessOwnedTests {
  static let address = "0000:00:02.0"

  /// A device over tables of the process, with the kernel in between and the registers of its edu.
  struct Rig {
    let machine: SimulatedHost
    let kernel: FaultingKernel
    let device: Device
    let bar: Registers

    init(_ machine: SimulatedMachine = .vtd) throws {
      self.machine = SimulatedHost(machine, devices: [address: EduModel(addressBits: 64)])
      kernel = FaultingKernel(self.machine.kernel)
      device = try Device(address, on: Host(kernel: kernel), translation: .process)
      bar = try device.registers(bar: 0)
    }

    /// How many calls there were, but for those of the thread that waits for the device's events, which comes when it likes.
    var calls: Int { kernel.names.count { $0 != "waitReadable" } }

    /// Whether a write of the device to an address goes through.
    func writes(_ address: IOVA) throws -> Bool {
      let faults = machine.faults.count
      try EndToEndTests.transfer(bar, address, 8, toDevice: false)
      return machine.faults.count == faults
    }
  }

  @Test func buffersOfTheArenaCostNoSystemCall() throws {
    let rig = try Rig(), dma = rig.device.dma
    let first = try dma.buffer(byteCount: 5000)  // the arena grows, and its chunk is registered
    let (before, calls) = (dma.statistics, rig.calls)
    let mapping = try dma.map(first, .bidirectional), address = mapping.address
    #expect(rig.calls == calls && dma.statistics.systemCalls == before.systemCalls)
    #expect(try rig.writes(address))
    let counters = rig.machine.counters
    _ = try mapping.unmap()
    #expect(rig.kernel.count(of: "hwptInvalidate") == 1 && dma.statistics.systemCalls == before.systemCalls + 1)
    #expect(rig.machine.counters.processInvalidations == counters.processInvalidations + 1)
    #expect(rig.machine.counters.processSyncs == counters.processSyncs + 1)
    #expect(rig.machine.counters.invalidations == counters.invalidations, "none of the kernel's")
    #expect(try !rig.writes(address))
    #expect(dma.statistics.implicitRegistrations == 0)
    rig.device.close()
  }

  @Test func aListIsOneInvalidation() throws {
    let rig = try Rig(), dma = rig.device.dma
    var list = ScatterList()
    for _ in 0..<64 { list.append(try dma.buffer(byteCount: 4096)) }
    let mapped = try dma.map(list, .bidirectional), last = mapped.address(ofBufferAt: 63)
    #expect(try rig.writes(last))
    _ = try mapped.unmap()
    #expect(rig.machine.counters.processInvalidations == 1 && rig.machine.counters.processSyncs == 1)
    #expect(try !rig.writes(last))
    rig.device.close()
  }

  /// Foreign memory is pinned while it is mapped, no longer, and counted.
  @Test func foreignMemoryIsRegisteredForTheMapping() throws {
    let rig = try Rig(), dma = rig.device.dma
    let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 8192, alignment: 4096)
    defer { unsafe page.deallocate() }
    let before = rig.machine.kernel.census.pinnedBytes
    let mapping = try unsafe dma.map(unsafe: UnsafeRawBufferPointer(page), .bidirectional), address = mapping.address
    #expect(rig.machine.kernel.census.pinnedBytes == before + 8192)
    #expect(dma.statistics.implicitRegistrations == 1 && dma.statistics.systemCalls == 1)
    #expect(try rig.writes(address + 4096))
    try mapping.unmap()
    #expect(rig.machine.kernel.census.pinnedBytes == before)
    #expect(dma.statistics.systemCalls == 3, "map, invalidate, unregister")
    #expect(try !rig.writes(address + 4096))
    // Memory that the device may only read needs no right to be written.
    let again = try unsafe dma.map(unsafe: UnsafeRawBufferPointer(page), .toDevice)
    #expect(try !rig.writes(again.address))
    try again.unmap()
    #expect(dma.statistics.implicitRegistrations == 2)
    rig.device.close()
    #expect(dma.statistics.leakedBytes == 0)
  }

  /// The coherent arena is registered once, by its file, and mapped in stage 1 as well.
  @Test func coherentMemory() throws {
    let rig = try Rig(), dma = rig.device.dma
    let array = try dma.allocate(UInt64.self, count: 512)
    #expect(try rig.writes(array.address))
    #expect(dma.statistics.arenaAreas == 1 && dma.statistics.arenaFileAreas == 1)
    #expect(rig.kernel.count(of: "ioasMapFile") == 1 && rig.kernel.count(of: "ioasMap") == 0)
    #expect(dma.statistics.coherentArenaBytes == rig.machine.kernel.census.pinnedBytes)
    rig.device.close()
    let without = { () -> SimulatedMachine in
      var machine = SimulatedMachine.vtd
      machine.mapsFiles = false
      return machine
    }()
    let other = try Rig(without)
    let memory = try other.device.dma.allocate(UInt64.self, count: 512)
    #expect(try other.writes(memory.address))
    #expect(other.device.dma.statistics.arenaFileAreas == 0 && other.kernel.count(of: "ioasMap") == 1)
    other.device.close()
  }

  /// Memory of the library's own cannot be registered again; and the refusal takes nothing from who has it.
  @Test func aRefusedRegistrationIsNobodyElses() throws {
    let rig = try Rig(), dma = rig.device.dma
    let array = try dma.allocate(UInt64.self, count: 512)
    let pinned = rig.machine.kernel.census.pinnedBytes
    let page = unsafe UnsafeRawBufferPointer(start: array.unsafeBaseAddress, count: 4096)
    #expect(throws: DMAError.self) { _ = try unsafe dma.register(unsafe: page).byteCount }
    #expect(rig.machine.kernel.census.pinnedBytes == pinned)
    #expect(try rig.writes(array.address))
    rig.device.close()
  }

  /// The negative control: the second invalidation is reported and not done.
  @Test func aSwallowedInvalidationShows() throws {
    let rig = try Rig(), dma = rig.device.dma
    rig.kernel.swallowInvalidation(2)
    var reached: [Bool] = []
    for _ in 0..<3 {
      let mapping = try dma.map(try dma.buffer(byteCount: 64), .bidirectional), address = mapping.address
      #expect(try rig.writes(address))
      _ = try mapping.unmap()
      reached.append(try rig.writes(address))
    }
    #expect(reached == [false, true, false] && rig.kernel.swallowedInvalidationCount == 1)
    rig.device.close()
  }

  @Test func memoryOfAFailedInvalidationIsKept() throws {
    let rig = try Rig(), dma = rig.device.dma
    let mapping = try dma.map(try dma.buffer(byteCount: 5000), .bidirectional), address = mapping.address
    rig.kernel.fail(1, of: "hwptInvalidate", with: .inputOutput)
    do throws(DMAError) {
      _ = try mapping.unmap()
      Issue.record("unmapped")
    } catch { #expect(error.errno == .inputOutput && error.operation == "unmap" && error.remedy != nil) }
    #expect(dma.statistics.leakedBytes == 8192 && dma.statistics.systemCalls == 1)
    for _ in 0..<10 {
      #expect(try dma.map(try dma.buffer(byteCount: 4096), .toDevice).address != address)
    }
    rig.device.close()
    #expect(rig.machine.kernel.census.pinnedBytes == 0 && rig.machine.kernel.census.descriptors == 0)
  }

  /// Nested tables, then all of stage 2, its one area and then whatever else there might be, then the parent, then the IOAS.
  @Test func teardownIsOrdered() throws {
    let rig = try Rig(), dma = rig.device.dma
    var list = ScatterList()
    for _ in 0..<64 { list.append(try dma.buffer(byteCount: 4096)) }
    let mapped = try dma.map(list, .bidirectional)
    #expect(try rig.writes(mapped.address))
    let before = rig.machine.counters
    rig.kernel.resetCounts()
    rig.device.close()
    let order = rig.kernel.names.filter {
      ["vfioDetach", "iommufdDestroy", "ioasUnmap", "hwptInvalidate"].contains($0)
    }
    #expect(order == ["vfioDetach", "iommufdDestroy", "ioasUnmap", "ioasUnmap", "iommufdDestroy", "iommufdDestroy"])
    #expect(rig.machine.counters.invalidations == before.invalidations + 1, "the flush of the tag")
    #expect(rig.machine.counters.processInvalidations == before.processInvalidations)
    _ = try mapped.unmap().count
    #expect(rig.machine.kernel.census.pinnedBytes == 0 && rig.machine.kernel.census.pageTables == 0)
  }
}
