import IOMMU
import IOMMUSimulation
import Testing

/// What a machine can lack or forbid, and how its kernel then answers.
@Suite struct MachineOptionTests {
  static let address = IOMMUFDRig.address

  /// Opens and binds the device by its node.
  func bind(_ simulated: SimulatedHost, token: [UInt8]? = nil) throws(Errno) {
    let kernel = simulated.kernel
    let iommufd = try kernel.open("/dev/iommu")
    defer { kernel.close(iommufd) }
    let device = try kernel.open("/dev/vfio/devices/vfio0")
    defer { kernel.close(device) }
    _ = try kernel.vfioBind(device, iommufd: iommufd, token: token)
  }

  /// Puts the device's group into a container and opens the device.
  func contain(_ simulated: SimulatedHost, group: String = "0", type: UInt32 = 3, options: String = "")
    throws(Errno)
  {
    let kernel = simulated.kernel
    let container = try kernel.open("/dev/vfio/vfio")
    defer { kernel.close(container) }
    let file = try kernel.open("/dev/vfio/\(group)")
    defer { kernel.close(file) }
    try kernel.vfioSetContainer(group: file, container: container)
    try kernel.vfioSetIOMMU(container, type: type)
    kernel.close(try kernel.vfioGroupDevice(file, name: Self.address + options))
  }

  func simulated(
    _ machine: SimulatedMachine = .vtd, _ change: (inout SimulatedDevice) -> Void = { _ in }
  ) -> SimulatedHost {
    var machine = machine
    var device = SimulatedDevice(Self.address, EduModel())
    change(&device)
    machine.devices.insert(device, at: 0)
    return SimulatedHost(machine)
  }

  @Test func withoutAnInterface() throws {
    let noIOMMUFD = simulated(.type1Only)
    #expect(throws: Errno.noEntry) { try bind(noIOMMUFD) }
    try contain(noIOMMUFD)
    let noContainer = simulated(.iommufdOnly)
    #expect(throws: Errno.noEntry) { try contain(noContainer) }
    try bind(noContainer)
    var machine = SimulatedMachine.vtd
    machine.hasDeviceNodes = false
    let noNodes = simulated(machine)
    #expect(throws: Errno.noEntry) { try bind(noNodes) }
    #expect(throws: Errno.noEntry) { try noNodes.kernel.listDirectory("\(TreeTests.device)/vfio-dev") }
    try contain(noNodes)
  }

