import AddressSpace
import IOMMU

/// What the parts of a device never ask.
extension TestKernel {
  func readFile(_ path: String) throws(Errno) -> [UInt8] { throw .notImplemented }
  func writeFile(_ path: String, _ text: String) throws(Errno) { throw .notImplemented }
  func listDirectory(_ path: String) throws(Errno) -> [String] { throw .notImplemented }
  func readLink(_ path: String) throws(Errno) -> String { throw .notImplemented }
  func status(_ path: String) throws(Errno) -> FileStatus { throw .notImplemented }
  func checkAccess(_ path: String, write: Bool) throws(Errno) { throw .notImplemented }
  func open(_ path: String) throws(Errno) -> Int32 { throw .notImplemented }

  func vfioDeviceInfo(_ device: Int32) throws(Errno) -> VFIODeviceInfo { throw .notImplemented }
  func vfioRegionInfo(_ device: Int32, index: UInt32) throws(Errno) -> VFIORegionInfo {
    throw .notImplemented
  }
  func vfioInterruptInfo(_ device: Int32, index: UInt32) throws(Errno) -> VFIOInterruptInfo {
    throw .notImplemented
  }
  func vfioBind(_ device: Int32, iommufd: Int32, token: [UInt8]?) throws(Errno) -> UInt32 {
    throw .notImplemented
  }
  func vfioAttach(_ device: Int32, pageTable: UInt32) throws(Errno) -> UInt32 { throw .notImplemented }
  func vfioDetach(_ device: Int32) throws(Errno) { throw .notImplemented }
  func vfioGroupStatus(_ group: Int32) throws(Errno) -> UInt32 { throw .notImplemented }
  func vfioSetContainer(group: Int32, container: Int32) throws(Errno) { throw .notImplemented }
  func vfioUnsetContainer(group: Int32) throws(Errno) { throw .notImplemented }
  func vfioGroupDevice(_ group: Int32, name: String) throws(Errno) -> Int32 { throw .notImplemented }
  func vfioAPIVersion(_ container: Int32) throws(Errno) -> Int32 { throw .notImplemented }
  func vfioCheckExtension(_ container: Int32, _ id: UInt32) throws(Errno) -> Int32 { throw .notImplemented }
  func vfioSetIOMMU(_ container: Int32, type: UInt32) throws(Errno) { throw .notImplemented }
  func vfioContainerInfo(_ container: Int32) throws(Errno) -> VFIOContainerInfo { throw .notImplemented }
  func vfioMap(
    _ container: Int32, flags: UInt32, address: UInt64, iova: UInt64, byteCount: UInt64
  ) throws(Errno) { throw .notImplemented }
  func vfioUnmap(
    _ container: Int32, flags: UInt32, iova: UInt64, byteCount: UInt64
  ) throws(Errno) -> UInt64 { throw .notImplemented }

  func iommufdDestroy(_ iommufd: Int32, id: UInt32) throws(Errno) { throw .notImplemented }
  func ioasAllocate(_ iommufd: Int32) throws(Errno) -> UInt32 { throw .notImplemented }
  func ioasRanges(_ iommufd: Int32, ioas: UInt32) throws(Errno) -> IOASRanges { throw .notImplemented }
  func ioasAllow(_ iommufd: Int32, ioas: UInt32, ranges: [IOVARange]) throws(Errno) { throw .notImplemented }
  func ioasMap(
    _ iommufd: Int32, ioas: UInt32, flags: UInt32, address: UInt64, byteCount: UInt64, iova: UInt64
  ) throws(Errno) -> UInt64 { throw .notImplemented }
  func ioasMapFile(
    _ iommufd: Int32, ioas: UInt32, flags: UInt32, file: Int32, start: UInt64, byteCount: UInt64, iova: UInt64
  ) throws(Errno) -> UInt64 { throw .notImplemented }
  func ioasUnmap(_ iommufd: Int32, ioas: UInt32, iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64 {
    throw .notImplemented
  }
  func hwptAllocate(
    _ iommufd: Int32, flags: UInt32, device: UInt32, pageTable: UInt32
  ) throws(Errno) -> UInt32 { throw .notImplemented }
  func hardwareInfo(_ iommufd: Int32, device: UInt32) throws(Errno) -> HardwareInfo { throw .notImplemented }
}
