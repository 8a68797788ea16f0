import IOMMU

// Reading, writing and opening by path.

extension KernelState {
  func readFile(_ path: String) throws(Errno) -> [UInt8] {
    let (_, node) = try tree.resolve(path)
    try checkAccess(node, write: false)
    switch node {
    case .directory: throw .isDirectory
    case .file(let attribute, _): return try contents(of: attribute)
    case .link, .node: throw .invalidArgument
    }
  }

  private func contents(of attribute: SystemTree.Attribute) throws(Errno) -> [UInt8] {
    switch attribute {
    case .text(let text), .ignored(let text): return Array(text.utf8)
    case .config(let address):
      guard let device = devices[address] else { throw .noDevice }
      // Without CAP_SYS_ADMIN only the standard header can be read.
      let image = device.isGone ? [UInt8](repeating: 0xff, count: 64) : device.config.image
      return machine.user == 0 ? image : Array(image.prefix(64))
    case .resource(let address):
      guard let device = devices[address] else { throw .noDevice }
      return Array(resourceLines(device).utf8)
    case .driverOverride(let address):
      return Array(((devices[address]?.driverOverride ?? "(null)") + "\n").utf8)
    case .processStatus: return Array(processStatus.utf8)
    case .bind, .unbind, .probe, .removeDevice: throw .inputOutput
    }
  }

  private var processStatus: String {
    let kilobytes = MemoryLock.pageByteCount / 1024
    // Bit 14 is CAP_IPC_LOCK; root has all the others here.
    let all: UInt64 = machine.user == 0 ? 0x1ff_ffff_ffff : 0
    let capabilities = memoryLock.hasCapability ? all | 1 << 14 : all & ~(1 << 14)
    let effective = hexadecimal(capabilities, width: 16)
    return """
      Name:\tsimulated
      Uid:\t\(machine.user)\t\(machine.user)\t\(machine.user)\t\(machine.user)
      VmLck:\t\(padded(memoryLock.processPages * kilobytes)) kB
      VmPin:\t\(padded(memoryLock.pinnedPages * kilobytes)) kB
      CapEff:\t\(effective)

      """
  }

  private func padded(_ value: UInt64) -> String {
    let text = "\(value)"
    return String(repeating: " ", count: max(0, 8 - text.count)) + text
  }

  func writeFile(_ path: String, _ text: String) throws(Errno) {
    let (resolved, node) = try tree.resolve(path)
    try checkAccess(node, write: true)
    switch node {
    case .directory: throw .isDirectory
    case .link, .node: throw .invalidArgument
    case .file(let attribute, let mode):
      switch attribute {
      case .text: tree.add(resolved, .file(.text(text.trimmingNewline + "\n"), mode: mode))
      case .ignored: break
      case .bind(let driver): try bind(text, to: driver)
      case .unbind(let driver): try unbind(text, from: driver)
      case .probe: try probeDrivers(text)
      case .driverOverride(let address): overrideDriver(of: address, text.trimmingNewline)
      case .removeDevice(let address): unplug(address)
      case .config, .resource, .processStatus: throw .accessDenied
      }
    }
  }

  /// An empty line clears driver_override.
  private func overrideDriver(of address: PCIAddress, _ name: String) {
    devices[address]?.driverOverride = name.isEmpty ? nil : name
  }

  func status(_ path: String) throws(Errno) -> FileStatus {
    let (_, node) = try tree.resolve(path)
    return status(of: node)
  }

  private func status(of node: SystemTree.Node) -> FileStatus {
    switch node {
    case .directory: FileStatus(kind: .directory, mode: 0o755, owner: 0, group: 0)
    case .file(_, let mode): FileStatus(kind: .regular, mode: mode, owner: 0, group: 0)
    case .link: FileStatus(kind: .other, mode: 0o777, owner: 0, group: 0)
    // The container's node is open to all, since it gives nothing without a group.
    case .node(.container): FileStatus(kind: .characterDevice, mode: 0o666, owner: 0, group: 0)
    case .node(.iommufd):
      FileStatus(
        kind: .characterDevice, mode: machine.nodeMode | 0o660, owner: machine.nodeOwner, group: machine.nodeGroup)
    case .node:
      FileStatus(
        kind: .characterDevice, mode: machine.nodeMode, owner: machine.nodeOwner, group: machine.nodeGroup)
    }
  }

  func checkAccess(_ path: String, write: Bool) throws(Errno) {
    try checkAccess(try tree.resolve(path).node, write: write)
  }

  /// Mode bits of owner, group or others. Root passes, but sysfs refuses even root what no mode bit allows.
  private func checkAccess(_ node: SystemTree.Node, write: Bool) throws(Errno) {
    let status = status(of: node)
    let wanted: UInt32 = write ? 2 : 4
    if machine.user == 0 {
      if status.kind == .regular, status.mode & (wanted | wanted << 3 | wanted << 6) == 0 {
        throw .accessDenied
      }
      return
    }
    let shift: UInt32 = machine.user == status.owner ? 6 : machine.groups.contains(status.group) ? 3 : 0
    guard status.mode >> shift & wanted != 0 else { throw .accessDenied }
  }

  func open(_ path: String) throws(Errno) -> Int32 {
    let (_, node) = try tree.resolve(path)
    guard case .node(let target) = node else {
      if case .directory = node { throw .isDirectory }
      throw .accessDenied
    }
    try checkAccess(node, write: false)
    try checkAccess(node, write: true)
    switch target {
    case .iommufd: return descriptors.add(.iommufd(IOMMUFDContext()))
    case .container: return descriptors.add(.container(Container()))
    case .group(let number): return descriptors.add(.group(try openGroup(number)))
    case .device(let address):
      guard let device = devices[address], !device.isGone else { throw .noDevice }
      return descriptors.add(.device(DeviceFile(device, groupFile: nil)))
    }
  }

  /// A group's node opens once, and not while a device of it is bound by its own node.
  private func openGroup(_ number: Int) throws(Errno) -> GroupFile {
    guard let group = groups[number], group.hasVFIODevice else { throw .noDevice }
    // CAP_SYS_RAWIO.
    if group.isNoIOMMU && machine.user != 0 { throw .notPermitted }
    guard group.boundNodeCount == 0, group.openFile == nil else { throw .busy }
    let file = GroupFile(group)
    group.openFile = file
    return file
  }

  /// Closes a simulated descriptor; the model of a device that must be reset comes back.
  func close(_ descriptor: Int32) -> DeviceSlot? {
    switch descriptors.remove(descriptor) {
    case .iommufd(let context): release(context)
    case .group(let file): release(file)
    case .container, nil: break
    case .device(let file): return close(file)
    }
    return nil
  }

  private func close(_ file: DeviceFile) -> DeviceSlot? {
    let device = file.device
    var slot: DeviceSlot?
    if file.isUsable { slot = closed(device) }
    if let binding = file.binding {
      unbind(device, id: binding.id, from: binding.context)
      device.group!.boundNodeCount -= 1
    }
    if let groupFile = file.groupFile { release(groupFile) }
    return slot
  }

  /// A device goes away: its nodes and files vanish, its user is asked to let go, ioctls answer ENODEV, reads all ones.
  func unplug(_ address: PCIAddress) {
    guard let device = devices[address], !device.isGone else { return }
    device.interrupts.request()
    unsettle(device)
    device.isGone = true
    tree.remove("/sys/bus/pci/devices/\(address)")
    if let group = device.group { tree.remove("/sys/kernel/iommu_groups/\(group.number)/devices/\(address)") }
    tree.remove(path(of: device))
  }
}
