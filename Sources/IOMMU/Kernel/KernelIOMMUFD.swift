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
  /// A nested page table: stage 1 in the process's hands, described by `data`, over `pageTable`: a nest parent on VT-d, a
  /// vIOMMU on SMMUv3. EOPNOTSUPP where the hardware does not nest or does not know the format. The corresponding ioctl is
  /// `IOMMU_HWPT_ALLOC`.
  func hwptAllocate(
    _ iommufd: Int32, flags: UInt32, device: UInt32, pageTable: UInt32, data: HWPTData
  ) throws(Errno) -> UInt32
  /// Sends invalidation commands for a nested page table, or on SMMUv3 for a vIOMMU, `byteCount` bytes each in the format of
  /// `type`; on return they are done. Returns how many were handled. The corresponding ioctl is `IOMMU_HWPT_INVALIDATE`.
  func hwptInvalidate(
    _ iommufd: Int32, pageTable: UInt32, type: UInt32, entries: UnsafeRawBufferPointer, byteCount: Int
  ) throws(Errno) -> Int
  /// A slice of the physical IOMMU of a device, over a nest parent. EOPNOTSUPP where the IOMMU cannot nest in this way, which
  /// the kernel says before it looks at the nest parent. The corresponding ioctl is `IOMMU_VIOMMU_ALLOC`.
  func viommuAllocate(_ iommufd: Int32, type: UInt32, device: UInt32, pageTable: UInt32) throws(Errno) -> UInt32
  /// The number by which commands and events of a vIOMMU name a device: a stream id on SMMUv3. EEXIST where the device or the
  /// number has its vDEVICE. The corresponding ioctl is `IOMMU_VDEVICE_ALLOC`.
  func vdeviceAllocate(_ iommufd: Int32, viommu: UInt32, device: UInt32, number: UInt64) throws(Errno) -> UInt32
  /// A queue of the hardware's event records for a vIOMMU, and the descriptor that they are read from. EEXIST for a second one
  /// of a type. The corresponding ioctl is `IOMMU_VEVENTQ_ALLOC`.
  func eventQueueAllocate(
    _ iommufd: Int32, viommu: UInt32, type: UInt32, depth: UInt32
  ) throws(Errno) -> (id: UInt32, descriptor: Int32)
  /// Takes whole records off an event queue, each behind its header of 8 bytes; 0 when there are none. The corresponding
  /// call is `read`.
  func readEventQueue(_ descriptor: Int32, _ buffer: UnsafeMutableRawBufferPointer) throws(Errno) -> Int
  /// The corresponding ioctl is `IOMMU_GET_HW_INFO`.
  func hardwareInfo(_ iommufd: Int32, device: UInt32) throws(Errno) -> HardwareInfo
  /// Whether nested page tables may have the flat format, ``FlatFormat``, which exists in simulation only.
  var hasFlatFormat: Bool { get }
  /// Whether page tables may be nested, which Linux does not say before it is asked: true there.
  var nests: Bool { get }
}

extension KernelIOMMUFD {
  package func hwptAllocate(
    _ iommufd: Int32, flags: UInt32, device: UInt32, pageTable: UInt32, data: HWPTData
  ) throws(Errno) -> UInt32 { throw .notSupported }
  package func hwptInvalidate(
    _ iommufd: Int32, pageTable: UInt32, type: UInt32, entries: UnsafeRawBufferPointer, byteCount: Int
  ) throws(Errno) -> Int { throw .notSupported }
  package func viommuAllocate(
    _ iommufd: Int32, type: UInt32, device: UInt32, pageTable: UInt32
  ) throws(Errno) -> UInt32 { throw .notSupported }
  package func vdeviceAllocate(
    _ iommufd: Int32, viommu: UInt32, device: UInt32, number: UInt64
  ) throws(Errno) -> UInt32 { throw .notSupported }
  package func eventQueueAllocate(
    _ iommufd: Int32, viommu: UInt32, type: UInt32, depth: UInt32
  ) throws(Errno) -> (id: UInt32, descriptor: Int32) { throw .notSupported }
  package func readEventQueue(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawBufferPointer
  ) throws(Errno) -> Int { throw .notSupported }
  package var hasFlatFormat: Bool { false }
  package var nests: Bool { true }
}

/// Numbers of the types of nested page tables, vIOMMUs, commands and event queues in iommufd's uAPI.
package enum NestingTypes {
  /// `IOMMU_HWPT_DATA_VTD_S1` and `IOMMU_HWPT_INVALIDATE_DATA_VTD_S1`.
  package static let vtdData: UInt32 = 1, vtdCommand: UInt32 = 0
  /// `IOMMU_HWPT_DATA_ARM_SMMUV3` and `IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3`.
  package static let smmuData: UInt32 = 2, smmuCommand: UInt32 = 1
  /// `IOMMU_VIOMMU_TYPE_ARM_SMMUV3` and `IOMMU_VEVENTQ_TYPE_ARM_SMMUV3`.
  package static let smmuVIOMMU: UInt32 = 1, smmuEventQueue: UInt32 = 1
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
