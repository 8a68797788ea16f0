import AddressSpace
import IOMMU

/// Several devices in one domain, and lives that end in any order.
extension Cases {
  static let sharing: [ConformanceCase] = [
    ConformanceCase(.conformance, "share/two-devices") { environment in
      let first = try environment.open(environment.devices.edu)
      let second = try environment.open(environment.devices.secondEdu, sharing: first.dma)
      let mapping = try first.dma.map(try first.dma.buffer(byteCount: 64), .bidirectional)
      try unsafe expect(
        second.dma.translate(mapping.address) != nil, "The other device does not see the mapping")
      first.close()
      try expect(!second.dma.isClosed, "The domain ended with its first device")
      let other = try second.dma.map(try second.dma.buffer(byteCount: 64), .bidirectional)
      try expect(other.address != mapping.address, "An address in use was given out again")
      second.close()
      try expect(second.dma.isClosed, "The domain outlived its last device")
    },
    ConformanceCase(.conformance, "share/other-interface") { environment in
      let first = try environment.open(environment.devices.edu)
      let other: Interface = environment.interface == .iommufd ? .type1 : .iommufd
      try expectCode(.invalidArgument, what: "sharing over \(other.rawValue)") { () throws(DMAError) in
        _ = try Device(
          environment.devices.secondEdu, on: environment.host, interface: other, sharing: first.dma)
      }
    },
    ConformanceCase(.conformance, "life/close-with-mappings") { environment in
      let device = try environment.open(environment.devices.edu)
      let mapping = try device.dma.map(try device.dma.buffer(byteCount: 5000), .toDevice)
      device.close()
      var buffer = try mapping.unmap()
      buffer.store(UInt64(1), at: 8)
      try expectEqual(
        buffer.load(at: 8, as: UInt64.self), 1, "the buffer of a mapping that outlived its device")
    },
    ConformanceCase(.conformance, "life/any-drop-order") { environment in
      // What goes first: device, mapping, array, buffer.
      for order in 0..<5 { try dropInOrder(environment, order) }
    },
    ConformanceCase(.conformance, "life/reopen") { environment in
      for _ in 0..<5 {
        let device = try environment.open(environment.devices.edu)
        let mapping = try device.dma.map(try device.dma.buffer(byteCount: 64), .toDevice)
        try expect(mapping.address.rawValue != 0, "Address 0 was given out")
      }
    },
    ConformanceCase(.conformance, "life/passed-descriptors") { environment in
      let kernel = environment.kernel
      let details = try environment.details(environment.devices.edu)
      let device: Device
      switch environment.interface {
      case .iommufd:
        let node = try kernel.open("/dev/vfio/devices/\(details.cdev ?? "")"),
          iommufd = try kernel.open("/dev/iommu")
        device = try Device(
          environment.devices.edu, characterDevice: node, iommufd: iommufd, on: environment.host,
          translation: environment.translation)
      case .type1:
        let group = try kernel.open("/dev/vfio/\(details.group ?? -1)"),
          container = try kernel.open("/dev/vfio/vfio")
        device = try Device(environment.devices.edu, group: group, container: container, on: environment.host)
      }
      try expectEqual(device.interface, environment.interface, "the interface")
      try expectEqual(try device.registers(bar: 0)[0], 0x0100_00ed, "edu's identification")
    },
  ]

  /// The device stays open while its domain is in use; when all is dropped, in whatever order, it is free again.
  private static func dropInOrder(_ environment: Environment, _ order: Int) throws {
    var device: Device? = try environment.open(environment.devices.edu)
    var dma: DMADomain? = device!.dma
    var mapping: Mapping? = try dma!.map(try dma!.buffer(byteCount: 9000), .bidirectional)
    var array: CoherentArray<UInt64>? = try dma!.allocate(UInt64.self, count: 700)
    var buffer: DMABuffer? = try dma!.buffer(byteCount: 64)
    for step in 0..<5 {
      switch (step + order) % 5 {
      case 0: device = nil
      case 1: mapping = nil
      case 2: array = nil
      case 3: dma = nil
      default: buffer = nil
      }
      if let dma { try expect(!dma.isClosed, "The device was closed while its domain was in use") }
    }
    try expect(mapping == nil && array == nil && buffer == nil && device == nil && dma == nil, "not dropped")
    // Busy, if anything were left.
    try environment.open(environment.devices.edu).close()
  }
}
