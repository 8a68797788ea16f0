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