  @Test func interruptsThatAreNotIsolated() throws {
    var machine = SimulatedMachine.vtd
    machine.isolatesInterrupts = false
    let closed = simulated(machine)
    #expect(throws: Errno.notPermitted) { try bind(closed) }
    #expect(throws: Errno.notPermitted) { try contain(closed) }
    #expect(
      try closed.kernel.kernelLog(from: 0).contains { $0.text.contains("No interrupt remapping support") })
    #expect(try closed.kernel.text("/sys/class/iommu/dmar0/intel-iommu/ecap") == "f00f42\n")
    #expect(closed.isClean)
    machine.allowsUnsafeInterrupts = true
    let open = simulated(machine)
    try bind(open)
    try contain(open)
  }

  @Test func devicesThatAreRefused() throws {
    let incoherent = simulated { $0.isCoherent = false }
    #expect(throws: Errno.invalidArgument) { try bind(incoherent) }
    let direct = simulated { $0.directRegions = [0xd000_0000..<0xd010_0000] }
    #expect(throws: Errno.invalidArgument) { try bind(direct) }
    #expect(throws: Errno.invalidArgument) { try contain(direct) }
    #expect(
      try direct.kernel.text("/sys/kernel/iommu_groups/0/reserved_regions") == """
        0x00000000d0000000 0x00000000d00fffff direct
        0x00000000fee00000 0x00000000feefffff msi

        """)
    #expect(incoherent.isClean && direct.isClean)
  }

  @Test func groupThatIsNotViable() throws {
    var machine = SimulatedMachine.vtd
    var neighbour = SimulatedDevice("0000:03:01.0", EduModel())
    (neighbour.driver, neighbour.group, neighbour.bridge) = ("e1000", 4, "0000:00:1e.0")
    var bridge = SimulatedDevice.bridge("0000:00:1e.0")
    bridge.group = 4
    machine.devices = [bridge, neighbour]
    let simulated = simulated(machine) { ($0.group, $0.bridge) = (4, "0000:00:1e.0") }
    #expect(throws: Errno.notPermitted) { try bind(simulated) }
    #expect(throws: Errno.notPermitted) { try contain(simulated, group: "4") }
    let group = try simulated.kernel.open("/dev/vfio/4")
    #expect(try simulated.kernel.vfioGroupStatus(group) == 0)
    // Without a driver the neighbour does no harm, nor does the bridge.
    try simulated.kernel.writeFile("/sys/bus/pci/drivers/e1000/unbind", "0000:03:01.0")
    #expect(try simulated.kernel.vfioGroupStatus(group) == 1)
    simulated.kernel.close(group)
    try contain(simulated, group: "4")
    try bind(simulated)
    #expect(simulated.isClean)
  }

  @Test func virtualFunctionToken() throws {
    let token = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"
    let simulated = simulated { $0.token = token }
    let bytes: [UInt8] = [
      0xbd, 0x8d, 0x9d, 0x2b, 0x5a, 0x5f, 0x4f, 0x5a, 0xa2, 0x11, 0xf5, 0x91, 0x51, 0x4b, 0xa1, 0xf3,
    ]
    #expect(throws: Errno.accessDenied) { try bind(simulated) }
    #expect(throws: Errno.accessDenied) { try bind(simulated, token: [UInt8](repeating: 7, count: 16)) }
    try bind(simulated, token: bytes)
    #expect(throws: Errno.accessDenied) { try contain(simulated) }
    let other = "00000000-5a5f-4f5a-a211-f591514ba1f3"
    #expect(throws: Errno.accessDenied) { try contain(simulated, options: " vf_token=\(other)") }
    try contain(simulated, options: " vf_token=\(token)")
    #expect(simulated.isClean)
  }

  @Test func permissionsOfNodes() throws {
    // In the nodes' group the process may, outside it may not; the container's node is everybody's.
    try bind(simulated(.unprivileged))
    try contain(simulated(.unprivileged))
    var machine = SimulatedMachine.unprivileged
    machine.groups = [1000]
    let outside = simulated(machine)
    #expect(throws: Errno.accessDenied) { try bind(outside) }
    #expect(throws: Errno.accessDenied) { try contain(outside) }
    for path in ["/dev/iommu", "/dev/vfio/0", "/dev/vfio/devices/vfio0"] {
      #expect(throws: Errno.accessDenied) { try outside.kernel.checkAccess(path, write: true) }
      let status = try outside.kernel.status(path)
      #expect((status.mode, status.owner, status.group) == (0o660, 0, 36))
    }
    try outside.kernel.checkAccess("/dev/vfio/vfio", write: true)
    // sysfs is root's to write, and shows others no more of config space than its header.
    #expect(throws: Errno.accessDenied) {
      try outside.kernel.writeFile("\(TreeTests.device)/driver_override", "vfio-pci")
    }
    #expect(try outside.kernel.readFile("\(TreeTests.device)/config").count == 64)
    // Readable, not writable: a node opens for both.
    machine.nodeMode = 0o664
    #expect(throws: Errno.accessDenied) { try bind(simulated(machine)) }
  }

  @Test func noIOMMUMode() throws {
    var machine = SimulatedMachine.withoutIOMMU
    machine.noIOMMUMode = true
    let simulated = simulated(machine)
    let kernel = simulated.kernel
    #expect(try kernel.text("/sys/kernel/iommu_groups/0/name") == "vfio-noiommu\n")
    #expect(try kernel.listDirectory("/dev/vfio") == ["noiommu-0", "vfio"])
    let container = try kernel.open("/dev/vfio/vfio"), group = try kernel.open("/dev/vfio/noiommu-0")
    try kernel.vfioSetContainer(group: group, container: container)
    #expect(try kernel.vfioCheckExtension(container, 3) == 0)
    #expect(throws: Errno.noDevice) { try kernel.vfioSetIOMMU(container, type: 3) }
    try kernel.vfioSetIOMMU(container, type: 8)
    #expect(throws: Errno.notTypewriter) {
      try kernel.vfioMap(container, flags: 3, address: 0, iova: 0, byteCount: 4096)
    }
    for descriptor in [group, container] { kernel.close(descriptor) }
    #expect(simulated.isClean)
    // CAP_SYS_RAWIO is root's.
    machine.user = 1000
    machine.nodeMode = 0o666
    let unprivileged = self.simulated(machine)
    #expect(throws: Errno.notPermitted) { try unprivileged.kernel.open("/dev/vfio/noiommu-0") }
  }

  @Test func withoutAnIOMMU() throws {
    let simulated = simulated(.withoutIOMMU)
    #expect(throws: Errno.noEntry) { try bind(simulated) }
    #expect(try simulated.kernel.listDirectory("/sys/class/iommu").isEmpty)
    #expect(try simulated.kernel.listDirectory("/sys/kernel/iommu_groups").isEmpty)
  }

  @Test(arguments: [39, 44, 48])
  func addressWidths(_ bits: Int) throws {
    var machine = SimulatedMachine.vtd
    machine.addressBits = bits
    let rig = try IOMMUFDRig(machine)
    let last = try rig.kernel.ioasRanges(rig.iommufd, ioas: rig.ioas).ranges.last!.last.rawValue
    #expect(last == 1 << UInt64(bits) - 1)
    #expect(throws: Errno.invalidArgument) { try rig.map(at: 1 << UInt64(bits)) }
    rig.close()
  }

  @Test func nodesAsTheKernelMakesThem() throws {
    let kernel = SimulatedHost(devices: [Self.address: EduModel()]).kernel
    #expect(try kernel.status("/dev/iommu").mode == 0o660)
    #expect(try kernel.status("/dev/vfio/0").mode == 0o600)
    #expect(try kernel.status("/dev/vfio/devices/vfio0").mode == 0o600)
    #expect(try kernel.status("/dev/vfio/vfio").mode == 0o666)
  }

  @Test func firstStageReachesTheLowerHalf() throws {
    let rig = try IOMMUFDRig(.vtdFirstStage)
    let ranges = try rig.kernel.ioasRanges(rig.iommufd, ioas: rig.ioas).ranges
    #expect(ranges.map(\.description) == ["0x0–0xfedfffff", "0xfef00000–0x7fffffffffff"])
    rig.close()
  }

  @Test func granule() throws {
    var machine = SimulatedMachine.smmuv3
    machine.pageSizes = 0x2000_1_0000
    // An IOMMU whose smallest page is larger than the processor's is of no use to iommufd.
    let large = SimulatedHost(machine, devices: [Self.address: EduModel()])
    let kernel = large.kernel
    let iommufd = try kernel.open("/dev/iommu"), device = try kernel.open("/dev/vfio/devices/vfio0")
    let id = try kernel.vfioBind(device, iommufd: iommufd, token: nil)
    let ioas = try kernel.ioasAllocate(iommufd)
    #expect(throws: Errno.invalidArgument) {
      try kernel.hwptAllocate(iommufd, flags: 0, device: id, pageTable: ioas)
    }
    for descriptor in [device, iommufd] { kernel.close(descriptor) }
    #expect(large.isClean)
  }

  @Test func hardwareInformation() throws {
    let vtd = try IOMMUFDRig()
    let info = try vtd.kernel.hardwareInfo(vtd.iommufd, device: vtd.deviceID)
    #expect((info.type, info.data.count, info.capabilities) == (1, 24, 8))
    #expect(info.data[8..<16].reversed().reduce(0) { $0 << 8 | UInt64($1) } == 0x00d2_008c_222f_0606)
    vtd.close()
    // CAP and ECAP of the same machine in scalable mode, by second-stage and by first-stage tables.
    for (machine, expected) in [
      (SimulatedMachine.vtdScalable, [0x00d2_008c_222f_0606, 0x0000_4800_80f0_0f4a]),
      (.vtdFirstStage, [0x01d2_008c_222f_0606, 0x0000_8800_00f0_0f4a]),
    ] as [(SimulatedMachine, [UInt64])] {
      let rig = try IOMMUFDRig(machine)
      let data = try rig.kernel.hardwareInfo(rig.iommufd, device: rig.deviceID).data
      let registers = [8, 16].map { data[$0..<$0 + 8].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) } }
      #expect(registers == expected)
      rig.close()
    }
    let smmu = try IOMMUFDRig(.smmuv3)
    let registers = try smmu.kernel.hardwareInfo(smmu.iommufd, device: smmu.deviceID)
    #expect((registers.type, registers.data.count) == (2, 40))
    #expect(registers.data[8..<12].elementsEqual([0x1b, 0x10, 0x44, 0x0d]))
    smmu.close()
  }
}
