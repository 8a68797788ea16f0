import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Scatter lists when the kernel refuses.
@Suite struct ListTests {
  private func list(_ dma: DMADomain, _ count: Int) throws -> ScatterList {
    var list = ScatterList()
    for _ in 0..<count { list.append(try dma.buffer(byteCount: 4096)) }
    return list
  }

  /// A part cannot be mapped, and those before it cannot be unmapped: the device still reaches their memory, so no buffer
  /// may get it again, and nothing its addresses.
  @Test(arguments: Interface.allCases)
  func memoryThatIsStuckIsNotUsedAgain(_ interface: Interface) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel)
    do {
      let device = try Device("0000:00:02.0", on: Host(kernel: kernel), interface: interface, translation: .kernel)
      var parts = try list(device.dma, 3)
      let memory = (0..<3).map { parts.withBuffer(at: $0) { TranslateTests.start($0) } }
      // The third map and all calls after it: the unmap of the first two among them.
      kernel.failFrom(3, with: .noMemory)
      do throws(DMAError) {
        _ = try device.dma.map(parts, .bidirectional)
        Issue.record("mapped")
      } catch {
        #expect(error.errno == .noMemory && error.operation == "map(list)" && error.device == "0000:00:02.0")
        #expect(error.detail?.contains("could not be unmapped") == true && error.remedy != nil)
      }
      kernel.passAll()
      #expect(device.dma.statistics.leakedBytes == 3 * 4096)
      let others = try list(device.dma, 200)
      let mapped = try device.dma.map(others, .bidirectional)
      var again = try mapped.unmap()
      for index in 0..<200 { #expect(!memory.contains(again.withBuffer(at: index) { TranslateTests.start($0) })) }
      device.close()
    }
  }

  @Test func buffersOfAnotherDomainAreRefused() throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(), "0000:00:03.0": EduModel()])
    do {
      let first = try Device("0000:00:02.0", on: machine.host), second = try Device("0000:00:03.0", on: machine.host)
      var parts = try list(first.dma, 2)
      parts.append(try second.dma.buffer(byteCount: 1))
      do throws(DMAError) {
        _ = try first.dma.map(parts, .toDevice)
        Issue.record("mapped")
      } catch { #expect(error.code == .invalidArgument && error.device == "0000:00:02.0") }
      #expect(first.dma.statistics.maps == 0)
      first.close()
      second.close()
    }
    #expect(machine.isClean)
  }
}
