extension Host {
  /// Every IOMMU group, by number; empty when no IOMMU is in use.
  ///
  /// Reads three files a group and two a member; O(devices). The source is `/sys/kernel/iommu_groups`.
  ///
  /// - Throws: ``DMAError/Code-swift.struct/corruptTree`` when there is no sysfs, or when the list itself cannot be read.
  public func groups() throws(DMAError) -> [IOMMUGroup] {
    let entries: [String]
    do { entries = try kernel.listDirectory(SysPath.groups) } catch {
      guard error == .noEntry else { throw unreadable(SysPath.groups, error) }
      try requireSysfs()
      return []
    }
    return entries.compactMap(Self.groupID).sorted().map { readGroup($0) }
  }

  /// One IOMMU group.
  ///
  /// - Throws: ``DMAError/Code-swift.struct/noSuchDevice`` when there is no such group.
  public func group(_ id: Int) throws(DMAError) -> IOMMUGroup {
    do { _ = try kernel.status("\(SysPath.groups)/\(id)") } catch {
      guard error == .noEntry || error == .notDirectory else {
        throw unreadable("\(SysPath.groups)/\(id)", error)
      }
      try requireSysfs()
      throw DMAError(
        .noSuchDevice, "find", errno: error, device: "group \(id)",
        remedy: isSimulated
          ? "`try host.groups()` has the groups of the simulated machine"
          : "`iommuctl groups` shows the groups of this machine")
    }
    return readGroup(id)
  }

  static func groupID(_ name: String) -> Int? {
    Field.number(Array(name.utf8)[...]).flatMap { (id: Int) in id < 0 ? nil : id }
  }

  /// A group with its members.
  func readGroup(_ id: Int) -> IOMMUGroup {
    var group = IOMMUGroup(id: id), reader = FileReader(kernel)
    readMembers(&group, known: [:], &reader)
    group.isNoIOMMU = isNoIOMMU(id, &reader)
    group.type = reader.text("\(SysPath.groups)/\(id)/type", optional: true)
    group.unread = reader.unread
    return group
  }

  /// What the status of its devices needs of a group: what `known` holds of them is not read again.
  private func readViability(_ id: Int, known: [PCIAddress: PCIDevice]) -> IOMMUGroup {
    var group = IOMMUGroup(id: id), reader = FileReader(kernel)
    readMembers(&group, known: known, &reader)
    // A group without an IOMMU has none to show.
    if group.unit == nil { group.isNoIOMMU = isNoIOMMU(id, &reader) }
    return group
  }

  private func readMembers(
    _ group: inout IOMMUGroup, known: [PCIAddress: PCIDevice], _ reader: inout FileReader
  ) {
    let path = "\(SysPath.groups)/\(group.id)"
    for name in reader.names("\(path)/devices") {
      guard let name = Field.lastComponent(name) else { continue }
      let address = PCIAddress(sysfsName: name[...])
      var member = IOMMUGroup.Member(name: name, address: address)
      if let device = address.flatMap({ known[$0] }) {
        (member.driver, member.isDriverKnown) = (device.driver, device.isDriverKnown)
        member.isBridge = device.isBridge
        group.unit = group.unit ?? device.unit
      } else {
        readMember(&member, "\(path)/devices/\(name)", &reader)
        if group.unit == nil { group.unit = reader.linkName("\(path)/devices/\(name)/iommu") }
      }
      group.members.append(member)
    }
  }

  private func readMember(_ member: inout IOMMUGroup.Member, _ path: String, _ reader: inout FileReader) {
    // By the bus's own directory for PCI: the group's link may dangle in a captured tree.
    let path = member.address.map(PCIDevice.path) ?? path
    let before = reader.unread.count
    member.driver = reader.linkName("\(path)/driver")
    member.isDriverKnown = reader.unread.count == before && reader.exists(path) == true
    guard member.address != nil else { return }
    let code: UInt32? = reader.number("\(path)/class")
    member.isBridge = code.map { $0 >> 16 == 6 }
  }

  private func isNoIOMMU(_ id: Int, _ reader: inout FileReader) -> Bool {
    reader.text("\(SysPath.groups)/\(id)/name", optional: true) == "vfio-noiommu"
  }

  /// Gives each device its status, reading each group once.
  func settle(_ devices: inout [PCIDevice]) {
    let known = Dictionary(devices.map { ($0.address, $0) }) { first, _ in first }
    var groups: [Int: IOMMUGroup] = [:]
    for index in devices.indices {
      guard let id = devices[index].group else {
        (devices[index].status, devices[index].reason) = Readiness.withoutGroup(devices[index])
        continue
      }
      let group = groups[id] ?? readViability(id, known: known)
      groups[id] = group
      (devices[index].status, devices[index].reason) = Readiness.judge(devices[index], in: group)
    }
  }
}

/// How a device's status follows from its facts.
private enum Readiness {
  typealias Answer = (PCIDevice.Status, String?)

  static func withoutGroup(_ device: PCIDevice) -> Answer {
    guard device.isGroupKnown else { return (.unknown, "Its IOMMU group could not be read") }
    if device.isBridge == true { return (.blocked, "A bridge is the kernel's to drive") }
    return (.blocked, "No IOMMU translates for it: it has no IOMMU group")
  }

  static func judge(_ device: PCIDevice, in group: IOMMUGroup) -> Answer {
    if device.isBridge == true { return (.blocked, "A bridge is the kernel's to drive") }
    if group.isNoIOMMU { return (.blocked, "In VFIO's no-IOMMU mode nothing contains its DMA; refused") }
    guard device.isDriverKnown else { return (.unknown, "Its driver could not be read") }
    let others = group.members.filter { $0.address != device.address }
    let holding = others.filter { !$0.leavesViable }
    if device.isBoundToVFIO {
      if let culprit = holding.first {
        return (.blocked, "\(culprit) of its group is bound to a host driver")
      }
      if let unknown = others.first(where: { !$0.isDriverKnown }) {
        return (.unknown, "The driver of \(unknown.name) in its group could not be read")
      }
      return (.ready, nil)
    }
    if let fixed = holding.first(where: { $0.address == nil || $0.isBridge == true }) {
      return (.blocked, "\(fixed) of its group is no device that VFIO can take")
    }
    if holding.isEmpty { return (.bindable, nil) }
    let names = holding.map(\.description).joined(separator: ", ")
    return (.bindable, "Binding its group takes \(names) as well")
  }
}
