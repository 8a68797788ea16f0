import CapturedTrees
import IOMMU
import IOMMUSimulation
import Testing

@Suite struct HostDevicesTests {
  @Test func laptopDevices() throws {
    let devices = try Fixture.laptop.host().devices()
    #expect(devices.count == 17)
    #expect(devices.map(\.address) == devices.map(\.address).sorted())
    #expect(devices.allSatisfy { $0.unread.isEmpty })
    let disk = try #require(devices.first { $0.address == address("02:00.0") })
    #expect((disk.vendor, disk.device) == (0x144d, 0xa808))
    #expect((disk.subsystemVendor, disk.subsystemDevice) == (0x144d, 0xa808))
    #expect(disk.classCode == 0x010802)
    #expect((disk.driver, disk.driverOverride, disk.cdev) == ("nvme", nil, nil))
    #expect((disk.group, disk.unit, disk.numaNode) == (6, "dmar1", nil))
    #expect((disk.rootBus, disk.upstream) == ("pci0000:00", [address("00:1d.0")]))
    #expect((disk.status, disk.reason) == (.bindable, nil))
  }

  @Test(arguments: [
    ("05:00.0", PCIDevice.Status.ready, nil as String?),
    ("00:1c.0", .blocked, "A bridge is the kernel's to drive"),
    ("04:00.0", .blocked, "0000:04:01.0 (snd_ens1371) of its group is bound to a host driver"),
    ("04:01.0", .bindable, nil),
    ("00:1f.3", .bindable, "Binding its group takes 0000:00:1f.4 (i801_smbus) as well"),
    ("00:14.2", .bindable, "Binding its group takes 0000:00:14.0 (xhci_hcd) as well"),
  ])
  func laptopStatus(text: String, status: PCIDevice.Status, reason: String?) throws {
    let host = try Fixture.laptop.host()
    let device = try host.device(address(text), named: false)
    #expect((device.status, device.reason) == (status, reason))
    // The list and the single device tell the same.
    #expect(try host.devices(named: false).first { $0.address == device.address } == device)
  }

  @Test func serverDevices() throws {
    let devices = try Fixture.server.host().devices(named: false)
    let function = try #require(devices.first { $0.address == address("0002:01:00.1") })
    #expect((function.driver, function.cdev, function.status) == ("mlx5_vfio_pci", "vfio0", .ready))
    #expect((function.unit, function.numaNode) == ("smmu3.0x0000000050000000", 1))
    #expect(devices.map(\.address.domain) == [0, 0, 0, 2, 2, 2, 2])
  }

  @Test func withoutIOMMU() throws {
    for device in try Fixture.plainVM.host().devices(named: false) {
      #expect((device.group, device.unit, device.numaNode, device.status) == (nil, nil, nil, .blocked))
    }
    let device = try Fixture.noIOMMU.host().device(address("00:05.0"), named: false)
    #expect((device.status, device.cdev) == (.blocked, nil))
    #expect(device.reason?.contains("no-IOMMU") == true)
  }

  @Test func kernelWithoutDeviceNodes() throws {
    let device = try Fixture.type1Only.host().device(address("00:01.0"), named: false)
    #expect((device.status, device.cdev) == (.ready, nil))
  }

  @Test func filesOfTheirOwnStandInForUevent() throws {
    let host = try Fixture.laptop.host { tree in
      let path = tree.path(of: "0000:02:00.0")
      tree.entries["\(path)/uevent"] = nil
      tree["\(path)/vendor"] = "0x144d\n"
      tree["\(path)/device"] = "0xa808\n"
      tree["\(path)/class"] = "0x010802\n"
      tree["\(path)/subsystem_vendor"] = "0x144d\n"
    }
    let disk = try host.device(address("02:00.0"), named: false)
    #expect((disk.vendor, disk.device, disk.classCode) == (0x144d, 0xa808, 0x010802))
    #expect((disk.subsystemVendor, disk.subsystemDevice) == (0x144d, nil))
    #expect(disk.unread.isEmpty)
  }

  @Test func noSuchDeviceAndNoTree() throws {
    let host = Host(kernel: TreeKernel(try Fixture.laptop.tree) { $0.isSimulated = true })
    let missing = #expect(throws: DMAError.self) { try host.device(address("77:00.0")) }
    #expect((missing?.code, missing?.device, missing?.errno) == (.noSuchDevice, "0000:77:00.0", .noEntry))
    #expect((missing?.operation, missing?.remedy?.hasSuffix("0000:00:1d.0 …")) == ("find", true))
    let simulated = #expect(throws: DMAError.self) { try Host.simulated().device(address("77:00.0")) }
    #expect(simulated?.remedy == "The simulated machine has 0000:00:02.0")
    // No machine has a device there, and some have no devices at all.
    let here = #expect(throws: DMAError.self) { try Host.local().device(address("fffe:ff:1f.7")) }
    if here?.code == .noSuchDevice {
      #expect(here?.remedy == "`iommuctl list` shows the devices of this machine")
    }
    let captured = Host(kernel: TreeKernel(try Fixture.laptop.tree), isCaptured: true)
    let elsewhere = #expect(throws: DMAError.self) { try captured.device(address("77:00.0")) }
    #expect(elsewhere?.remedy?.contains("--root") == true)
    let empty = Host(kernel: TreeKernel(CapturedTree()))
    for call in [{ _ = try empty.devices() }, { _ = try empty.groups() }, { _ = try empty.units() }]
      as [() throws -> Void]
    {
      #expect(throws: DMAError.self) { try call() }
    }
    var pciless = CapturedTree()
    pciless.entries["/sys/devices"] = .directory
    #expect(try Host(kernel: TreeKernel(pciless)).devices().isEmpty)
    pciless.entries["/sys/bus/pci/devices"] = .failure(13)
    let denied = #expect(throws: DMAError.self) { try Host(kernel: TreeKernel(pciless)).devices() }
    #expect(denied?.code == .permission)
  }

  #if PCINames
    @Test func namesWherePCIIDsIs() throws {
      let devices = try Fixture.laptop.host().devices()
      // Which names there are is for the machine's pci.ids to say; without one there are none, and no failure.
      let disk = try #require(devices.first { $0.address == address("02:00.0") })
      if let name = disk.name { #expect(name.hasPrefix("Samsung")) }
    }

    @Test func namesFromManyThreads() async throws {
      let host = try Fixture.laptop.host()
      let names = try await withThrowingTaskGroup { group in
        for _ in 0..<8 { group.addTask { try host.devices().map(\.name) } }
        return try await group.reduce(into: Set<[String?]>()) { $0.insert($1) }
      }
      #expect(names.count == 1)
    }
  #endif
}
