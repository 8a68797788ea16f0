package import AddressSpace

/// The iommufd ioctls that the library makes.
///
/// The reference is `include/uapi/linux/iommufd.h`; each method names its ioctl. Object ids live in one
/// number space a descriptor.
package protocol KernelIOMMUFD: AnyObject, Sendable {
  /// EBUSY while something uses the object. The corresponding ioctl is `IOMMU_DESTROY`.
  func iommufdDestroy(_ iommufd: Int32, id: UInt32) throws(Errno)
  /// The corresponding ioctl is `IOMMU_IOAS_ALLOC`.
  func ioasAllocate(_ iommufd: Int32) throws(Errno) -> UInt32
  /// Usable addresses and their alignment, for the devices attached now. The corresponding ioctl is `IOMMU_IOAS_IOVA_RANGES`.
  func ioasRanges(_ iommufd: Int32, ioas: UInt32) throws(Errno) -> IOASRanges
  /// The corresponding ioctl is `IOMMU_IOAS_ALLOW_IOVAS`.
  func ioasAllow(_ iommufd: Int32, ioas: UInt32, ranges: [IOVARange]) throws(Errno)
  /// Pins and maps; returns the IOVA, which is `iova` when flags say FIXED. The corresponding ioctl is `IOMMU_IOAS_MAP`.
  func ioasMap(
    _ iommufd: Int32, ioas: UInt32, flags: UInt32, address: UInt64, byteCount: UInt64, iova: UInt64
  ) throws(Errno) -> UInt64
  /// Pins and maps part of a memory file. The corresponding ioctl is `IOMMU_IOAS_MAP_FILE`; ENOTTY on kernels without it.
  func ioasMapFile(
    _ iommufd: Int32, ioas: UInt32, flags: UInt32, file: Int32, start: UInt64, byteCount: UInt64, iova: UInt64
  ) throws(Errno) -> UInt64
  /// Returns the bytes unmapped; (0, `UInt64.max`) unmaps all. The corresponding ioctl is `IOMMU_IOAS_UNMAP`.
  func ioasUnmap(_ iommufd: Int32, ioas: UInt32, iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64
  /// A page table of its own for a device; filled with what the IOAS maps. The corresponding ioctl is `IOMMU_HWPT_ALLOC`.
  func hwptAllocate(_ iommufd: Int32, flags: UInt32, device: UInt32, pageTable: UInt32) throws(Errno) -> UInt32
  /// A nested page table: stage 1 in the process's hands, described by `data`, over the nest parent `pageTable`.
  /// EOPNOTSUPP where the hardware does not nest or does not know the format. The corresponding ioctl is `IOMMU_HWPT_ALLOC`.
  func hwptAllocate(
    _ iommufd: Int32, flags: UInt32, device: UInt32, pageTable: UInt32, data: HWPTData
  ) throws(Errno) -> UInt32
  /// Sends invalidation commands for a nested page table, `byteCount` bytes each in the format of `type`; on return they are
  /// done. Returns how many were handled. The corresponding ioctl is `IOMMU_HWPT_INVALIDATE`.
  func hwptInvalidate(
    _ iommufd: Int32, pageTable: UInt32, type: UInt32, entries: UnsafeRawBufferPointer, byteCount: Int
  ) throws(Errno) -> Int
  /// The corresponding ioctl is `IOMMU_GET_HW_INFO`.
  func hardwareInfo(_ iommufd: Int32, device: UInt32) throws(Errno) -> HardwareInfo
  /// Whether nested page tables may have the flat format, ``FlatFormat``, which exists in simulation only.
  var hasFlatFormat: Bool { get }
}

extension KernelIOMMUFD {
  package func hwptAllocate(
    _ iommufd: Int32, flags: UInt32, device: UInt32, pageTable: UInt32, data: HWPTData
  ) throws(Errno) -> UInt32 { throw .notSupported }
  package func hwptInvalidate(
    _ iommufd: Int32, pageTable: UInt32, type: UInt32, entries: UnsafeRawBufferPointer, byteCount: Int
  ) throws(Errno) -> Int { throw .notSupported }
  package var hasFlatFormat: Bool { false }
}

/// What describes a nested page table to `IOMMU_HWPT_ALLOC`.
package struct HWPTData: Hashable, Sendable {
  /// `IOMMU_HWPT_DATA_*`: 1 VT-d first stage, 2 SMMUv3; ``FlatFormat/dataType`` in simulation.
  package var type: UInt32
  /// The type's structure.
  package var bytes: [UInt8]
  package init(type: UInt32, bytes: [UInt8]) { (self.type, self.bytes) = (type, bytes) }
}

/// Flags of `IOMMU_HWPT_ALLOC`.
package enum HWPTFlags {
  /// Other page tables may be nested over this one.
  package static let nestParent: UInt32 = 1
}

/// Flags of `IOMMU_IOAS_MAP`.
package enum IOASMapFlags {
  // Computed: a stored one is a call for its address on the data path.
  package static var fixed: UInt32 { 1 }
  package static var writable: UInt32 { 2 }
  package static var readable: UInt32 { 4 }
}

/// What `IOMMU_IOAS_IOVA_RANGES` answers.
package struct IOASRanges: Hashable, Sendable {
  package var ranges: [IOVARange]
  /// Bytes; every IOVA and length is a multiple.
  package var alignment: UInt64
  package init(ranges: [IOVARange], alignment: UInt64) { (self.ranges, self.alignment) = (ranges, alignment) }
}

/// What `IOMMU_GET_HW_INFO` answers.
package struct HardwareInfo: Hashable, Sendable {
  /// 0 none, 1 VT-d, 2 SMMUv3, 3 Tegra241, 4 AMD.
  package var type: UInt32
  /// The type's structure as bytes.
  package var data: [UInt8]
  /// Bit 0 dirty tracking, bit 1 PASID exec, bit 2 PASID privileged, bit 3 ATS not supported.
  package var capabilities: UInt64
  package init(type: UInt32, data: [UInt8], capabilities: UInt64) {
    (self.type, self.data, self.capabilities) = (type, data, capabilities)
  }
}
