import ArgumentParser
import IOMMU

/// Every PCI device and whether it can be driven.
struct List: Subcommand {
  static let configuration = CommandConfiguration(
    abstract: "List the PCI devices and whether a process can drive them.",
    discussion: """
      STATUS is one of:
        ready     bound to vfio-pci, its IOMMU group viable: a process can open it
        bindable  `sudo iommuctl bind ADDRESS` can give it to vfio-pci
        blocked   cannot be driven as things are: `iommuctl doctor ADDRESS` says why
        unknown   a file that decides it could not be read: --json lists such files

      Bridges are always blocked, since the kernel drives them itself, and so is what has no IOMMU group. Opening a \
      device that is ready takes the right to use its nodes besides.
      """)

  @OptionGroup var global: GlobalOptions

  func perform(_ context: Context) throws(Failure) -> Outcome {
    let machine = try context.machineToLookAt(global)
    let devices = try library { () throws(DMAError) in try machine.host.devices() }
    if context.isJSON {
      context.document([
        ("devices", .array(devices.map { .object($0.keys) })),
        ("unread", JSON(devices.flatMap(\.unread))),
      ])
    } else {
      context.console.out(Self.table(devices))
      let count = Set(devices.flatMap(\.unread)).count
      let blocked = devices.count { $0.status == .blocked }
      if blocked > 0 {
        let verb = blocked == 1 ? "device is" : "devices are"
        let doctor = "iommuctl \(machine.host.isSimulated ? "--simulated " : "")doctor ADDRESS"
        context.console.err("\(blocked) \(verb) blocked; `\(doctor)` says why\n")
      }
      if count > 0 { context.console.err("\(count) files could not be read; --json lists them\n") }
    }
    return .fine
  }

  private static func table(_ devices: [PCIDevice]) -> String {
    var table = Table("ADDRESS", "ID", "DRIVER", "GROUP", "IOMMU", "NODE", "NUMA", "STATUS", "NAME")
    for device in devices {
      let vendor = device.vendor.map { hexadecimal(UInt64($0), digits: 4) } ?? "????"
      let number = device.device.map { hexadecimal(UInt64($0), digits: 4) } ?? "????"
      table.add(
        device.address.description, "\(vendor):\(number)", device.driver, device.group.map(String.init),
        device.unit, device.cdev, device.numaNode.map(String.init), device.status.rawValue, device.name)
    }
    return table.text
  }
}

extension PCIDevice {
  /// The keys that a device has in documents.
  var keys: [(String, JSON)] {
    [
      ("address", .string(address.description)), ("vendor", JSON(id: vendor)), ("device", JSON(id: device)),
      ("name", JSON(name)), ("driver", JSON(driver)), ("group", JSON(group)), ("iommu", JSON(unit)),
      ("cdev", JSON(cdev)), ("numa_node", JSON(numaNode)), ("status", .string(status.rawValue)),
      ("reason", JSON(reason)),
    ]
  }
}
