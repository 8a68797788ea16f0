import CapturedTrees
import IOMMU
import IOMMUSimulation
import Testing

@Suite struct HostSystemTests {
  @Test func reasonsWhyNothingCanBeDriven() throws {
    let noIOMMU = #expect(throws: DMAError.self) { try Fixture.plainVM.host().requireDrivable() }
    #expect(noIOMMU?.code == .noIOMMU && noIOMMU?.remedy?.contains("intel-iommu") == true)
    #expect(noIOMMU?.description.contains("..") == false)
    let noSysfs = #expect(throws: DMAError.self) {
      try Host(kernel: TreeKernel(CapturedTree())).requireDrivable()
    }
    #expect(noSysfs?.code == .corruptTree)
    let noNodes = #expect(throws: DMAError.self) {
      try Fixture.type1Only.host { $0["/dev/vfio/vfio"] = nil }.requireDrivable()
    }
    #expect(noNodes?.code == .notSupported && noNodes?.remedy != nil)
    try Fixture.laptop.host().requireDrivable()
    try Fixture.type1Only.host().requireDrivable()
    try Fixture.laptop.host { $0["/dev/vfio/vfio"] = nil }.requireDrivable()
  }

  @Test func fallsBackByNameOnly() {
    let host = Host.system(or: .simulated())
    do {
      _ = try Host.system()
      #expect(!host.isSimulated)
    } catch {
      #expect(host.isSimulated && error.remedy != nil)
    }
    #expect(!Host.local().isSimulated && !Host.local().isCaptured)
  }

  /// The simulated machine shows the same files.
  @Test func simulatedMachine() throws {
    let host = Host.simulated()
    let device = try #require(try host.devices(named: false).first { $0.address == address("00:02.0") })
    #expect(device.unread.isEmpty && device.status == .ready)
    #expect(try host.units().count == 1)
    let group = try host.group(#require(device.group))
    #expect(group.viable == true && group.unread.isEmpty)
    #expect(try host.reservedRegions(ofGroup: group.id).unread.isEmpty)
    #expect(try host.details(of: device.address).unread.isEmpty)
    let failing = try host.preflight(for: device.address).checks.filter { $0.verdict == .fail }
    #expect(failing.isEmpty, "\(failing)")
  }
}
