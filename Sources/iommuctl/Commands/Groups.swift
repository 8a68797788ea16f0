import ArgumentParser
import IOMMU

/// Every IOMMU group and whether VFIO would hand it out.
struct Groups: Subcommand {
  static let configuration = CommandConfiguration(
    abstract: "List the IOMMU groups, their devices, and what keeps a group from being used.",
    discussion: """
      An IOMMU cannot keep the devices of a group apart, so VFIO hands out a group whole. It is viable when no device \
      of it is bound to a driver of the host's: each is bound to vfio-pci, to a driver that does no DMA (pci-stub, \
      pcieport), or to nothing.

      VIABLE NOW says whether that is so at present. HELD BY is the first device that is bound to a driver of the \
      host's, and that driver; `sudo iommuctl bind ADDRESS` gives the whole group of a device to vfio-pci.
      """)

  @OptionGroup var global: GlobalOptions

  func perform(_ context: Context) throws(Failure) -> Outcome {
    let machine = try context.machineToLookAt(global)
    let groups = try library { () throws(DMAError) in try machine.host.groups() }
    if context.isJSON {
      context.document([
        ("groups", .array(groups.map { .object($0.keys) })), ("unread", JSON(groups.flatMap(\.unread))),
      ])
      return .fine
    }
    var table = Table("GROUP", "TYPE", "IOMMU", "VIABLE NOW", "HELD BY", "DEVICES")
    for group in groups {
      let devices = group.members.map(\.description).joined(separator: ", ")
      table.add(
        String(group.id), group.type, group.unit, Self.word(group), group.culprit?.description, devices)
    }
    context.console.out(table.text)
    let held = groups.count { $0.viable == false }
    if held > 0 {
      let remedy = machine.host.isSimulated ? "" : "; `sudo iommuctl bind ADDRESS` gives all of a group to vfio-pci"
      context.console.err(
        "\(held) \(held == 1 ? "group is" : "groups are") not viable: a driver of the host's has the device in HELD BY\(remedy)\n"
      )
    }
    if groups.isEmpty { context.console.err("No IOMMU is in use; iommuctl doctor says why\n") }
    return .fine
  }

  private static func word(_ group: IOMMUGroup) -> String {
    switch group.viable {
    case true?: "yes"
    case false?: "no"
    case nil: "unknown"
    }
  }
}

extension IOMMUGroup {
  fileprivate var keys: [(String, JSON)] {
    [
      ("id", JSON(id)), ("type", JSON(type)), ("iommu", JSON(unit)), ("devices", JSON(members.map(\.name))),
      ("viable", JSON(viable)), ("culprit", JSON(culprit?.description)),
    ]
  }
}
