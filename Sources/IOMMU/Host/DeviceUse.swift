/// Something that the host uses a device for.
struct DeviceUse: Hashable, Sendable {
  let device: PCIAddress
  let text: String
  /// Whether taking the device would break the host.
  let isVital: Bool
}

extension Host {
  /// What the host uses devices for, as far as it can be read: file systems, swap, network, screen, virtual functions.
  func uses(of devices: [PCIDevice]) -> [DeviceUse] {
    let addresses = Set(devices.map(\.address))
    var uses = BlockUses(kernel).uses.filter { addresses.contains($0.device) }
    for device in devices {
      guard let details = try? details(of: device.address) else { continue }
      if !details.virtualFunctions.isEmpty {
        let text = "\(details.virtualFunctions.count) virtual functions of it are enabled"
        uses.append(DeviceUse(device: device.address, text: text, isVital: true))
      }
      if details.isBootDisplay {
        let text = "Firmware's screen is on it: the console may go dark"
        uses.append(DeviceUse(device: device.address, text: text, isVital: false))
      }
      uses += networkUses(device)
    }
    return uses
  }

  private func networkUses(_ device: PCIDevice) -> [DeviceUse] {
    var reader = FileReader(kernel)
    let below = reader.names(device.path).filter { $0.hasPrefix("virtio") }.map { "\(device.path)/\($0)" }
    return ([device.path] + below).flatMap { reader.names("\($0)/net", optional: true) }.compactMap { name in
      if defaultRoutes.contains(name) {
        return DeviceUse(
          device: device.address, text: "The default route goes through its \(name)", isVital: true)
      }
      guard reader.text("/sys/class/net/\(name)/operstate", optional: true) == "up" else { return nil }
      return DeviceUse(device: device.address, text: "Its network interface \(name) is up", isVital: false)
    }
  }

  /// Interfaces that a default route of IPv4 or IPv6 goes through.
  private var defaultRoutes: Set<String> {
    var reader = FileReader(kernel), names: Set<String> = []
    for line in (reader.text("/proc/net/route", optional: true) ?? "").split(separator: "\n") {
      let words = line.split(whereSeparator: { $0 == "\t" || $0 == " " })
      if words.count > 7, words[1] == "00000000", words[7] == "00000000" { names.insert(String(words[0])) }
    }
    for line in (reader.text("/proc/net/ipv6_route", optional: true) ?? "").split(separator: "\n") {
      let words = line.split(separator: " ")
      if words.count > 9, words[0].allSatisfy({ $0 == "0" }), words[1] == "00" {
        names.insert(String(words[9]))
      }
    }
    return names.subtracting(["lo"])
  }
}

/// The PCI devices below mounted file systems and swap.
private struct BlockUses {
  private var reader: FileReader
  private(set) var uses: [DeviceUse] = []

  init(_ kernel: any Kernel) {
    reader = FileReader(kernel)
    for line in (reader.text("/proc/self/mountinfo", optional: true) ?? "").split(separator: "\n") {
      // id parent major:minor root mount-point options … - type source options
      let words = line.split(separator: " ")
      guard words.count > 6, let dash = words.firstIndex(of: "-"), dash + 2 < words.count else { continue }
      let source = String(words[dash + 2])
      let start = words[2].hasPrefix("0:") ? directory(ofNode: source) : "/sys/dev/block/\(words[2])"
      if let start { add(start, "The file system at \(words[4]) is on it") }
    }
    for line in (reader.text("/proc/swaps", optional: true) ?? "").split(separator: "\n").dropFirst() {
      guard let node = line.split(whereSeparator: { $0 == " " || $0 == "\t" }).first else { continue }
      if let start = directory(ofNode: String(node)) { add(start, "Swap is on it") }
    }
  }

  private mutating func add(_ directory: String, _ text: String) {
    for address in devices(below: directory, depth: 0) {
      let use = DeviceUse(device: address, text: text, isVital: true)
      if !uses.contains(use) { uses.append(use) }
    }
  }

  /// `/dev/sda2` is `sda2` in sysfs; names in `/dev/mapper` are looked for among the dm devices.
  private mutating func directory(ofNode node: String) -> String? {
    guard node.hasPrefix("/dev/"), let name = Field.lastComponent(node) else { return nil }
    if !node.hasPrefix("/dev/mapper/") { return "/sys/class/block/\(name)" }
    return reader.names("/sys/class/block", optional: true).filter { $0.hasPrefix("dm-") }
      .map { "/sys/class/block/\($0)" }
      .first { reader.text("\($0)/dm/name", optional: true) == name }
  }

  /// The PCI devices that a block device's directory lies below, or those of its parts when it is made of others.
  private mutating func devices(below directory: String, depth: Int) -> [PCIAddress] {
    guard depth < 8, let target = try? reader.kernel.readLink(directory) else { return [] }
    let components = target.split(separator: "/")
    if let address = components.compactMap({ PCIAddress(sysfsName: $0) }).last { return [address] }
    if let subsystem = components.first(where: { $0.hasPrefix("nvme-subsys") && $0 != "nvme-subsystem" }) {
      let path = "/sys/class/nvme-subsystem/\(subsystem)"
      return reader.names(path, optional: true).filter { $0.hasPrefix("nvme") }
        .flatMap { devices(below: "\(path)/\($0)", depth: depth + 1) }
    }
    return reader.names("\(directory)/slaves", optional: true)
      .flatMap { devices(below: "\(directory)/slaves/\($0)", depth: depth + 1) }
  }
}
