/// Puts PCI devices into a tree the way the kernel shows them: the device below its bridges, with the links of the bus,
/// the group, the driver and the IOMMU unit that lead to it.
package struct TreeBuilder {
  package var tree = CapturedTree()
  private var places: [String: String] = [:]  // of a device, its directory below /sys/devices

  package init() {
    for directory in ["/sys/bus/pci/drivers_probe", "/sys/bus/pci/rescan"] { tree[directory] = "" }
  }

  /// What a device shows.
  package struct Device {
    package var address: String
    package var vendor: UInt16, device: UInt16
    package var classCode: UInt32
    package var bridge: String?
    package var rootBus = "pci0000:00"
    package var driver: String?
    package var group: Int?
    package var unit: String?
    package var numaNode = -1
    package var resource: [(UInt64, UInt64, UInt64)] = []
    package init(_ address: String, _ vendor: UInt16, _ device: UInt16, class classCode: UInt32) {
      (self.address, self.vendor, self.device, self.classCode) = (address, vendor, device, classCode)
    }
  }

  package mutating func add(unit: String, _ registers: [String: String] = [:]) {
    let path = "/sys/devices/virtual/iommu/\(unit)"
    tree.entries["\(path)/devices"] = .directory
    for (name, value) in registers { tree["\(path)/\(name)"] = value + "\n" }
    tree.entries["/sys/class/iommu/\(unit)"] = .link("../../devices/virtual/iommu/\(unit)")
  }

  package mutating func add(_ device: Device) {
    let parent = device.bridge.flatMap { places[$0] } ?? "/sys/devices/\(device.rootBus)"
    let path = "\(parent)/\(device.address)"
    places[device.address] = path
    let up = String(repeating: "../", count: path.split(separator: "/").count - 1)
    tree.entries["/sys/bus/pci/devices/\(device.address)"] = .link("../../..\(path.dropFirst(4))")
    addFiles(device, path)
    if let driver = device.driver {
      tree.entries["\(path)/driver"] = .link("\(up)bus/pci/drivers/\(driver)")
      for file in ["bind", "unbind", "new_id"] { tree["/sys/bus/pci/drivers/\(driver)/\(file)"] = "" }
    }
    guard let group = device.group else { return }
    let groupPath = "/sys/kernel/iommu_groups/\(group)"
    tree.entries["\(path)/iommu_group"] = .link("\(up)kernel/iommu_groups/\(group)")
    tree.entries["\(groupPath)/devices/\(device.address)"] = .link("../../../..\(path.dropFirst(4))")
    tree["\(groupPath)/type"] = "DMA-FQ\n"
    tree["\(groupPath)/reserved_regions"] =
      "0x00000000fee00000 0x00000000feefffff msi\n0x000000fd00000000 0x000000ffffffffff reserved\n"
    guard let unit = device.unit else { return }
    tree.entries["\(path)/iommu"] = .link("\(up)devices/virtual/iommu/\(unit)")
    tree.entries["/sys/devices/virtual/iommu/\(unit)/devices/\(device.address)"] =
      .link("../../../..\(path.dropFirst(12))")
  }

  private mutating func addFiles(_ device: Device, _ path: String) {
    let ids = "\(hex(UInt64(device.vendor), 4).uppercased()):\(hex(UInt64(device.device), 4).uppercased())"
    tree["\(path)/uevent"] =
      (device.driver.map { "DRIVER=\($0)\n" } ?? "")
      + "PCI_CLASS=\(hex(UInt64(device.classCode), 5).uppercased())\nPCI_ID=\(ids)\nPCI_SUBSYS_ID=\(ids)\n"
      + "PCI_SLOT_NAME=\(device.address)\n"
    for (name, value) in [("vendor", device.vendor), ("device", device.device)] {
      tree["\(path)/\(name)"] = "0x\(hex(UInt64(value), 4))\n"
      tree["\(path)/subsystem_\(name)"] = "0x\(hex(UInt64(value), 4))\n"
    }
    tree["\(path)/class"] = "0x\(hex(UInt64(device.classCode), 6))\n"
    tree["\(path)/revision"] = "0x01\n"
    tree["\(path)/driver_override"] = "(null)\n"
    tree["\(path)/numa_node"] = "\(device.numaNode)\n"
    tree["\(path)/enable"] = device.driver == nil ? "0\n" : "1\n"
    tree["\(path)/power_state"] = "D0\n"
    tree["\(path)/reset_method"] = "flr bus\n"
    tree["\(path)/current_link_speed"] = "16.0 GT/s PCIe\n"
    let lines = device.resource + Array(repeating: (0, 0, 0), count: max(0, 7 - device.resource.count))
    tree["\(path)/resource"] = lines.map { "0x\(hex($0.0, 16)) 0x\(hex($0.1, 16)) 0x\(hex($0.2, 16))\n" }
      .joined()
    var config: [UInt8] = Array(repeating: 0, count: 64)
    for (offset, value) in [(0, device.vendor), (2, device.device)] {
      (config[offset], config[offset + 1]) = (UInt8(value & 0xff), UInt8(value >> 8))
    }
    config[0x0e] = device.classCode >> 8 == 0x0604 ? 1 : 0
    config[6] = 0x10
    config[0x34] = 0x40
    tree.entries["\(path)/config"] = .file(config)
  }

  private func hex(_ value: UInt64, _ digits: Int) -> String {
    let text = String(value, radix: 16)
    return String(repeating: "0", count: max(0, digits - text.count)) + text
  }
}
