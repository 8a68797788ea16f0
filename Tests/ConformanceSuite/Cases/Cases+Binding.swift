import Glibc
import IOMMU

/// Getting a device: what `vfio_iommufd_setup_test` of the kernel's selftests asserts, and the same of type1.
extension Cases {
  static let binding: [ConformanceCase] = [
    ConformanceCase(.conformance, "bind/then-info") { environment in
      let raw = try RawDevice(environment.devices.edu, environment)
      try raw.bind()
      let info = try raw.kernel.vfioDeviceInfo(raw.device)
      try expect(info.flags & 2 != 0, "The device is no PCI device: flags \(info.flags)")
      try expect(info.regionCount >= 8 && info.interruptCount >= 3, "\(info)")
    },
    ConformanceCase(.conformance, "bind/info-before-fails") { environment in
      let raw = try RawDevice(environment.devices.edu, environment)
      let (kernel, name) = (raw.kernel, raw.details.address.description)
      switch raw.interface {
      case .iommufd:
        try expectErrno(.invalidArgument, what: "GET_INFO before BIND") { () throws(Errno) in
          try kernel.vfioDeviceInfo(raw.device)
        }
      case .type1:
        try expectErrno(.invalidArgument, what: "GET_DEVICE_FD without a container") { () throws(Errno) in
          try kernel.vfioGroupDevice(raw.group, name: name)
        }
      }
    },
    ConformanceCase(.conformance, "bind/bad-descriptor") { environment in
      let raw = try RawDevice(environment.devices.edu, environment)
      let kernel = raw.kernel
      // No descriptor at all, and one of something else (EBADFD).
      let isNode = raw.interface == .iommufd
      let tries = [
        (-2, isNode ? Errno.invalidArgument : .badDescriptor),
        (isNode ? raw.device : raw.group, Errno(rawValue: EBADFD)),
      ]
      for (descriptor, wanted) in tries {
        try expectErrno(wanted, what: "binding to descriptor \(descriptor)") { () throws(Errno) in
          switch raw.interface {
          case .iommufd: _ = try kernel.vfioBind(raw.device, iommufd: descriptor, token: nil)
          case .type1: try kernel.vfioSetContainer(group: raw.group, container: descriptor)
          }
        }
      }
    },
    ConformanceCase(.conformance, "bind/repeated-fails") { environment in
      let raw = try RawDevice(environment.devices.edu, environment)
      try raw.bind()
      try expectErrno(.invalidArgument, what: "the second bind") { () throws(Errno) in
        switch raw.interface {
        case .iommufd: _ = try raw.kernel.vfioBind(raw.device, iommufd: raw.space, token: nil)
        case .type1: try raw.kernel.vfioSetContainer(group: raw.group, container: raw.space)
        }
      }
      _ = try raw.kernel.vfioDeviceInfo(raw.device)
    },
    ConformanceCase(.conformance, "bind/other-way-busy") { environment in
      // Group and node of one device exclude each other.
      let raw = try RawDevice(environment.devices.edu, environment)
      try raw.bind()
      switch raw.interface {
      case .iommufd:
        let path = try raw.groupNode
        try expectErrno(.busy, what: "opening the group") { () throws(Errno) in try raw.kernel.open(path) }
      case .type1:
        let device = try raw.kernel.open(try raw.node), iommufd = try raw.kernel.open("/dev/iommu")
        defer { for descriptor in [device, iommufd] { raw.kernel.close(descriptor) } }
        try expectErrno(.busy, what: "binding the node") { () throws(Errno) in
          try raw.kernel.vfioBind(device, iommufd: iommufd, token: nil)
        }
      }
    },
    ConformanceCase(.conformance, "bind/not-viable") { environment in
      try notViable(environment)
    },
    ConformanceCase(.conformance, "bind/group-and-restore") { environment in
      try bindAndRestore(environment)
    },
  ]

  /// The whole group goes to vfio-pci, and each device gets its own driver back.
  private static func bindAndRestore(_ environment: Environment) throws {
    let (host, shared) = (environment.host, environment.devices.sharedGroup)
    guard let first = shared.first, let last = shared.last, let address = PCIAddress(first) else { return }
    let former = try environment.details(last).driver
    try expect(former != nil && former != "vfio-pci", "\(last) has no driver of its own: \(former ?? "none")")
    try host.perform(try host.plan(.bind, of: address))
    let result = Result {
      try expectEqual(try environment.details(last).driver, "vfio-pci", "the driver of \(last)")
      let device = try environment.open(first)
      try expectEqual(try device.registers(bar: 0)[0], 0x0100_00ed, "edu's identification")
      device.close()
    }
    try host.perform(try host.plan(.restore, of: address))
    let restored = try environment.details(last).driver
    try Environment.takeEdus(of: shared, on: host)  // as the other cases want them
    try result.get()
    try expectEqual(restored, former, "the driver of \(last) after restore")
  }

  /// A member of the group has its host driver: the kernel gives out none of the others.
  private static func notViable(_ environment: Environment) throws {
    let raw = try RawDevice(environment.devices.sharedGroup[0], environment)
    switch raw.interface {
    case .iommufd:
      try expectErrno(.notPermitted, what: "binding a device of a group that is not viable") {
        () throws(Errno) in
        try raw.bind()
      }
    case .type1:
      try expectEqual(try raw.kernel.vfioGroupStatus(raw.group) & 1, 0, "the group's viable bit")
      try expectErrno(.notPermitted, what: "SET_CONTAINER of a group that is not viable") {
        () throws(Errno) in
        try raw.kernel.vfioSetContainer(group: raw.group, container: raw.space)
      }
    }
  }
}
