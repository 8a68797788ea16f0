import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// What happens when the kernel does not unmap.
@Suite struct UnmapTests {
  @Test(arguments: Interface.allCases)
  func memoryOfAFailedUnmapIsKept(_ interface: Interface) throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    let kernel = FaultingKernel(machine.kernel)
    let device = try Device("0000:00:02.0", on: Host(kernel: kernel), interface: interface, translation: .kernel)
    let dma = device.dma, unmap = interface == .iommufd ? "ioasUnmap" : "vfioUnmap"
    let buffer = try dma.buffer(byteCount: 5000), start = TranslateTests.start(buffer)
    let mapping = try dma.map(buffer, .bidirectional), address = mapping.address
    kernel.fail(1, of: unmap, with: .inputOutput)
    do throws(DMAError) {
      _ = try mapping.unmap()
      Issue.record("unmapped")
    } catch {
      #expect(error.errno == .inputOutput && error.operation == "unmap" && error.device == "0000:00:02.0")
      #expect(error.address == address.rawValue && error.byteCount == 5000 && error.remedy != nil)
    }
    #expect(dma.statistics.leakedBytes == 8192 && dma.statistics.systemCalls == 2)
    // Dropped, with nobody to tell: the same.
    kernel.fail(1, of: unmap, with: .inputOutput)
    _ = try dma.map(try dma.buffer(byteCount: 1), .toDevice)
    #expect(dma.statistics.leakedBytes == 8192 + 4096)
    for _ in 0..<100 {
      let other = try dma.buffer(byteCount: 4096)
      #expect(!(start..<start + 8192).contains(TranslateTests.start(other)))
      #expect(try dma.map(other, .toDevice).address != address)
    }
    device.close()
    #expect(machine.kernel.census.pinnedBytes == 0 && machine.kernel.census.descriptors == 0)
  }

  /// Somebody who has the container as well has unmapped it: type1 answers 0 bytes and no error.
  @Test func anUnmapThatFindsNothing() throws {
    let machine = SimulatedHost(devices: ["0000:00:02.0": EduModel(addressBits: 64)])
    let group = try machine.kernel.open("/dev/vfio/\(try machine.host.device(PCIAddress("0000:00:02.0")!).group!)")
    let container = try machine.kernel.open("/dev/vfio/vfio")
    let device = try Device("0000:00:02.0", group: group, container: container, on: machine.host), dma = device.dma
    let mapping = try dma.map(try dma.buffer(byteCount: 5000), .bidirectional), address = mapping.address
    let done = try machine.kernel.vfioUnmap(container, flags: 0, iova: address.rawValue, byteCount: 8192)
    #expect(done == 8192)
    do throws(DMAError) {
      _ = try mapping.unmap()
      Issue.record("unmapped")
    } catch {
      #expect(error.code == .mismatch && error.detail?.contains("unmapped 0 bytes") == true && error.remedy != nil)
    }
    #expect(dma.statistics.leakedBytes == 8192 && dma.statistics.systemCalls == 2)
    #expect(dma.statistics.unmaps == 0 && dma.statistics.liveMappings == 1)
    // Nobody else gets the address.
    #expect(try dma.map(try dma.buffer(byteCount: 5000), .toDevice).address != address)
    device.close()
    #expect(machine.kernel.census.pinnedBytes == 0 && machine.kernel.census.descriptors == 0)
  }
}
