public import AddressSpace

/// What lies between a device and the IOMMU.
public struct PCITopology: Hashable, Sendable {
  /// The bridges between root bus and device, the root port first.
  public internal(set) var upstream: [PCIAddress] = []
  /// The first bridge on the way whose other side is conventional PCI: all that is behind it shares one requester id,
  /// hence one group. nil when there is none, as far as can be read.
  public internal(set) var conventionalBridge: PCIAddress?
  /// Whether the device and every bridge on the way send requests to the IOMMU and never to a peer beside it, by Access
  /// Control Services; nil when config space is not readable that far (it needs root).
  public internal(set) var redirectsToIOMMU: Bool?
  /// Paths that were to be read and could not, or that made no sense.
  public internal(set) var unread: [String] = []
}

/// Host addresses that a device must not use as IOVAs, because a request to them may reach a peer and not the IOMMU.
public struct PeerWindows: Hashable, Sendable {
  /// Whether they apply: the group has several devices, or Access Control Services do not redirect.
  public internal(set) var isNeeded = false
  /// BARs and bridge windows below the device's root bus, ascending, merged; empty when not needed.
  public internal(set) var ranges: [IOVARange] = []
  /// Paths that were to be read and could not, or that made no sense: then ``ranges`` may lack some.
  public internal(set) var unread: [String] = []
}

extension Host {
  /// What lies between a device and the IOMMU. One or two files a bridge; O(bridges on the way).
  ///
  /// - Throws: ``DMAError/Code-swift.struct/noSuchDevice``; ``DMAError/Code-swift.struct/corruptTree`` when there is no
  ///   sysfs.
  public func topology(of address: PCIAddress) throws(DMAError) -> PCITopology {
    var topology = PCITopology(), reader = FileReader(kernel)
    topology.upstream = try device(address, named: false).upstream
    topology.redirectsToIOMMU = true
    let path = topology.upstream + [address]
    for (index, function) in path.enumerated() {
      let directory = PCIDevice.path(of: function)
      let config = ConfigBytes(bytes: reader.bytes("\(directory)/config") ?? [])
      // A lone function on the root bus has no peer before the root complex, conventional or not.
      let isLone = topology.upstream.isEmpty && config.isMultiFunction == false
      switch isLone ? true : config.isolates {
      case true?: break
      case false?: topology.redirectsToIOMMU = false
      case nil: if topology.redirectsToIOMMU == true { topology.redirectsToIOMMU = nil }
      }
      guard topology.conventionalBridge == nil, index + 1 < path.count else { continue }
      let below = PCIDevice.path(of: path[index + 1])
      if isConventionalBelow(config, bridge: directory, child: below, reader) {
        topology.conventionalBridge = function
      }
    }
    topology.unread = reader.unread
    return topology
  }

  /// By the bridge's config space; without privilege by what both sides show of an Express link.
  private func isConventionalBelow(
    _ config: ConfigBytes, bridge: String, child: String, _ reader: FileReader
  ) -> Bool {
    switch config.expressType {
    case .express(let type): type == 7
    case .conventional: true
    case .unknown: reader.exists("\(child)/current_link_speed") == false && reader.exists(child) == true
    }
  }

  /// Host addresses that this device must not be given as IOVAs; the kernel's own DMA layer reserves them, VFIO and
  /// iommufd do not. Two files a device of the same root bus; O(devices).
  ///
  /// - Throws: ``DMAError/Code-swift.struct/noSuchDevice``; ``DMAError/Code-swift.struct/corruptTree`` when there is no
  ///   sysfs.
  public func peerWindows(of address: PCIAddress) throws(DMAError) -> PeerWindows {
    var windows = PeerWindows(), reader = FileReader(kernel)
    let device = try device(address, named: false)
    let topology = try topology(of: address)
    let members = device.group.map { readGroup($0).members.count } ?? 0
    windows.isNeeded = members > 1 || topology.redirectsToIOMMU == false
    windows.unread = topology.unread
    guard windows.isNeeded else { return windows }
    var found: [IOVARange] = []
    for name in reader.names(SysPath.devices) {
      guard let peer = PCIAddress(sysfsName: name[...]), isPeer(peer, of: device) else { continue }
      for resource in reader.resources(PCIDevice.path(of: peer))
      where resource.isMemory && resource.isAssigned {
        let (start, last) = (IOVA(rawValue: resource.start), IOVA(rawValue: resource.last))
        if let range = IOVARange(start: start, last: last) { found.append(range) }
      }
    }
    windows.ranges = Self.merged(found)
    windows.unread += reader.unread
    return windows
  }

  /// Below the same root bus; where the tree does not show root buses, in the same domain.
  private func isPeer(_ peer: PCIAddress, of device: PCIDevice) -> Bool {
    if peer == device.address { return true }
    guard peer.domain == device.address.domain else { return false }
    guard let root = device.rootBus, let target = try? kernel.readLink(PCIDevice.path(of: peer)) else {
      return true
    }
    return target.split(separator: "/").contains { $0 == root }
  }

  /// Ascending, with what overlaps or touches made one.
  private static func merged(_ ranges: [IOVARange]) -> [IOVARange] {
    var result: [IOVARange] = []
    for range in ranges.sorted(by: { $0.start < $1.start }) {
      guard let previous = result.last,
        range.start <= previous.last || range.start.rawValue == previous.last.rawValue + 1
      else {
        result.append(range)
        continue
      }
      if let joined = IOVARange(start: previous.start, last: max(previous.last, range.last)) {
        result[result.count - 1] = joined
      }
    }
    return result
  }
}
