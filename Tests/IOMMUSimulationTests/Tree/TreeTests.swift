import IOMMU
import IOMMUSimulation
import Testing

extension SimulatedKernel {
  /// A file's text.
  func text(_ path: String) throws(Errno) -> String { String(decoding: try readFile(path), as: UTF8.self) }
}

/// The files of the machine: what sysfs, procfs and /dev show.
@Suite struct TreeTests {
  static let device = "/sys/bus/pci/devices/0000:03:00.0"

  @Test func deviceAttributes() throws {
    let kernel = SimulatedHost(devices: ["0000:03:00.0": NVMeModel()]).kernel
    let attributes = [
      "vendor": "0x1b36\n", "device": "0x0010\n", "subsystem_vendor": "0x1af4\n",
      "subsystem_device": "0x1100\n",
      "class": "0x010802\n", "revision": "0x02\n", "numa_node": "-1\n", "driver_override": "(null)\n",
      "reset_method": "flr\n", "vfio-dev/vfio0/dev": "253:0\n",
      "modalias": "pci:v00001B36d00000010sv00001AF4sd00001100bc01sc08i02\n",
    ]
    for (name, text) in attributes { #expect(try kernel.text("\(Self.device)/\(name)") == text, "\(name)") }
    #expect(try kernel.readFile("\(Self.device)/config").count == 4096)
    let resource = try kernel.text("\(Self.device)/resource").split(separator: "\n")
    #expect(resource.count == 13)
    #expect(resource[0] == "0x00000000a0000000 0x00000000a0003fff 0x0000000000140200")
    #expect(resource[1] == "0x0000000000000000 0x0000000000000000 0x0000000000000000")
  }

  @Test func links() throws {
    let kernel = SimulatedHost(devices: ["0000:03:00.0": EduModel()]).kernel
    #expect(try kernel.readLink(Self.device) == "../../../devices/pci0000:00/0000:03:00.0")
    #expect(try kernel.readLink("\(Self.device)/driver") == "../../../bus/pci/drivers/vfio-pci")
    #expect(try kernel.readLink("\(Self.device)/iommu_group") == "../../../kernel/iommu_groups/0")
    #expect(try kernel.readLink("\(Self.device)/iommu") == "../../virtual/iommu/dmar0")
    // Each leads somewhere, and back.
    for path in [
      "\(Self.device)/driver/0000:03:00.0/vendor", "\(Self.device)/iommu_group/devices/0000:03:00.0/vendor",
      "\(Self.device)/iommu/devices/0000:03:00.0/vendor",
      "\(Self.device)/subsystem/devices/0000:03:00.0/vendor",
      "/sys/class/iommu/dmar0/devices/0000:03:00.0/vendor", "/sys/class/vfio-dev/vfio0/device/vendor",
    ] { #expect(try kernel.text(path) == "0x1234\n", "\(path)") }
    #expect(throws: Errno.invalidArgument) { try kernel.readLink("\(Self.device)/vendor") }
  }

  @Test func behindABridge() throws {
    var machine = SimulatedMachine.vtd
    var device = SimulatedDevice("0000:03:00.0", EduModel())
    device.bridge = "0000:00:1c.0"
    machine.devices = [.bridge("0000:00:1c.0", isExpress: true), device]
    let kernel = SimulatedKernel(machine)
    #expect(try kernel.readLink(Self.device) == "../../../devices/pci0000:00/0000:00:1c.0/0000:03:00.0")
    for path in [
      "driver/0000:03:00.0/vendor", "iommu_group/devices/0000:03:00.0/vendor",
      "iommu/devices/0000:03:00.0/vendor",
    ] {
      #expect(try kernel.text("\(Self.device)/\(path)") == "0x1234\n", "\(path)")
    }
    #expect(try kernel.text("/sys/bus/pci/devices/0000:00:1c.0/class") == "0x060400\n")
    let windows = try kernel.text("/sys/bus/pci/devices/0000:00:1c.0/resource").split(separator: "\n")
    #expect(windows.count == 17)
    #expect(windows[14] == "0x00000000a0000000 0x00000000a00fffff 0x0000000000000200")
  }

  @Test func groupsAndUnits() throws {
    let kernel = SimulatedHost(.smmuv3, devices: ["0000:03:00.0": EduModel(), "0000:04:00.0": EduModel()])
      .kernel
    #expect(try kernel.listDirectory("/sys/kernel/iommu_groups") == ["0", "1"])
    #expect(try kernel.text("/sys/kernel/iommu_groups/1/type") == "DMA\n")
    let vtd = SimulatedHost(devices: ["0000:03:00.0": EduModel()]).kernel
    #expect(try vtd.text("/sys/kernel/iommu_groups/0/type") == "DMA-FQ\n")
    #expect(
      try kernel.text("/sys/kernel/iommu_groups/1/reserved_regions")
        == "0x0000000008000000 0x00000000080fffff msi\n")
    #expect(try kernel.listDirectory("/sys/class/iommu") == ["smmu3.0x0000000009050000"])
    let caching = SimulatedHost(.vtdCaching, devices: ["0000:03:00.0": EduModel()]).kernel
    #expect(try caching.text("/sys/kernel/iommu_groups/0/type") == "DMA\n")
    #expect(try caching.text("/sys/class/iommu/dmar0/intel-iommu/cap") == "d2008c222f0686\n")
    #expect(try caching.text("/sys/class/iommu/dmar0/intel-iommu/ecap") == "f00f4a\n")
  }

  @Test func pathsThatLeadNowhere() throws {
    let kernel = SimulatedHost(devices: ["0000:03:00.0": EduModel()]).kernel
    #expect(throws: Errno.noEntry) { try kernel.readFile("/sys/nothing") }
    #expect(throws: Errno.noEntry) { try kernel.listDirectory("/sys/bus/pci/devices/0000:09:00.0") }
    #expect(throws: Errno.notDirectory) { try kernel.readFile("\(Self.device)/vendor/x") }
    #expect(throws: Errno.notDirectory) { try kernel.listDirectory("\(Self.device)/vendor") }
    #expect(throws: Errno.isDirectory) { try kernel.readFile(Self.device) }
    #expect(throws: Errno.isDirectory) { try kernel.open("/dev/vfio") }
    #expect(throws: Errno.noEntry) { try kernel.open("/dev/vfio/9") }
    #expect(try kernel.status("/dev/vfio/vfio").kind == .characterDevice)
    #expect(try kernel.status("\(Self.device)/driver").kind == .directory)
    #expect(throws: Errno.accessDenied) { try kernel.writeFile("\(Self.device)/vendor", "0x1") }
  }

  @Test func parameters() throws {
    var machine = SimulatedMachine.vtd
    (machine.allowsUnsafeInterrupts, machine.mappingLimit) = (true, 100)
    let kernel = SimulatedKernel(machine)
    let folder = "/sys/module/vfio_iommu_type1/parameters"
    #expect(try kernel.text("\(folder)/allow_unsafe_interrupts") == "Y\n")
    #expect(try kernel.text("\(folder)/dma_entry_limit") == "100\n")
    #expect(try kernel.text("/sys/module/iommufd/parameters/allow_unsafe_interrupts") == "Y\n")
    #expect(try kernel.text("/proc/cmdline").contains("intel_iommu=on"))
  }

  @Test func theLibraryReadsIt() throws {
    let host = Host.simulated(.smmuv3)
    let device = try #require(try host.devices(named: false).first)
    #expect(device.address == PCIAddress("0000:00:02.0"))
    #expect((device.vendor, device.device, device.driver) == (0x1234, 0x11e8, "vfio-pci"))
    #expect((device.group, device.unit, device.cdev) == (0, "smmu3.0x0000000009050000", "vfio0"))
    #expect(device.status == .ready)
    #expect(host.isSimulated)
  }
}
