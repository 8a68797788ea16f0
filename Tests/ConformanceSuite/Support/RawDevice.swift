import AddressSpace
import IOMMU

/// A device opened by the kernel's calls alone, without the library: what the kernel itself promises is asked of it.
final class RawDevice {
  let kernel: any Kernel
  let interface: Interface
  let details: PCIDevice
  /// The device's descriptor; -1 until it is open.
  private(set) var device: Int32 = -1
  /// iommufd, or the container.
  private(set) var space: Int32 = -1
  /// The group's descriptor, on type1.
  private(set) var group: Int32 = -1
  /// iommufd's ids of the device, its address space, and what it is attached to.
  private(set) var deviceID: UInt32 = 0, ioas: UInt32 = 0, table: UInt32 = 0

  /// Opens a device and attaches it to an address space of its own.
  convenience init(attached address: String, _ environment: Environment) throws {
    try self.init(address, environment)
    try attach()
  }

  /// Opens the nodes: on iommufd the device's and `/dev/iommu`, neither bound yet; on type1 container and group.
  init(_ address: String, _ environment: Environment) throws {
    (kernel, interface) = (environment.kernel, environment.interface)
    details = try environment.details(address)
    switch interface {
    case .iommufd:
      device = try kernel.open(try node)
      space = try kernel.open("/dev/iommu")
    case .type1:
      space = try kernel.open("/dev/vfio/vfio")
      group = try kernel.open(try groupNode)
    }
  }

  deinit { close() }

  var node: String {
    get throws {
      guard let name = details.cdev else { throw Failure("\(details.address) has no node of its own") }
      return "/dev/vfio/devices/\(name)"
    }
  }

  var groupNode: String {
    get throws {
      guard let group = details.group else { throw Failure("\(details.address) has no group") }
      return "/dev/vfio/\(group)"
    }
  }

  /// Gets the device without letting its DMA anywhere: BIND_IOMMUFD, or SET_CONTAINER, SET_IOMMU and GET_DEVICE_FD.
  func bind() throws(Errno) {
    switch interface {
    case .iommufd: deviceID = try kernel.vfioBind(device, iommufd: space, token: nil)
    case .type1:
      try kernel.vfioSetContainer(group: group, container: space)
      try kernel.vfioSetIOMMU(space, type: 3)
      device = try kernel.vfioGroupDevice(group, name: details.address.description)
    }
  }

  func attach() throws(Errno) {
    try bind()
    guard interface == .iommufd else { return }
    ioas = try kernel.ioasAllocate(space)
    table = try kernel.vfioAttach(device, pageTable: ioas)
  }

  func close() {
    for descriptor in [device, group, space] where descriptor >= 0 { kernel.close(descriptor) }
    (device, group, space) = (-1, -1, -1)
  }
}

// MARK: - Mappings

extension RawDevice {
  /// The addresses that the kernel offers.
  func ranges() throws(Errno) -> IOVARanges {
    switch interface {
    case .iommufd: IOVARanges(try kernel.ioasRanges(space, ioas: ioas).ranges)
    case .type1: IOVARanges(try kernel.vfioContainerInfo(space).ranges ?? [])
    }
  }

  /// Bit 0: the device may read, bit 1: it may write.
  func map(_ address: UInt64, iova: UInt64, byteCount: UInt64, access: UInt32 = 3) throws(Errno) {
    switch interface {
    case .iommufd:
      let readable = access & 1 != 0 ? IOASMapFlags.readable : 0
      let writable = access & 2 != 0 ? IOASMapFlags.writable : 0
      _ = try kernel.ioasMap(
        space, ioas: ioas, flags: IOASMapFlags.fixed | readable | writable, address: address,
        byteCount: byteCount,
        iova: iova)
    case .type1: try kernel.vfioMap(space, flags: access, address: address, iova: iova, byteCount: byteCount)
    }
  }

  func unmap(_ iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64 {
    switch interface {
    case .iommufd: try kernel.ioasUnmap(space, ioas: ioas, iova: iova, byteCount: byteCount)
    case .type1: try kernel.vfioUnmap(space, flags: 0, iova: iova, byteCount: byteCount)
    }
  }

  func unmapAll() throws(Errno) -> UInt64 {
    switch interface {
    case .iommufd: try kernel.ioasUnmap(space, ioas: ioas, iova: 0, byteCount: .max)
    case .type1: try kernel.vfioUnmap(space, flags: 2, iova: 0, byteCount: 0)
    }
  }
}
