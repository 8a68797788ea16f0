import IOMMU
import IOMMUSimulation
import Testing

/// On a simulated machine a remedy is one that works there: iommuctl would look for the device on the real one.
@Suite struct RemedyTests {
  private static let disk = "0000:00:03.0"

  /// An edu that is ready, and a disk that is the host's.
  private func machine(_ change: (inout SimulatedMachine) -> Void = { _ in }) -> Host {
    var machine = SimulatedMachine.vtd, device = SimulatedDevice(Self.disk, NVMeModel())
    (device.driver, device.hostDriver) = ("nvme", "nvme")
    machine.devices = [SimulatedDevice("0000:00:02.0", EduModel()), device]
    change(&machine)
    return SimulatedHost(machine).host
  }

  private static let call = "`try host.perform(host.plan(.bind, of: PCIAddress(\"\(disk)\")!))` in this process"

  /// What it says is done here as it is said, and works.
  @Test func bindingIsACallOfTheLibrary() throws {
    let host = machine()
    let error = #expect(throws: DMAError.self) { try Device(Self.disk, on: host) }
    #expect(error?.code == .notBound)
    #expect(error?.remedy == "Bind it to vfio-pci: \(Self.call); or name 0000:00:02.0, which is ready")
    let check = try host.preflight(for: address(Self.disk))[.driver]
    #expect(
      check.remedy == "Bind it, with its group, to vfio-pci: \(Self.call); or name 0000:00:02.0, which is ready; "
        + "nvme then loses it.")
    try Device("0000:00:02.0", on: host).close()
    try host.perform(host.plan(.bind, of: PCIAddress("0000:00:03.0")!))
    try Device(Self.disk, on: host).close()
  }

  /// Where no device is ready none is named.
  @Test func aGroupThatIsNotViable() throws {
    let host = machine { ($0.devices[0].group, $0.devices[1].group) = (0, 0) }
    let error = #expect(throws: DMAError.self) { try Device("0000:00:02.0", on: host) }
    let call = Self.call.replacing("00:03.0", with: "00:02.0")
    #expect(error?.code == .groupNotViable && error?.remedy == "Bind the whole group to vfio-pci: \(call)")
    for device in ["0000:00:02.0", nil] {
      let check = try host.preflight(for: device.map(address))[.groupViable]
      #expect(check.verdict == .fail && check.remedy?.hasPrefix("Bind the whole group: \(call)") == true)
    }
    let unbind = try host.preflight(for: address("00:02.0"))[.groupViable].remedy
    #expect(unbind?.contains("`try host.perform(host.plan(.unbind, of: PCIAddress(\"\(Self.disk)\")!))`") == true)
    try host.perform(host.plan(.unbind, of: address(Self.disk)))
    try Device("0000:00:02.0", on: host).close()
  }

  /// No remedy of opening sends the user to iommuctl, whatever fails.
  @Test(
    arguments: [
      { $0.iommu = nil }, { $0.isolatesInterrupts = false }, { ($0.interfaces, $0.hasDeviceNodes) = ([.type1], false) },
      { $0.interfaces = [.iommufd] }, { $0.devices[0].directRegions = [0x1000..<0x2000] },
      { $0.devices[0].isCoherent = false }, { $0.devices[0].driver = nil },
      {
        $0.devices[1].group = 0; $0.devices[0].group = 0
      },
    ] as [@Sendable (inout SimulatedMachine) -> Void])
  func nothingSendsToIommuctl(_ change: @Sendable (inout SimulatedMachine) -> Void) throws {
    let host = machine { change(&$0) }
    for interface in Interface.allCases {
      do { try Device("0000:00:02.0", on: host, interface: interface).close() } catch {
        #expect(error.remedy?.contains("iommuctl") == false, "\(error)")
      }
    }
    #expect(throws: DMAError.self) { try host.group(99) }
    do { _ = try host.group(99) } catch { #expect(error.remedy?.contains("iommuctl") == false, "\(error)") }
    for check in try host.preflight(for: address("00:02.0")).checks {
      #expect(check.remedy?.contains("iommuctl") != true, "\(check)")
    }
  }

  /// On a real machine it is iommuctl's.
  @Test func aRealMachineHasIommuctl() throws {
    let host = try Fixture.laptop.host()
    let error = #expect(throws: DMAError.self) { try Device("02:00.0", on: host) }
    #expect(error?.remedy == "Bind it to vfio-pci: `sudo iommuctl bind 0000:02:00.0`")
  }
}
