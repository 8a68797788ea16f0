import AddressSpace
import CapturedTrees
import IOMMU
import Testing

@Suite struct HostGroupsTests {
  @Test func laptopGroups() throws {
    let groups = try Fixture.laptop.host().groups()
    #expect(groups.map(\.id) == Array(0..<12))
    #expect(groups.allSatisfy { $0.unread.isEmpty && $0.type == "DMA-FQ" && !$0.isNoIOMMU })
    #expect(groups[1].unit == "dmar0" && groups[9].unit == "dmar1")
    #expect(groups[9].devices == ["03:00.0", "04:00.0", "04:01.0"].map(address))
    // The bridge has no driver, one function has VFIO's, the other the host's.
    #expect((groups[9].viable, groups[9].culprit?.description) == (false, "0000:04:01.0 (snd_ens1371)"))
    #expect((groups[3].viable, groups[3].culprit) == (true, nil))  // pcieport
    #expect(groups[11].viable == true)  // vfio-pci
    #expect(groups[0].viable == true)  // no driver
    #expect(groups[6].culprit?.driver == "nvme")
  }

  @Test(arguments: [
    ("vfio-pci", true), ("mlx5_vfio_pci", true), ("nvgrace-gpu-vfio-pci", true), ("pci-stub", true),
    ("pcieport", true), ("shpchp", true), ("nvme", false), ("xen-pciback", false), ("uio_pci_generic", false),
  ])
  func viabilityByDriver(driver: String, viable: Bool) throws {
    let host = try Fixture.laptop.host { tree in
      tree.entries["\(tree.path(of: "0000:02:00.0"))/driver"] = .link("../../../../bus/pci/drivers/\(driver)")
    }
    #expect(try host.group(6).viable == viable)
  }

  @Test func unreadableDriverLeavesItOpen() throws {
    let host = try Fixture.laptop.host { tree in
      tree.entries["\(tree.path(of: "0000:04:00.0"))/driver"] = .failure(13)
      tree.entries["\(tree.path(of: "0000:05:00.0"))/driver"] = .failure(13)
    }
    #expect(try host.group(11).viable == nil)
    #expect(try host.group(11).culprit == nil)
    #expect(try host.group(9).viable == false)  // Another member decides it.
    let device = try host.device(address("05:00.0"), named: false)
    #expect(device.status == .unknown && device.unread.count == 1)
  }

  @Test func membersThatAreNotPCI() throws {
    let host = try Fixture.laptop.host { tree in
      tree.entries["/sys/kernel/iommu_groups/11/devices/fe000000.ethernet"] =
        .link("../../../../devices/platform/fe000000.ethernet")
      tree.entries["/sys/devices/platform/fe000000.ethernet/driver"] = .link(
        "../../../bus/platform/drivers/dwmac")
    }
    let group = try host.group(11)
    #expect(group.members.count == 2 && group.devices.count == 1)
    #expect(group.culprit?.description == "fe000000.ethernet (dwmac)")
    #expect(try host.device(address("05:00.0"), named: false).status == .blocked)
  }

  @Test func noSuchGroup() throws {
    let error = #expect(throws: DMAError.self) { try Fixture.laptop.host().group(99) }
    #expect((error?.code, error?.device) == (.noSuchDevice, "group 99"))
    #expect(throws: DMAError.self) { try Fixture.laptop.host().reservedRegions(ofGroup: 99) }
    #expect(try Fixture.plainVM.host().groups().isEmpty)
    #expect(try Fixture.noIOMMU.host().group(0).isNoIOMMU)
    #expect(try Fixture.noIOMMU.host().group(0).viable == false)
  }

  @Test func reservedRegions() throws {
    let regions = try Fixture.laptop.host().reservedRegions(ofGroup: 1)
    #expect(regions.regions.map(\.type) == [.directRelaxable, .msi])
    #expect(regions.regions[1].range.start.rawValue == 0xfee0_0000)
    #expect(regions.regions[1].range.last.rawValue == 0xfeef_ffff)
    #expect(regions.unread.isEmpty)
    #expect(try Fixture.noIOMMU.host().reservedRegions(ofGroup: 0).regions.isEmpty)
    #expect(try Fixture.server.host().reservedRegions(ofGroup: 6).regions.map(\.type) == [.msi, .direct])
  }

  @Test func units() throws {
    let laptop = try Fixture.laptop.host().units()
    #expect(laptop.map(\.name) == ["dmar0", "dmar1"])
    #expect(laptop.allSatisfy { $0.kind == .vtd && $0.version == "1:0" && $0.unread.isEmpty })
    #expect(laptop[1].capabilities == 0xd_2008_c406_60462)
    #expect((laptop[1].extendedCapabilities, laptop[1].remapsInterrupts) == (0xf050da, true))
    #expect(laptop[0].devices == [address("00:02.0")])
    let server = try Fixture.server.host().units()
    #expect(server.map(\.kind) == [.smmuv3] && server[0].devices.count == 7)
    #expect(try Fixture.plainVM.host().units().isEmpty)
  }

  @Test(arguments: [
    ("dmar12", IOMMUUnit.Kind.vtd), ("ivhd0", .amd), ("smmu3.0x0000000009050000", .smmuv3),
    ("smmu.0x000000002b400000", .smmuv2), ("0000:00:01.0", .virtio), ("virtio0", .virtio),
    ("a003e00.virtio_mmio", .virtio), ("fd800000.iommu", .other),
  ])
  func kindsByName(name: String, kind: IOMMUUnit.Kind) throws {
    var tree = CapturedTree()
    tree.entries["/sys/class/iommu/\(name)/devices"] = .directory
    #expect(try Host(kernel: TreeKernel(tree)).units().map(\.kind) == [kind])
  }
}
