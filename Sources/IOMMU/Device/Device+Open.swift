extension Device {
  /// Opens a device that is bound to vfio-pci, through the best interface that there is.
  ///
  /// iommufd and the device's own node where the kernel has both and this process may open them, else the group in a type1
  /// container; ``interfaceReason`` says why. The kernel resets the device.
  ///
  /// - Parameters:
  ///   - address: A PCI address in any usual form, such as `0000:03:00.0` or `3:0.0`.
  ///   - host: The machine; nil is this one, ``Host/system()``.
  ///   - interface: Insists on one interface.
  ///   - translation: Insists on an owner of the page tables: `.notSupported` with the reason where it cannot be.
  ///   - token: A virtual function's token, a UUID, where its physical function's driver asks for one.
  ///   - domain: The domain of another open device: both then see the same mappings.
  ///   - debug: Debug mode, see <doc:DebugMode>; nil for what the environment says, which is off. nil for a domain to share.
  /// - Throws: `.noSuchDevice`, `.notBound`, `.noIOMMU`, `.noIOMMUMode`, `.groupNotViable`, `.permission`, `.notSupported`,
  ///   `.unsafeInterrupts`, `.incompatibleDevice`, `.virtualFunctionToken`, `.busy`, `.system`; each names what to do.
  public convenience init(
    _ address: String, on host: Host? = nil, interface: Interface? = nil,
    translation: TranslationChoice = .automatic, token: String? = nil, sharing domain: DMADomain? = nil,
    debug: DebugOptions? = nil
  ) throws(DMAError) {
    let target = try Self.target(address, on: host, token: token)
    try self.init(
      try OpenedDevice.open(
        target, interface: interface, translation: translation, sharing: domain.map { ($0.core, $0.translation) },
        debug: debug))
  }

  /// Takes over a device node and an iommufd that a privileged launcher opened; both are closed with the device.
  ///
  /// The node must not be bound yet. If this throws, both are closed; but neither is when they are one descriptor, which
  /// is `.invalidArgument`.
  public convenience init(
    _ address: String, characterDevice: Int32, iommufd: Int32, on host: Host? = nil,
    translation: TranslationChoice = .automatic, token: String? = nil, debug: DebugOptions? = nil
  ) throws(DMAError) {
    try Self.requireTwo(characterDevice, iommufd, address, "device node and iommufd")
    var opening: (target: AttachTarget, host: Host)
    do throws(DMAError) {
      opening = try Self.target(address, on: host, token: token, needsNode: false)
    } catch { throw Self.giveUp(characterDevice, iommufd, host, error) }
    opening.target.descriptor = characterDevice
    let chosen = try ChosenTranslation.iommufd(
      translation, opening.host.kernel, descriptor: iommufd, &opening.target)
    try self.init(
      try OpenedDevice.open(
        opening, over: chosen, reason: "The launcher passed a device node and an iommufd", debug: debug))
  }

  /// Takes over a group and a container that a privileged launcher opened; both are closed with the device.
  ///
  /// The group may be in the container already. If this throws, both are closed; but neither is when they are one
  /// descriptor, which is `.invalidArgument`.
  public convenience init(
    _ address: String, group: Int32, container: Int32, on host: Host? = nil, token: String? = nil,
    debug: DebugOptions? = nil
  ) throws(DMAError) {
    try Self.requireTwo(group, container, address, "group and container")
    var opening: (target: AttachTarget, host: Host)
    do throws(DMAError) {
      opening = try Self.target(address, on: host, token: token, needsNode: false)
    } catch { throw Self.giveUp(group, container, host, error) }
    opening.target.descriptor = group
    let kernel = opening.host.kernel
    let chosen: ChosenTranslation
    do throws(DMAError) {
      chosen = try .type1(.automatic, kernel, descriptor: container, device: opening.target.address.description)
    } catch {
      kernel.close(group)
      throw error
    }
    try self.init(
      try OpenedDevice.open(opening, over: chosen, reason: "The launcher passed a group and a container", debug: debug))
  }

  /// One number for both would be closed twice, the second time as another thread's new file.
  private static func requireTwo(
    _ first: Int32, _ second: Int32, _ address: String, _ what: String
  ) throws(DMAError) {
    guard first == second else { return }
    throw DMAError(
      .invalidArgument, "open", device: address, detail: "Descriptor \(first) was passed as \(what)",
      remedy: "Pass the two that the launcher opened")
  }

  private static func giveUp(_ first: Int32, _ second: Int32, _ host: Host?, _ error: DMAError) -> DMAError {
    let kernel: any Kernel = host?.kernel ?? LiveKernel()
    kernel.close(first)
    kernel.close(second)
    return error
  }

  /// Finds the device and checks what sysfs tells of it before anything is opened.
  private static func target(
    _ text: String, on host: Host?, token: String?, needsNode: Bool = true
  ) throws(DMAError) -> (target: AttachTarget, host: Host) {
    guard let address = PCIAddress(text) else {
      throw DMAError(
        .noSuchDevice, "open", device: text, detail: "This is no PCI address",
        remedy: "Write it as 0000:03:00.0. \((host ?? .local()).whichDevices())")
    }
    var bytes: [UInt8]?
    if let token {
      bytes = VirtualFunctionToken.bytes(token)
      if bytes == nil {
        throw DMAError(
          .virtualFunctionToken, "open", device: address.description, detail: "The token is no UUID",
          remedy: "Write it as 8-4-4-4-12 hexadecimal digits")
      }
    }
    let machine: Host
    if let host { machine = host } else { machine = try Host.system() }
    let device = try machine.device(address, named: false)
    if let error = refusal(device, on: machine) { throw error }
    let node = device.cdev.map { "/dev/vfio/devices/\($0)" }
    return (AttachTarget(address: address, group: device.group!, unit: device.unit, node: node, token: bytes), machine)
  }

  /// What makes a device impossible to open, as far as sysfs shows it.
  private static func refusal(_ device: PCIDevice, on host: Host) -> DMAError? {
    let name = device.address.description
    guard let group = device.group else {
      return DMAError(
        .noIOMMU, "open", device: name, detail: "No IOMMU translates for it",
        remedy: host.isSimulated
          ? "Give the SimulatedMachine an IOMMU"
          : "Enable the IOMMU in firmware and kernel (intel_iommu=on); iommuctl doctor tells more")
    }
    let members = try? host.group(group)
    if members?.isNoIOMMU == true {
      return DMAError(
        .noIOMMUMode, "open", device: name,
        detail: "VFIO's no-IOMMU mode lets a device reach all memory; this library does not drive devices so",
        remedy: "Boot with an IOMMU")
    }
    if !device.isBoundToVFIO, device.isDriverKnown {
      return DMAError(
        .notBound, "open", device: name,
        detail: device.driver.map { "It is bound to \($0)" } ?? "It is bound to no driver",
        remedy: "Bind it to vfio-pci: \(host.howTo(.bind, name))")
    }
    // The kernel would answer EPERM or EBUSY, as it does for other reasons too; sysfs names the one at fault.
    if members?.viable == false, let culprit = members?.culprit {
      return DMAError(
        .groupNotViable, "open", device: name,
        detail: "Group \(group) is not viable: \(culprit) has a driver of the host's",
        remedy: "Bind the whole group to vfio-pci: \(host.howTo(.bind, name))")
    }
    return nil
  }
}
