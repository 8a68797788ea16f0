extension Host {
  /// Finds out what has to be written to give a device and its group another driver. Changes nothing.
  ///
  /// Bridges are never touched. A device that the host needs is refused: one that holds a mounted file system or swap,
  /// or the default route, or whose virtual functions are enabled.
  ///
  /// - Parameters:
  ///   - action: What to do.
  ///   - address: The device.
  ///   - force: Goes on with a device that the host needs, and takes the host's driver off a chipset device of the group.
  /// - Throws: ``DMAError/Code-swift.struct/noSuchDevice``; ``DMAError/Code-swift.struct/noIOMMU``,
  ///   ``DMAError/Code-swift.struct/noIOMMUMode``; ``DMAError/Code-swift.struct/incompatibleDevice`` for a bridge;
  ///   ``DMAError/Code-swift.struct/groupNotViable`` when a member cannot be taken;
  ///   ``DMAError/Code-swift.struct/busy`` when the host needs a device; ``DMAError/Code-swift.struct/notSupported``
  ///   when vfio-pci is not loaded; ``DMAError/Code-swift.struct/corruptTree`` when a driver could not be read.
  public func plan(
    _ action: DriverBinding.Action, of address: PCIAddress, force: Bool = false
  ) throws(DMAError) -> DriverBinding {
    let target = try device(address, named: false)
    var plan = DriverBinding(action, address)
    guard target.isDriverKnown, target.isGroupKnown else {
      throw Self.unknownDriver(target.address.description)
    }
    if target.isBridge == true {
      throw DMAError(
        .incompatibleDevice, action.rawValue, device: address.description,
        detail: "It is a bridge, which the kernel drives itself", remedy: "Name a device behind it")
    }
    let members = try members(of: target, action)
    switch action {
    case .bind: try planBind(&plan, target, members, force: force)
    case .unbind: planUnbind(&plan, target, members)
    case .restore: planRestore(&plan, members)
    }
    let losing = members.filter { device in
      device.isBoundToVFIO && plan.steps.contains { $0.device == device.address }
    }
    if !losing.isEmpty, let group = target.group { plan.groupNode = "/dev/vfio/\(group)" }
    try refuseWhatTheHostNeeds(&plan, members, force: force)
    return plan
  }

  /// The group's PCI devices with the target among them; on `bind`, throws when another member rules it out.
  private func members(of target: PCIDevice, _ action: DriverBinding.Action) throws(DMAError) -> [PCIDevice] {
    guard let id = target.group else {
      if action != .bind { return [target] }
      throw DMAError(
        .noIOMMU, "bind", device: target.address.description,
        detail: "No IOMMU translates for it: it has no IOMMU group", remedy: "\(whatTellsWhy()) says why")
    }
    let group = readGroup(id)
    if action == .bind, group.isNoIOMMU {
      throw DMAError(
        .noIOMMUMode, "bind", device: target.address.description,
        detail: "Nothing would contain its DMA", remedy: "\(whatTellsWhy()) says how to have an IOMMU")
    }
    var members: [PCIDevice] = []
    for member in group.members {
      if let address = member.address {
        members.append(address == target.address ? target : read(address))
        if !members[members.count - 1].isDriverKnown { throw Self.unknownDriver(member.name) }
      } else if action == .bind, !member.leavesViable || !member.isDriverKnown {
        throw Self.notViable(target, member.description, "it is no PCI device")
      }
    }
    return members.contains { $0.address == target.address } ? members : [target] + members
  }

  private func planBind(
    _ plan: inout DriverBinding, _ target: PCIDevice, _ members: [PCIDevice], force: Bool
  ) throws(DMAError) {
    for device in members {
      // An unknown class is taken for a bridge's, but the device that was named is taken at the user's word.
      if device.isBridge ?? (device.address != target.address) {
        let leavesViable = device.driver.map(VFIODriver.leavesViable) ?? true
        if !leavesViable {
          let name = "\(device.address) (\(device.driver ?? ""))"
          guard force else {
            throw Self.notViable(target, name, "it is a bridge or chipset device of the host")
          }
          plan.move(device, to: nil, override: device.driverOverride)
          plan.remembers.append(FormerDriver(device))
          continue
        }
      } else if !device.isBoundToVFIO, device.address == target.address || device.driver != "pci-stub" {
        plan.move(device, to: "vfio-pci", override: "vfio-pci")
        plan.remembers.append(FormerDriver(device))
        continue
      }
      plan.skipped.append(member(device))
    }
    if !plan.steps.isEmpty, FileReader(kernel).exists("\(SysPath.drivers)/vfio-pci") == false {
      throw DMAError(
        .notSupported, "bind", device: target.address.description,
        detail: "The driver vfio-pci is not loaded",
        remedy: "`sudo modprobe vfio-pci`")
    }
  }

  private func planUnbind(_ plan: inout DriverBinding, _ target: PCIDevice, _ members: [PCIDevice]) {
    for device in members {
      let isMeant = device.address == target.address || (target.isBoundToVFIO && device.isBoundToVFIO)
      guard isMeant, device.driver != nil else {
        plan.skipped.append(member(device))
        continue
      }
      // An override would let the next probe bind it again.
      plan.move(device, to: nil, override: nil)
      plan.remembers.append(FormerDriver(device))
    }
  }

  private func planRestore(_ plan: inout DriverBinding, _ members: [PCIDevice]) {
    for device in members {
      var reader = FileReader(kernel)
      let path = FormerDriver.path(of: device.address)
      let former = reader.text(path, optional: true).flatMap { FormerDriver(device.address, parsing: $0) }
      if let former {
        // VFIO's driver matches no device of itself: it takes one by override, or by an id that was given to it since.
        let override = former.override ?? former.driver.flatMap { VFIODriver.drives($0) ? $0 : nil }
        plan.move(device, to: former.driver, override: override)
        plan.forgets.append(device.address)
      } else if device.isBoundToVFIO || device.driverOverride == "vfio-pci" {
        plan.warnings.append("No former driver of \(device.address) is remembered: the kernel chooses one")
        plan.move(device, to: nil, override: nil, probing: true)
        if reader.exists(path) == true { plan.forgets.append(device.address) }
      } else {
        plan.skipped.append(member(device))
      }
    }
  }

  private func member(_ device: PCIDevice) -> IOMMUGroup.Member {
    var member = IOMMUGroup.Member(name: device.address.description, address: device.address)
    (member.driver, member.isBridge) = (device.driver, device.isBridge)
    return member
  }

  private func refuseWhatTheHostNeeds(
    _ plan: inout DriverBinding, _ members: [PCIDevice], force: Bool
  ) throws(DMAError) {
    // A device of VFIO's is not the host's; whether a process has it open is found out before the first write.
    let taken = members.filter { device in
      !device.isBoundToVFIO && plan.steps.contains { $0.device == device.address }
    }
    guard !taken.isEmpty else { return }
    for use in uses(of: taken) {
      guard use.isVital, !force else {
        plan.warnings.append("\(use.device): \(use.text)")
        continue
      }
      throw DMAError(
        .busy, plan.action.rawValue, device: use.device.description, detail: use.text,
        remedy: "Free it first, or name another device; `--force` goes on all the same")
    }
  }

  private static func unknownDriver(_ device: String) -> DMAError {
    DMAError(
      .corruptTree, "read driver", device: device, detail: "Its driver or its group could not be read",
      remedy: "Run it as root")
  }

  private static func notViable(_ target: PCIDevice, _ culprit: String, _ reason: String) -> DMAError {
    DMAError(
      .groupNotViable, "bind", device: target.address.description,
      detail: "\(culprit) of its group cannot be taken: \(reason)",
      remedy: "Move the device to another slot or root port, or unbind \(culprit)")
  }
}
