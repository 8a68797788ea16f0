import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// A device is closed while other threads use it: they are told, and nothing is left.
@Suite struct CloseRaceTests {
  @Test(arguments: Interface.allCases)
  func closingUnderEverybodysHands(_ interface: Interface) async throws {
    for round in 0..<10 {
      let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
      let failures = try await Self.play(machine, interface, round)
      #expect(failures.isEmpty)
      // The threads let go of what they used a moment after they are done.
      for _ in 0..<5000 where !machine.kernel.census.isEmpty { try await Task.sleep(for: .milliseconds(1)) }
      #expect(machine.isClean, "\(machine.kernel.census)")
    }
  }

  /// A map is inside the kernel when the device is closed: nothing is taken apart before it is back, and no other begins.
  @Test(arguments: Interface.allCases)
  func closingWaitsForAMapUnderWay(_ interface: Interface) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel)
    let isClosed = Shared(false)
    do {
      let device = try Device("0000:00:02.0", on: Host(kernel: kernel), interface: interface, translation: .kernel)
      let dma = device.dma
      let other = try dma.map(try dma.buffer(byteCount: 4096), .toDevice)
      kernel.interject(before: interface == .iommufd ? "ioasMap" : "vfioMap") {
        inThread {
          device.close()
          isClosed.change { $0 = true }
        }
        for _ in 0..<50_000 where !dma.isClosed { usleep(100) }
        usleep(20_000)
        #expect(!isClosed.value)
        for call in ["vfioDetach", "ioasUnmap", "vfioUnsetContainer", "iommufdDestroy"] {
          #expect(kernel.count(of: call) == 0, "\(call)")
        }
        let error = #expect(throws: DMAError.self) { _ = try dma.buffer(byteCount: 1) }
        #expect(error?.code == .closed)
      }
      let mapping = try dma.map(try dma.buffer(byteCount: 100), .toDevice)
      // Both come back, with the kernel's own unmap-all.
      _ = try mapping.unmap()
      _ = try other.unmap()
      #expect(dma.statistics.liveMappings == 0 && dma.statistics.leakedBytes == 0)
      #expect(dma.statistics.systemCalls == 2)
      for _ in 0..<50_000 where !isClosed.value { usleep(100) }
    }
    #expect(machine.isClean, "\(machine.kernel.census)")
  }

  /// A buffer comes back from a domain that is being closed when the device is detached, and not before.
  @Test(arguments: Interface.allCases)
  func unmappingWaitsForTheDetach(_ interface: Interface) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel)
    let isDetaching = Shared(false), isBack = Shared(false), isClosed = Shared(false), isEarly = Shared(false)
    do {
      let device = try Device("0000:00:02.0", on: Host(kernel: kernel), interface: interface, translation: .kernel)
      let dma = device.dma
      let mapping = try dma.map(try dma.buffer(byteCount: 100), .bidirectional)
      kernel.interject(before: interface == .iommufd ? "vfioDetach" : "vfioUnsetContainer") {
        isDetaching.change { $0 = true }
        usleep(20_000)
        isEarly.change { $0 = isBack.value }
      }
      inThread {
        device.close()
        isClosed.change { $0 = true }
      }
      for _ in 0..<50_000 where !isDetaching.value { usleep(100) }
      _ = try mapping.unmap()
      isBack.change { $0 = true }
      #expect(dma.statistics.systemCalls == 1 && dma.statistics.liveMappings == 0)
      for _ in 0..<50_000 where !isClosed.value { usleep(100) }
      #expect(!isEarly.value, "the device still reached it")
    }
    #expect(machine.isClean, "\(machine.kernel.census)")
  }

  private static func play(_ machine: SimulatedHost, _ interface: Interface, _ round: Int) async throws -> [String] {
    let device = try Device("0000:00:02.0", on: machine.host, interface: interface)
    let interrupt = try device.interrupt(0), registers = try device.registers(bar: 0), dma = device.dma
    return await inThreads(6) { thread in
      if thread == 5 {
        usleep(UInt32(500 + 300 * round))
        return device.close()
      }
      while true {
        do throws(DMAError) {
          switch thread {
          case 0: _ = try dma.map(try dma.buffer(byteCount: 100), .toDevice).unmap()
          case 1:
            var list = ScatterList()
            for _ in 0..<3 { list.append(try dma.buffer(byteCount: 4096)) }
            _ = try dma.map(list, .fromDevice)
          case 2:
            let array = try dma.allocate(UInt64.self, count: 600)
            let address = unsafe dma.translate(array.unsafeBaseAddress)
            precondition(address == array.address)
          case 3: try interrupt.wait(timeout: .seconds(60))
          default:
            _ = registers[0]
            _ = try device.config.command()
            try interrupt.trigger()
            _ = try device.interrupt(0)
            _ = device.dma.faults.count
          }
        } catch {
          if error.code == .closed { return }
          throw error
        }
      }
    }
  }
}
