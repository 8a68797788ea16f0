// What is to be said of the device: its group, its driver, its node, what firmware claims of it.
extension PreflightFacts {
  func checkGroup(_ check: inout CheckDraft) {
    guard let device else { return checkEveryGroup(&check) }
    guard let group else {
      let verdict: Preflight.Verdict = device.isGroupKnown ? .notApplicable : .unknown
      return check.conclude(verdict, "The device has no IOMMU group that could be read.")
    }
    for member in group.members {
      let path = member.address.map(PCIDevice.path) ?? "\(SysPath.groups)/\(group.id)/devices/\(member.name)"
      check.note("\(path)/driver", member.isDriverKnown ? member.driver ?? "not there" : "unreadable")
    }
    let others = group.members.filter { $0.address != device.address }
    let bridge = (try? host.topology(of: device.address))?.conventionalBridge
    let because =
      bridge.map {
        " All that is behind \($0), a bridge to conventional PCI, is one group, since the IOMMU sees one requester there."
      } ?? ""
    if let culprit = others.first(where: { !$0.leavesViable }) {
      let fixed = culprit.address == nil || culprit.isBridge == true
      return check.conclude(
        .fail,
        "VFIO hands out the group of a device whole, and \(culprit.name) in group \(group.id) belongs to the host's "
          + "driver \(culprit.driver ?? "").\(because)",
        remedy: fixed
          ? "Move the device to another slot or root port: \(culprit.name) is not for VFIO to take."
          : "Bind the whole group: \(host.howTo(.bind, device.address.description)); or take \(culprit.name) off its driver: "
            + "\(host.howTo(.unbind, culprit.name))\(isOneCard(culprit) ? "" : "; or move the device to another slot").",
        culprit: culprit.description)
    }
    if let unknown = others.first(where: { !$0.isDriverKnown }) {
      return check.conclude(
        .unknown, "The driver of \(unknown.name) in group \(group.id) could not be read.",
        remedy: "Run it as root.")
    }
    check.conclude(
      .ok,
      others.isEmpty
        ? "The device is alone in group \(group.id)."
        : "No other device of group \(group.id) belongs to the host.\(because)")
  }

  /// Whether another device is a function in the same slot: those move together.
  private func isOneCard(_ other: IOMMUGroup.Member) -> Bool {
    guard let device = device?.address, let other = other.address else { return false }
    return (device.domain, device.bus, device.device) == (other.domain, other.bus, other.device)
  }

  /// Without a device: the groups that VFIO has a device of.
  private func checkEveryGroup(_ check: inout CheckDraft) {
    guard let groups = try? host.groups() else {
      return check.conclude(.unknown, "The groups could not be read.", remedy: "Run it as root.")
    }
    let taken = groups.filter { $0.members.contains { $0.driver.map(VFIODriver.drives) ?? false } }
    for group in taken {
      check.note(
        "\(SysPath.groups)/\(group.id)/devices", group.members.map(\.description).joined(separator: ", "))
    }
    if let group = taken.first(where: { $0.culprit != nil }), let culprit = group.culprit {
      check.conclude(
        .fail, "Group \(group.id) has a device bound to VFIO and another that belongs to the host.",
        remedy:
          "Bind the whole group: \(host.howTo(.bind, group.devices.first.map(\.description) ?? culprit.name)).",
        culprit: culprit.description)
    } else if taken.isEmpty {
      check.conclude(.notApplicable, "No device is bound to VFIO.")
    } else {
      let which = taken.count == 1 ? "The group" : "All \(taken.count) groups"
      let verb = taken.count == 1 ? "has" : "have"
      check.conclude(
        .ok, "\(which) of which VFIO has a device \(verb) no device that belongs to the host.")
    }
  }

