extension CapturedTree {
  /// A two-socket VT-d server: so many PCI devices behind root ports, two functions a card, each card a group and each
  /// root port another; every third card's functions share a group, and every fourth card is bound to vfio-pci.
  ///
  /// - Parameter deviceCount: PCI functions in all, bridges included.
  package static func server(deviceCount: Int) -> CapturedTree {
    var builder = TreeBuilder()
    let registers = [
      "intel-iommu/version": "1:0", "intel-iommu/cap": "8d2078c106f0466", "intel-iommu/ecap": "f020df",
      "intel-iommu/address": "00000000d37fc000",
    ]
    for unit in 0..<4 { builder.add(unit: "dmar\(unit)", registers) }
    var count = 0, card = 0, group = 0, cdev = 0
    while count < deviceCount {
      // A segment has 32 root ports with bus numbers of their own; the first two are the sockets'.
      let domain = card / 32, slot = card % 32, bus = slot + 1, unit = "dmar\(card % 4)", node = card % 2
      let root = "pci\(digits(domain, 4)):00", port = "\(digits(domain, 4)):00:\(digits(slot, 2)).0"
      var bridge = TreeBuilder.Device(port, 0x8086, 0x2030, class: 0x060400)
      (bridge.rootBus, bridge.driver, bridge.group, bridge.unit) = (root, "pcieport", group, unit)
      (bridge.numaNode, group) = (node, group + 1)
      builder.add(bridge)
      count += 1
      for function in 0..<2 where count < deviceCount {
        let address = "\(digits(domain, 4)):\(digits(bus, 2)):00.\(function)"
        let (vendor, id, code, driver) = kinds[card % kinds.count]
        var device = TreeBuilder.Device(address, vendor, id, class: code)
        (device.rootBus, device.bridge, device.numaNode, device.unit) = (root, port, node, unit)
        device.driver = card % 4 == 3 ? "vfio-pci" : driver
        device.group = group
        let bar = 0x9000_0000 + UInt64(count) << 20
        device.resource = [(bar, bar + 0xffff, 0x140204)]
        builder.add(device)
        if device.driver == "vfio-pci" {
          builder.addNode("vfio\(cdev)", of: address, group: group)
          cdev += 1
        }
        if card % 3 != 0 || function == 1 { group += 1 }
        count += 1
      }
      card += 1
    }
    var tree = builder.tree
    for module in ["vfio", "vfio_pci", "iommufd"] {
      tree.entries["/sys/module/\(module)/parameters"] = .directory
    }
    tree["/sys/module/vfio_iommu_type1/parameters/dma_entry_limit"] = "65535\n"
    tree["/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"] = "N\n"
    tree["/proc/cmdline"] = "root=UUID=00000000-0000-0000-0000-000000000000 ro intel_iommu=on\n"
    tree["/proc/interrupts"] =
      "            CPU0\n 25:          1  IR-PCI-MSI-0000:00:01.0    0-edge      PCIe PME\n"
    for node in ["/dev/iommu", "/dev/vfio/vfio"] { tree[node] = "" }
    return tree
  }

  private static let kinds: [(UInt16, UInt16, UInt32, String)] = [
    (0x8086, 0x1572, 0x020000, "i40e"), (0x144d, 0xa808, 0x010802, "nvme"),
    (0x15b3, 0x1017, 0x020000, "mlx5_core"),
    (0x1000, 0x0097, 0x010700, "mpt3sas"), (0x10de, 0x20b5, 0x030200, "nvidia"),
  ]

  private static func digits(_ value: Int, _ count: Int) -> String {
    let text = String(value, radix: 16)
    return String(repeating: "0", count: count - text.count) + text
  }
}

extension TreeBuilder {
  /// The VFIO nodes of a device that is bound to vfio-pci.
  package mutating func addNode(_ name: String, of address: String, group: Int) {
    guard case .link(let target)? = tree.entries["/sys/bus/pci/devices/\(address)"] else { return }
    tree["/sys\(target.dropFirst(8))/vfio-dev/\(name)/dev"] = "511:0\n"
    tree["/dev/vfio/devices/\(name)"] = ""
    tree["/dev/vfio/\(group)"] = ""
  }
}
