package import AddressSpace

/// Who owns the page tables of a domain: what a domain asks of them.
///
/// One concrete final class each: the kernel's tables behind an IOAS (``KernelOwnedIOAS``) or behind a type1
/// container (``KernelOwnedContainer``); tables of this process on an SMMUv3 (``ProcessOwnedSMMU``), on a VT-d (``ProcessOwnedVTd``), and
/// on simulated machines in a format of their own (``ProcessOwnedFlat``). Calls on the data path answer a
/// plain ``Errno``: the domain, which knows the mapping, makes the error.
package protocol Translation: AnyObject, Sendable {
  /// How the kernel is reached.
  var interface: Interface { get }
  /// The page sizes of the devices attached now; the smallest is the granule of every map.
  func pageSizes() throws(Errno) -> PageSizes
  /// Addresses that the kernel lets devices of this domain use, for the devices attached now.
  func usableRanges() throws(Errno) -> IOVARanges

  /// Opens a device and lets its DMA through this domain. On return nothing else is reachable for it.
  func attach(_ target: AttachTarget) throws(DMAError) -> Attachment
  /// Blocks a device's DMA again and closes its descriptor.
  func detach(_ attachment: Attachment)

  /// Pins memory of this process and maps it at `iova`.
  func map(iova: UInt64, address: UInt64, byteCount: UInt64, access: DMAAccess) throws(Errno)
  /// The same for part of a memory file, where ``canMapFiles``.
  func map(iova: UInt64, file: Int32, start: UInt64, byteCount: UInt64, access: DMAAccess) throws(Errno)
  /// Whether mapping a file is worth a try: it is not known to be unsupported.
  var canMapFiles: Bool { get }
  /// Unmaps every mapping in the range; returns the bytes that were unmapped.
  func unmap(iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64
  /// The calls behind `map(iova:address:byteCount:access:)` and `unmap(iova:byteCount:)`, to be made without this table in
  /// between; nil where there is more to do than a system call.
  var directCalls: DirectCalls? { get }
  /// Faults of a device that the process has from the hardware's own queue, since the last call, oldest first; none where they
  /// are in the kernel's log only.
  func takeFaults(of device: PCIAddress) -> UnreadFaults
  /// Unmaps all, once no device is attached, and gives everything back to the kernel. The second call does nothing.
  func close()
}

extension Translation {
  package func takeFaults(of device: PCIAddress) -> UnreadFaults { UnreadFaults() }
}

/// What a device may do with mapped memory.
package struct DMAAccess: Hashable, Sendable {
  /// Bit 0: the device may read; bit 1: it may write.
  package let rawValue: UInt8
  package static let read = DMAAccess(rawValue: 1), write = DMAAccess(rawValue: 2), readWrite = DMAAccess(rawValue: 3)
  @inline(__always) package var canRead: Bool { rawValue & 1 != 0 }
  @inline(__always) package var canWrite: Bool { rawValue & 2 != 0 }
}

extension DMADirection {
  @inline(__always)
  var access: DMAAccess {
    switch self {
    case .toDevice: .read
    case .fromDevice: .write
    case .bidirectional: .readWrite
    }
  }
}

/// A device to attach: where its nodes are, or descriptors that someone opened for us.
package struct AttachTarget: Sendable {
  package var address: PCIAddress
  /// The number of its IOMMU group.
  package var group: Int
  /// The IOMMU unit that translates for it, such as `dmar0`; devices of one unit share page tables.
  package var unit: String?
  /// Path of its own node, `/dev/vfio/devices/vfioN`; nil where the kernel has none.
  package var node: String?
  /// A virtual function's token, 16 bytes.
  package var token: [UInt8]?
  /// The device's node, or its group's (type1), open already; the attachment takes it over.
  package var descriptor: Int32?
  /// The device, where it is bound to the translation's iommufd already.
  package var bound: BoundDevice?

  package init(
    address: PCIAddress, group: Int, unit: String?, node: String?, token: [UInt8]? = nil, descriptor: Int32? = nil
  ) {
    (self.address, self.group, self.unit, self.node) = (address, group, unit, node)
    (self.token, self.descriptor) = (token, descriptor)
  }
}

/// A device that is bound to an iommufd and attached to nothing.
package struct BoundDevice: Hashable, Sendable {
  /// The device descriptor.
  package var descriptor: Int32
  /// iommufd's id of the device.
  package var id: UInt32
}

/// A device that is attached: its descriptor and what the translation keeps for it.
package final class Attachment: Sendable {
  package let target: AttachTarget
  /// The device descriptor, open until ``Translation/detach(_:)``.
  package let descriptor: Int32
  /// iommufd's id of the device; 0 on type1.
  package let deviceID: UInt32

  package init(target: AttachTarget, descriptor: Int32, deviceID: UInt32) {
    (self.target, self.descriptor, self.deviceID) = (target, descriptor, deviceID)
  }
}