  func checkDriver(_ check: inout CheckDraft) {
    guard let device else { return check.conclude(.notApplicable, "It is about a device; none was named.") }
    let seen = check.link("\(device.path)/driver")
    if let override = device.driverOverride { check.note("\(device.path)/driver_override", override) }
    // Without an IOMMU binding is refused: then it is no remedy.
    let isTranslated = !device.isGroupKnown || device.group != nil && group?.isNoIOMMU != true
    let bind =
      isTranslated
      ? "Bind it, with its group, to vfio-pci: \(host.howTo(.bind, device.address.description))"
      : "Have an IOMMU translate for it first, see iommu-enabled: vfio-pci cannot drive it without"
    if device.isBridge == true {
      return check.conclude(
        .fail, "It is a bridge: the kernel drives those itself.", remedy: "Name a device behind it.")
    }
    switch seen {
    case .value(let driver) where VFIODriver.drives(driver):
      check.conclude(.ok, "The device is bound to \(driver), a driver of VFIO.")
    case .value(let driver):
      check.conclude(
        .fail, "The device is bound to the host's driver \(driver).",
        remedy: "\(bind)\(isTranslated ? "; \(driver) then loses it" : "").")
    case .absent: check.conclude(.fail, "The device is bound to no driver.", remedy: "\(bind).")
    case .unreadable:
      check.conclude(.unknown, "The device's driver could not be read.", remedy: "Run it as root.")
    }
  }

  func checkNode(_ check: inout CheckDraft) {
    guard let device else {
      switch check.exists("/sys/class/vfio-dev") {
      case true?:
        return check.conclude(
          .ok, "VFIO has a directory for devices; `iommuctl doctor DEVICE` tells whether one has a node.")
      case false?:
        return check.conclude(
          .warn, "VFIO is not loaded, or gives devices no nodes of their own.",
          remedy: "`sudo modprobe vfio-pci`; nodes of devices take Linux 6.6 or later with CONFIG_VFIO_DEVICE_CDEV.")
      case nil:
        return check.conclude(
          .unknown, "Whether VFIO is loaded could not be read.", remedy: "Run it as root.")
      }
    }
    guard device.isBoundToVFIO else {
      return check.conclude(.notApplicable, "The device has a node once it is bound to VFIO.")
    }
    let names = check.names("\(device.path)/vfio-dev")
    if let node = device.cdev, check.exists("/dev/vfio/devices/\(node)") == false {
      return check.conclude(
        .fail, "The kernel has the node \(node), but it is not in /dev.",
        remedy: "See whether udev runs here, and in a container, pass /dev/vfio/devices/\(node) in.")
    } else if let node = device.cdev {
      return check.conclude(.ok, "The device's own node is /dev/vfio/devices/\(node).")
    }
    guard names != nil else {
      return check.conclude(.unknown, "The device's node could not be read.", remedy: "Run it as root.")
    }
    check.conclude(
      .warn,
      "This kernel gives VFIO devices no nodes of their own: the device is driven by its group's node and type1.",
      remedy: "Nothing, if type1 is enough; else Linux 6.6 or later with CONFIG_VFIO_DEVICE_CDEV.")
  }

  func checkRegions(_ check: inout CheckDraft) {
    guard device != nil else {
      return check.conclude(.notApplicable, "It is about a device; none was named.")
    }
    guard let group else {
      return check.conclude(.notApplicable, "The device has no IOMMU group that could be read.")
    }
    let path = "\(SysPath.groups)/\(group.id)/reserved_regions"
    guard let regions = try? host.reservedRegions(ofGroup: group.id), regions.unread.isEmpty else {
      check.note(path, "unreadable")
      return check.conclude(
        .unknown,
        "The group's reserved regions could not be read; only the kernel's own list of usable addresses then keeps "
          + "mappings off them.", remedy: "Run it as root.")
    }
    for region in regions.regions { check.note(path, "\(region.range) \(region.type)") }
    if regions.regions.isEmpty { check.note(path, "none") }
    if regions.regions.contains(where: { $0.type == .direct }) {
      return check.conclude(
        .fail,
        "Firmware demands that the device always reach memory one to one: VFIO refuses it with EINVAL.",
        remedy: "See whether the firmware's set-up or an update drops it (on Intel an RMRR); no driver can.")
    }
    check.conclude(
      .ok,
      "Nothing that is reserved keeps VFIO from the device; this library gives out no address of these regions."
    )
  }
}
