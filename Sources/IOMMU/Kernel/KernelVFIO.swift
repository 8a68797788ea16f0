package import AddressSpace

/// The VFIO ioctls that the library makes: device, group and type1 container.
///
/// The reference is `include/uapi/linux/vfio.h`; each method names its ioctl.
package protocol KernelVFIO: AnyObject, Sendable {
  // Device

  /// The corresponding ioctl is `VFIO_DEVICE_GET_INFO`. EINVAL on a cdev that is not bound.
  func vfioDeviceInfo(_ device: Int32) throws(Errno) -> VFIODeviceInfo
  /// The corresponding ioctl is `VFIO_DEVICE_GET_REGION_INFO`.
  func vfioRegionInfo(_ device: Int32, index: UInt32) throws(Errno) -> VFIORegionInfo
  /// The corresponding ioctl is `VFIO_DEVICE_GET_IRQ_INFO`.
  func vfioInterruptInfo(_ device: Int32, index: UInt32) throws(Errno) -> VFIOInterruptInfo
  /// Ties vectors from `start` on to event descriptors; -1 unties one.
  /// The corresponding ioctl is `VFIO_DEVICE_SET_IRQS` with `DATA_EVENTFD | ACTION_TRIGGER`.
  func vfioSetInterrupts(_ device: Int32, index: UInt32, start: UInt32, events: [Int32]) throws(Errno)
  /// Masks, unmasks or loops back vectors; trigger with count 0 switches the whole index off.
  /// The corresponding ioctl is `VFIO_DEVICE_SET_IRQS` with `DATA_NONE`.
  func vfioInterruptAction(
    _ device: Int32, index: UInt32, start: UInt32, count: UInt32, _ action: VFIOInterruptAction) throws(Errno)
  /// The corresponding ioctl is `VFIO_DEVICE_RESET`.
  func vfioReset(_ device: Int32) throws(Errno)
  /// The corresponding ioctl is `VFIO_DEVICE_BIND_IOMMUFD`; the token is a VF's 16 bytes. Returns the device id.
  func vfioBind(_ device: Int32, iommufd: Int32, token: [UInt8]?) throws(Errno) -> UInt32
  /// Attaches to an IOAS or HWPT; attached already, it replaces. Returns the id of the HWPT.
  /// The corresponding ioctl is `VFIO_DEVICE_ATTACH_IOMMUFD_PT`.
  func vfioAttach(_ device: Int32, pageTable: UInt32) throws(Errno) -> UInt32
  /// Leaves the device blocked. The corresponding ioctl is `VFIO_DEVICE_DETACH_IOMMUFD_PT`.
  func vfioDetach(_ device: Int32) throws(Errno)

  // Group

  /// The corresponding ioctl is `VFIO_GROUP_GET_STATUS`: bit 0 viable, bit 1 in a container.
  func vfioGroupStatus(_ group: Int32) throws(Errno) -> UInt32
  /// The corresponding ioctl is `VFIO_GROUP_SET_CONTAINER`.
  func vfioSetContainer(group: Int32, container: Int32) throws(Errno)
  /// The corresponding ioctl is `VFIO_GROUP_UNSET_CONTAINER`. EBUSY while a device descriptor is open.
  func vfioUnsetContainer(group: Int32) throws(Errno)
  /// The corresponding ioctl is `VFIO_GROUP_GET_DEVICE_FD`; the name is an address, with ` vf_token=<uuid>` for a VF.
  func vfioGroupDevice(_ group: Int32, name: String) throws(Errno) -> Int32

  // Type1 container

  /// The corresponding ioctl is `VFIO_GET_API_VERSION`.
  func vfioAPIVersion(_ container: Int32) throws(Errno) -> Int32
  /// The corresponding ioctl is `VFIO_CHECK_EXTENSION`; before SET_IOMMU it answers for all back ends.
  func vfioCheckExtension(_ container: Int32, _ id: UInt32) throws(Errno) -> Int32
  /// The corresponding ioctl is `VFIO_SET_IOMMU`; 3 is type1 v2.
  func vfioSetIOMMU(_ container: Int32, type: UInt32) throws(Errno)
  /// The corresponding ioctl is `VFIO_IOMMU_GET_INFO` with its capability chain.
  func vfioContainerInfo(_ container: Int32) throws(Errno) -> VFIOContainerInfo
  /// The corresponding ioctl is `VFIO_IOMMU_MAP_DMA`. EEXIST on overlap, ENOSPC at the entry limit.
  func vfioMap(
    _ container: Int32, flags: UInt32, address: UInt64, iova: UInt64, byteCount: UInt64) throws(Errno)
  /// Returns the bytes unmapped; flag 2 unmaps all (iova and byteCount 0). The corresponding ioctl is `VFIO_IOMMU_UNMAP_DMA`.
  func vfioUnmap(_ container: Int32, flags: UInt32, iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64
}

/// What `VFIO_DEVICE_GET_INFO` answers.
package struct VFIODeviceInfo: Hashable, Sendable {
  /// Bit 0: can be reset; bit 1: PCI.
  package var flags: UInt32
  package var regionCount: UInt32
  package var interruptCount: UInt32
  package init(flags: UInt32, regionCount: UInt32, interruptCount: UInt32) {
    (self.flags, self.regionCount, self.interruptCount) = (flags, regionCount, interruptCount)
  }
  package var canReset: Bool { flags & 1 != 0 }
}

/// What `VFIO_DEVICE_GET_REGION_INFO` answers: a BAR, the ROM, config space.
package struct VFIORegionInfo: Hashable, Sendable {
  /// Bit 0 read, bit 1 write, bit 2 mmap, bit 3 capabilities.
  package var flags: UInt32
  package var index: UInt32
  /// Bytes; 0 for a BAR that is not there.
  package var byteCount: UInt64
  /// Where the region begins in the device descriptor.
  package var offset: UInt64
  /// Parts of the region that can be mapped where not all of it can (capability SPARSE_MMAP), offsets in the region.
  package var sparse: [Range<UInt64>]?
  /// Capability MSIX_MAPPABLE: the MSI-X table's page may be mapped.
  package var msixMappable: Bool
  package init(
    flags: UInt32, index: UInt32, byteCount: UInt64, offset: UInt64, sparse: [Range<UInt64>]? = nil,
    msixMappable: Bool = false
  ) {
    (self.flags, self.index, self.byteCount) = (flags, index, byteCount)
    (self.offset, self.sparse, self.msixMappable) = (offset, sparse, msixMappable)
  }
  package var canRead: Bool { flags & 1 != 0 }
  package var canWrite: Bool { flags & 2 != 0 }
  package var canMap: Bool { flags & 4 != 0 }
}

/// What `VFIO_DEVICE_GET_IRQ_INFO` answers.
package struct VFIOInterruptInfo: Hashable, Sendable {
  /// Bit 0 eventfd, bit 1 maskable, bit 2 automasked, bit 3 no resize.
  package var flags: UInt32
  package var count: UInt32
  package init(flags: UInt32, count: UInt32) { (self.flags, self.count) = (flags, count) }
  package var isAutomasked: Bool { flags & 4 != 0 }
  package var cannotResize: Bool { flags & 8 != 0 }
}

/// An action of `VFIO_DEVICE_SET_IRQS`.
package enum VFIOInterruptAction: Sendable { case mask, unmask, trigger }

/// What `VFIO_IOMMU_GET_INFO` answers.
package struct VFIOContainerInfo: Hashable, Sendable {
  /// Bit mask of page sizes.
  package var pageSizes: UInt64
  /// Capability IOVA_RANGE: usable addresses; nil where the kernel does not say.
  package var ranges: [IOVARange]?
  /// Capability DMA_AVAIL: map entries left (of 65,535).
  package var availableEntries: UInt32?
  package init(pageSizes: UInt64, ranges: [IOVARange]?, availableEntries: UInt32?) {
    (self.pageSizes, self.ranges, self.availableEntries) = (pageSizes, ranges, availableEntries)
  }
}

/// Indexes of VFIO PCI regions and interrupts.
package enum VFIOPCI {
  package static let rom: UInt32 = 6, config: UInt32 = 7
  package static let intx: UInt32 = 0, msi: UInt32 = 1, msix: UInt32 = 2, error: UInt32 = 3, request: UInt32 = 4
}
