import IOMMU
import IOMMUSimulation
import Testing

/// Devices opened from descriptors that a launcher passed.
@Suite struct PassedDescriptorTests {
  private static let address = "0000:00:02.0"

  /// Opens a device from two descriptors of an interface.
  private static func open(_ interface: Interface, _ first: Int32, _ second: Int32, on host: Host) throws -> Device {
    switch interface {
    case .iommufd: try Device(address, characterDevice: first, iommufd: second, on: host)
    case .type1: try Device(address, group: first, container: second, on: host)
    }
  }

  private static func paths(_ interface: Interface, on machine: SimulatedHost) throws -> (String, String) {
    let device = try machine.host.device(PCIAddress(address)!)
    return interface == .iommufd
      ? ("/dev/vfio/devices/\(device.cdev!)", "/dev/iommu") : ("/dev/vfio/\(device.group!)", "/dev/vfio/vfio")
  }

  /// Closing it twice would close what another thread has opened in between.
  @Test(arguments: Interface.allCases)
  func oneDescriptorIsNotTwo(_ interface: Interface) throws {
    let machine = SimulatedHost(devices: [Self.address: EduModel()])
    let kernel = FaultingKernel(machine.kernel)
    let (first, second) = try Self.paths(interface, on: machine)
    for path in [first, second] {
      let descriptor = try kernel.open(path)
      let error = #expect(throws: DMAError.self) {
        try Self.open(interface, descriptor, descriptor, on: Host(kernel: kernel))
      }
      #expect(error?.code == .invalidArgument && error?.device == Self.address && error?.remedy != nil)
      #expect(kernel.count(of: "close") == 0, "it is the caller's still")
      kernel.close(descriptor)
      kernel.resetCounts()
    }
    #expect(machine.isClean)
  }

  /// Both are closed whichever call fails, and with the device.
  @Test(arguments: Interface.allCases)
  func bothAreClosed(_ interface: Interface) throws {
    for n in 1... {
      let machine = SimulatedHost(devices: [Self.address: EduModel()])
      let kernel = FaultingKernel(machine.kernel)
      let (first, second) = try Self.paths(interface, on: machine)
      let passed = (try kernel.open(first), try kernel.open(second))
      kernel.fail(n, with: .noDevice)
      do {
        try Self.open(interface, passed.0, passed.1, on: Host(kernel: kernel)).close()
      } catch { #expect(kernel.hasFailed, "\(error)") }
      #expect(machine.isClean, "\(n) \(kernel.failedName ?? "-"): \(machine.kernel.census)")
      if !kernel.hasFailed { break }
    }
  }
}
