import AddressSpace
import IOMMU
import IOMMUSimulation
import Testing

/// Devices that share a domain.
@Suite struct SharingTests {
  private static let devices = ["0000:00:02.0": EduModel(), "0000:00:03.0": EduModel()]

  /// Descriptors of one machine mean nothing on another, or something else.
  @Test func aDomainOfAnotherMachineIsRefused() throws {
    let first = SimulatedHost(devices: Self.devices), second = SimulatedHost(devices: Self.devices)
    do {
      let device = try Device("0000:00:02.0", on: first.host)
      do throws(DMAError) {
        _ = try Device("0000:00:03.0", on: second.host, sharing: device.dma)
        Issue.record("opened")
      } catch { #expect(error.code == .invalidArgument && error.remedy != nil) }
      device.close()
    }
    #expect(first.isClean && second.isClean)
  }

  /// The last device leaves while another is on its way in: the domain goes on for it, or it is told.
  @Test(arguments: Interface.allCases, ["vfioDeviceInfo", "vfioInterruptInfo", "createEvent"])
  func joiningWhileTheLastLeaves(_ interface: Interface, _ moment: String) throws {
    let machine = SimulatedHost(devices: Self.devices)
    let kernel = FaultingKernel(machine.kernel)
    do {
      let host = Host(kernel: kernel)
      let first = try Device("0000:00:02.0", on: host, interface: interface)
      let dma = first.dma
      kernel.interject(before: moment) { first.close() }
      let second = try Device("0000:00:03.0", on: host, sharing: dma)
      #expect(first.isClosed && !dma.isClosed)
      let mapping = try second.dma.map(try second.dma.buffer(byteCount: 64), .toDevice)
      _ = try mapping.unmap()
      second.close()
      #expect(dma.isClosed)
      #expect(throws: DMAError.self) { _ = try Device("0000:00:03.0", on: host, sharing: dma) }
    }
    #expect(machine.isClean)
  }
}
