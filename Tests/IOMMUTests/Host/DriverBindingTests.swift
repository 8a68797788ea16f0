import CapturedTrees
import IOMMU
import Testing

@Suite struct DriverBindingTests {
  private static let drivers = "/sys/bus/pci/drivers"
  private static let probe = "/sys/bus/pci/drivers_probe"

  private func kernel(
    _ fixture: Fixture = .laptop, _ behaviour: (inout TreeKernel.Behaviour) -> Void = { _ in },
    tree change: (inout CapturedTree) -> Void = { _ in }
  ) throws -> TreeKernel {
    var tree = try fixture.tree
    change(&tree)
    return TreeKernel(tree) { settings in
      settings.defaultDrivers = [
        "0000:00:14.0": "xhci_hcd", "0000:04:01.0": "snd_ens1371", "0000:01:00.0": "iwlwifi",
        "0000:02:00.0": "nvme",
      ]
      behaviour(&settings)
    }
  }

  private func override(_ address: String) -> String { "/sys/bus/pci/devices/\(address)/driver_override" }

  @Test func planOfAWholeGroup() throws {
    let host = Host(kernel: try kernel())
    let plan = try host.plan(.bind, of: address("00:14.2"))
    #expect(
      plan.writes.map { "\($0.path)=\($0.value)" } == [
        "\(Self.drivers)/xhci_hcd/unbind=0000:00:14.0", "\(override("0000:00:14.0"))=vfio-pci",
        "\(Self.probe)=0000:00:14.0", "\(override("0000:00:14.2"))=vfio-pci", "\(Self.probe)=0000:00:14.2",
      ])
    #expect(plan.skipped.isEmpty && plan.warnings.isEmpty)
  }

  @Test func bindRestore() throws {
    let kernel = try kernel(), host = Host(kernel: kernel)
    let before = try host.devices(named: false)
    let plan = try host.plan(.bind, of: address("00:14.0"))
    #expect(kernel.writes.isEmpty)
    try host.perform(plan)
    #expect(kernel.writes == plan.writes.map { "\($0.path)=\($0.value)" })
    #expect(try host.device(address("00:14.0")).status == .ready)
    #expect(try host.device(address("00:14.2")).driver == "vfio-pci")
    #expect(try host.plan(.bind, of: address("00:14.0")).writes.isEmpty)
    // Another process: nothing but the files tells it.
    let other = Host(kernel: kernel)
    try other.perform(other.plan(.restore, of: address("00:14.2")))
    #expect(try other.devices(named: false) == before)
    #expect(throws: Errno.noEntry) { try kernel.readFile("/run/iommuctl/0000:00:14.0") }
    #expect(try other.plan(.restore, of: address("00:14.2")).writes.isEmpty)
  }

  @Test func bridgesAreNeverTouched() throws {
    let host = Host(kernel: try kernel())
    let plan = try host.plan(.bind, of: address("04:01.0"))
    // The bridge, and one that VFIO has.
    #expect(plan.skipped.map(\.name) == ["0000:03:00.0", "0000:04:00.0"])
    #expect(plan.writes.allSatisfy { !$0.path.contains("03:00.0") && $0.value != "0000:03:00.0" })
    for bridge in ["00:1c.0", "03:00.0", "00:1f.0"] {
      let error = #expect(throws: DMAError.self) { try host.plan(.bind, of: address(bridge)) }
      #expect(error?.code == .incompatibleDevice && error?.remedy != nil)
    }
  }

  @Test func chipsetBridgeWithADriver() throws {
    let kernel = try kernel { _ in
    } tree: { tree in
      tree.entries["\(tree.path(of: "0000:00:1f.0"))/driver"] = .link("/sys/bus/pci/drivers/lpc_ich")
      tree["/sys/bus/pci/drivers/lpc_ich/unbind"] = ""
    }
    let host = Host(kernel: kernel)
    let error = #expect(throws: DMAError.self) { try host.plan(.bind, of: address("00:1f.3")) }
    #expect(error?.code == .groupNotViable && error?.detail?.contains("lpc_ich") == true)
    let plan = try host.plan(.bind, of: address("00:1f.3"), force: true)
    #expect(plan.writes.first?.path == "\(Self.drivers)/lpc_ich/unbind")
    #expect(!plan.writes.contains { $0.path == override("0000:00:1f.0") })
  }

  @Test(arguments: ["0000:02:00.0"])
  func rootDiskBehindEncryptionIsRefused(disk: String) throws {
    let host = Host(kernel: try kernel())
    for action in [DriverBinding.Action.bind, .unbind] {
      let error = #expect(throws: DMAError.self) { try host.plan(action, of: address(disk)) }
      #expect((error?.code, error?.device) == (.busy, disk))
      #expect(error?.detail == "The file system at / is on it" && error?.remedy?.contains("--force") == true)
    }
    let plan = try host.plan(.bind, of: address(disk), force: true)
    #expect(plan.warnings.count == 2 && plan.writes.count == 3)  // The root and /boot.
  }

  @Test func otherVitalUses() throws {
    let laptop = Host(kernel: try kernel())
    let route = #expect(throws: DMAError.self) { try laptop.plan(.bind, of: address("01:00.0")) }
    #expect(route?.detail == "The default route goes through its wlan0")
    let screen = try laptop.plan(.bind, of: address("00:02.0"))
    #expect(screen.warnings.count == 1 && screen.warnings[0].contains("screen"))
    let server = Host(kernel: try kernel(.server))
    let functions = #expect(throws: DMAError.self) { try server.plan(.bind, of: address("0002:01:00.0")) }
    #expect(functions?.detail == "2 virtual functions of it are enabled")
    let disk = #expect(throws: DMAError.self) { try server.plan(.bind, of: address("0000:01:00.0")) }
    #expect(disk?.detail == "The file system at / is on it")
  }

  @Test func diskBelowNVMeMultipathAndByName() throws {
    let subsystem = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0"
    func change(_ tree: inout CapturedTree, root: String) {
      tree.entries["/sys/dev/block/259:3"] = .link(
        "../../devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1/nvme0n1p3")
      tree.entries["/sys/class/block/nvme0n1p3"] = tree.entries["/sys/dev/block/259:3"]
      tree.entries["\(subsystem)/nvme0n1/nvme0n1p3"] = .directory
      tree.entries["\(subsystem)/nvme0"] = .link("../../../pci0000:00/0000:00:1d.0/0000:02:00.0/nvme/nvme0")
      tree.entries["/sys/class/nvme-subsystem/nvme-subsys0"] = .link(
        "../../devices/virtual/nvme-subsystem/nvme-subsys0")
      tree["/proc/self/mountinfo"] = root
    }
    for root in [
      "22 1 259:3 / / rw - ext4 /dev/nvme0n1p3 rw\n", "22 1 0:25 / / rw - btrfs /dev/nvme0n1p3 rw\n",
    ] {
      let host = Host(
        kernel: try kernel { _ in
        } tree: {
          change(&$0, root: root)
        })
      let error = #expect(throws: DMAError.self) { try host.plan(.bind, of: address("02:00.0")) }
      #expect(error?.detail == "The file system at / is on it")
    }
    let mapper = Host(
      kernel: try kernel { _ in
      } tree: { tree in
        tree["/proc/self/mountinfo"] = "22 1 0:25 / / rw - btrfs /dev/mapper/root rw\n"
        tree.entries["/sys/class/block/dm-0"] = .link("../../devices/virtual/block/dm-0")
        tree["/sys/devices/virtual/block/dm-0/dm/name"] = "root\n"
      })
    #expect(throws: DMAError.self) { try mapper.plan(.bind, of: address("02:00.0")) }
  }

  /// Fails each write in turn: afterwards every device is as before, and nothing is remembered.
  @Test(arguments: [Errno.accessDenied, .noDevice, .noEntry, .busy, .inputOutput])
  func failureIsTakenBack(errno: Errno) throws {
    for index in 0..<5 {
      let kernel = try kernel { $0.failWrite = (index, errno) }
      let host = Host(kernel: kernel)
      let before = try host.devices(named: false)
      let plan = try host.plan(.bind, of: address("00:14.0"))
      let error = #expect(throws: DMAError.self) { try host.perform(plan) }
      #expect(error?.errno == errno && error?.operation == "bind")
      #expect(error?.detail?.contains(plan.writes[index].path) == true)
      #expect(
        error?.detail?.contains("taken back") == true && error?.detail?.contains("not taken back") == false)
      #expect(try host.devices(named: false) == before)
      #expect(throws: Errno.noEntry) { try kernel.readFile("/run/iommuctl/0000:00:14.0") }
    }
  }

  @Test func driverThatRefuses() throws {
    let kernel = try kernel { $0.refusingDrivers = ["vfio-pci"] }
    let host = Host(kernel: kernel)
    let before = try host.devices(named: false)
    let plan = try host.plan(.bind, of: address("00:14.0"))
    let error = #expect(throws: DMAError.self) { try host.perform(plan) }
    #expect((error?.code, error?.device) == (.notBound, "0000:00:14.0"))
    #expect(try host.devices(named: false) == before)
  }

  @Test func undoThatFailsIsTold() throws {
    let kernel = try kernel { settings in
      settings.failWrite = (2, .inputOutput)
      settings.refusingDrivers = ["xhci_hcd"]
    }
    let host = Host(kernel: kernel)
    let plan = try host.plan(.bind, of: address("00:14.0"))
    let error = #expect(throws: DMAError.self) { try host.perform(plan) }
    #expect(
      error?.detail?.contains("not taken back: \"0000:00:14.0\" to \(Self.drivers)/xhci_hcd/bind") == true)
    // What could not be taken back stays remembered, so that restore can try again.
    kernel.change { $0.refusingDrivers = [] }
    try host.perform(host.plan(.restore, of: address("00:14.0")))
    #expect(try host.device(address("00:14.0")).driver == "xhci_hcd")
  }

  @Test func unbind() throws {
    let kernel = try kernel(), host = Host(kernel: kernel)
    // A host's device alone; VFIO's with the rest of its group.
    try host.perform(host.plan(.unbind, of: address("04:01.0")))
    #expect(try host.group(9).viable == true)
    #expect(try host.device(address("04:00.0")).driver == "vfio-pci")
    try host.perform(host.plan(.bind, of: address("04:01.0")))
    let plan = try host.plan(.unbind, of: address("04:01.0"))
    #expect(plan.writes.filter { $0.path.hasSuffix("vfio-pci/unbind") }.count == 2)
    try host.perform(plan)
    #expect(try host.device(address("04:00.0")).driver == nil)
    // What was there before all of this comes back.
    try host.perform(host.plan(.restore, of: address("04:01.0")))
    #expect(try host.device(address("04:01.0")).driver == "snd_ens1371")
    #expect(try host.device(address("04:00.0")).driver == "vfio-pci")
  }

  @Test func restoreWithoutMemory() throws {
    let kernel = try kernel {
      $0.defaultDrivers["0000:05:00.0"] = "igb"
    } tree: { tree in
      tree["/sys/bus/pci/drivers/igb/bind"] = ""
      tree["\(tree.path(of: "0000:05:00.0"))/driver_override"] = "vfio-pci\n"
    }
    let host = Host(kernel: kernel)
    let plan = try host.plan(.restore, of: address("05:00.0"))
    #expect(plan.warnings.count == 1 && plan.writes.last?.path == Self.probe)
    #expect(plan.writes[1].value == "\n")
    try host.perform(plan)
    #expect(try host.device(address("05:00.0")).driver == "igb")
  }

  @Test(arguments: ["", "garbage", "driver=../../etc\noverride=\n", "driver=nvme\n", "\u{0}\u{1}"])
  func corruptMemoryIsNotFollowed(text: String) throws {
    let kernel = try kernel { _ in
    } tree: {
      $0["/run/iommuctl/0000:05:00.0"] = text
    }
    let plan = try Host(kernel: kernel).plan(.restore, of: address("05:00.0"))
    #expect(plan.writes.allSatisfy { !$0.path.contains("..") } && plan.warnings.count == 1)
  }

  @Test func refusals() throws {
    let host = Host(kernel: try kernel(.plainVM))
    #expect(throws: DMAError.self) { try host.plan(.bind, of: address("09:00.0")) }
    let none = #expect(throws: DMAError.self) { try host.plan(.bind, of: address("00:03.0")) }
    #expect(none?.code == .noIOMMU)
    let mode = #expect(throws: DMAError.self) {
      try Fixture.noIOMMU.host().plan(.bind, of: address("00:05.0"))
    }
    #expect(mode?.code == .noIOMMUMode)
    let unloaded = try kernel { _ in
    } tree: { tree in
      for file in ["bind", "unbind"] { tree["\(Self.drivers)/vfio-pci/\(file)"] = nil }
    }
    let missing = #expect(throws: DMAError.self) {
      try Host(kernel: unloaded).plan(.bind, of: address("00:14.0"))
    }
    #expect((missing?.code, missing?.remedy) == (.notSupported, "`sudo modprobe vfio-pci`"))
    let unread = try kernel { _ in
    } tree: {
      $0.entries["\($0.path(of: "0000:00:14.2"))/driver"] = .failure(13)
    }
    #expect(throws: DMAError.self) { try Host(kernel: unread).plan(.bind, of: address("00:14.0")) }
    let captured = Host(kernel: try kernel(), isCaptured: true)
    let plan = try captured.plan(.bind, of: address("00:14.0"))
    let error = #expect(throws: DMAError.self) { try captured.perform(plan) }
    #expect(error?.code == .notSupported)
  }

  @Test func openDeviceIsNotWaitedFor() throws {
    let kernel = try kernel { $0.openNodes = ["/dev/vfio/11"] }
    let host = Host(kernel: kernel)
    let plan = try host.plan(.unbind, of: address("05:00.0"))
    let error = #expect(throws: DMAError.self) { try host.perform(plan) }
    #expect(error?.code == .busy && kernel.writes.isEmpty)
  }
}
