/// An iommufd with an address space, and what every translation over it does with a device before it attaches.
struct IOMMUFDDescriptor: Sendable {
  static let path = "/dev/iommu"
  let kernel: any Kernel
  /// The iommufd descriptor.
  let iommufd: Int32
  /// The id of the address space.
  let ioas: UInt32

  /// Opens `/dev/iommu`, or takes over `descriptor`, and makes an address space.
  init(kernel: any Kernel, descriptor: Int32?) throws(DMAError) {
    let number: Int32
    if let descriptor {
      number = descriptor
    } else {
      do throws(Errno) { number = try kernel.open(Self.path) } catch { throw .opening(Self.path, error, kernel) }
    }
    do throws(Errno) {
      ioas = try kernel.ioasAllocate(number)
    } catch {
      kernel.close(number)
      throw DMAError(.system, "IOMMU_IOAS_ALLOC", errno: error, device: Self.path)
    }
    self.kernel = kernel
    iommufd = number
  }

  /// Opens a device's own node, unless someone has.
  func open(_ target: AttachTarget) throws(DMAError) -> Int32 {
    if let bound = target.bound { return bound.descriptor }
    if let descriptor = target.descriptor { return descriptor }
    guard let node = target.node else {
      throw DMAError(
        .notSupported, "open", device: target.address.description,
        detail: "The device has no node below /dev/vfio/devices",
        remedy: "Use a kernel with CONFIG_VFIO_DEVICE_CDEV, or the type1 interface")
    }
    do throws(Errno) { return try kernel.open(node) } catch { throw .opening(node, error, kernel) }
  }

  /// Binds an open device; returns its id.
  func bind(_ device: Int32, _ target: AttachTarget) throws(DMAError) -> UInt32 {
    if let bound = target.bound { return bound.id }
    do throws(Errno) {
      return try kernel.vfioBind(device, iommufd: iommufd, token: target.token)
    } catch { throw .binding("VFIO_DEVICE_BIND_IOMMUFD", error, target, kernel) }
  }
}
