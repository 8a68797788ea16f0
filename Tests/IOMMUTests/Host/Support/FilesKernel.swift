import AddressSpace
import IOMMU

/// A kernel of files alone: every other call answers that it is not implemented.
///
/// Subclasses say where the files come from.
class FilesKernel: Kernel, @unchecked Sendable {
  var name: String { "files" }
  var isSimulated: Bool { true }

  // Files

  func readFile(_ path: String) throws(Errno) -> [UInt8] { throw .notImplemented }
  func writeFile(_ path: String, _ text: String) throws(Errno) { throw .notImplemented }
  func listDirectory(_ path: String) throws(Errno) -> [String] { throw .notImplemented }
  func readLink(_ path: String) throws(Errno) -> String { throw .notImplemented }
  func status(_ path: String) throws(Errno) -> FileStatus { throw .notImplemented }
  func checkAccess(_ path: String, write: Bool) throws(Errno) { throw .notImplemented }
  func storeFile(_ path: String, _ text: String) throws(Errno) { throw .notImplemented }
  func removeFile(_ path: String) throws(Errno) { throw .notImplemented }
  func open(_ path: String) throws(Errno) -> Int32 { throw .notImplemented }
  func close(_ descriptor: Int32) {}
  func pread(_: Int32, _: UnsafeMutableRawBufferPointer, at _: UInt64) throws(Errno) -> Int {
    throw .notImplemented
  }
  func pwrite(_: Int32, _: UnsafeRawBufferPointer, at _: UInt64) throws(Errno) -> Int {
    throw .notImplemented
  }

  // Memory

  func memoryLockLimit() -> UInt64 { 8 << 20 }
  func hasCapability(_ capability: Int) -> Bool { false }
  func effectiveUser() -> UInt32 { 1000 }
  func createMemoryFile(_: String, byteCount _: Int, hugePageShift _: Int?) throws(Errno) -> Int32 {
    throw .notImplemented
  }
  func mapMemory(byteCount _: Int, descriptor _: Int32, offset _: UInt64) throws(Errno)
    -> UnsafeMutableRawPointer
  {
    throw .notImplemented
  }
  func coverMemory(_: UnsafeMutableRawPointer, byteCount _: Int) throws(Errno) { throw .notImplemented }
  func unmapMemory(_: UnsafeMutableRawPointer, byteCount _: Int) {}
  func advise(_: UnsafeMutableRawPointer, byteCount _: Int, _: MemoryAdvice) throws(Errno) {
    throw .notImplemented
  }
  func bindMemory(_: UnsafeMutableRawPointer, byteCount _: Int, node _: Int) throws(Errno) {
    throw .notImplemented
  }

  // Events

  func createEvent() throws(Errno) -> Int32 { throw .notImplemented }
  func takeEvent(_: Int32) throws(Errno) -> UInt64? { throw .notImplemented }
  func signalEvent(_: Int32) throws(Errno) { throw .notImplemented }
  func waitReadable(_: [Int32], timeout _: Duration?) throws(Errno) -> Int? { throw .notImplemented }
  func now() -> UInt64 { 0 }
  func sleep(_: Duration) {}
  func kernelLog(from _: UInt64) throws(Errno) -> [KernelLogLine] { throw .notImplemented }

  // VFIO

  func vfioDeviceInfo(_: Int32) throws(Errno) -> VFIODeviceInfo { throw .notImplemented }
  func vfioRegionInfo(_: Int32, index _: UInt32) throws(Errno) -> VFIORegionInfo { throw .notImplemented }
  func vfioInterruptInfo(_: Int32, index _: UInt32) throws(Errno) -> VFIOInterruptInfo {
    throw .notImplemented
  }
  func vfioSetInterrupts(_: Int32, index _: UInt32, start _: UInt32, events _: [Int32]) throws(Errno) {
    throw .notImplemented
  }
  func vfioInterruptAction(
    _: Int32, index _: UInt32, start _: UInt32, count _: UInt32, _: VFIOInterruptAction
  ) throws(Errno) { throw .notImplemented }
  func vfioReset(_: Int32) throws(Errno) { throw .notImplemented }
  func vfioBind(_: Int32, iommufd _: Int32, token _: [UInt8]?) throws(Errno) -> UInt32 {
    throw .notImplemented
  }
  func vfioAttach(_: Int32, pageTable _: UInt32) throws(Errno) -> UInt32 { throw .notImplemented }
  func vfioDetach(_: Int32) throws(Errno) { throw .notImplemented }
  func vfioGroupStatus(_: Int32) throws(Errno) -> UInt32 { throw .notImplemented }
  func vfioSetContainer(group _: Int32, container _: Int32) throws(Errno) { throw .notImplemented }
  func vfioUnsetContainer(group _: Int32) throws(Errno) { throw .notImplemented }
  func vfioGroupDevice(_: Int32, name _: String) throws(Errno) -> Int32 { throw .notImplemented }
  func vfioAPIVersion(_: Int32) throws(Errno) -> Int32 { throw .notImplemented }
  func vfioCheckExtension(_: Int32, _: UInt32) throws(Errno) -> Int32 { throw .notImplemented }
  func vfioSetIOMMU(_: Int32, type _: UInt32) throws(Errno) { throw .notImplemented }
  func vfioContainerInfo(_: Int32) throws(Errno) -> VFIOContainerInfo { throw .notImplemented }
  func vfioMap(
    _: Int32, flags _: UInt32, address _: UInt64, iova _: UInt64, byteCount _: UInt64
  ) throws(Errno) { throw .notImplemented }
  func vfioUnmap(
    _: Int32, flags _: UInt32, iova _: UInt64, byteCount _: UInt64
  ) throws(Errno) -> UInt64 { throw .notImplemented }

  // iommufd

  func iommufdDestroy(_: Int32, id _: UInt32) throws(Errno) { throw .notImplemented }
  func ioasAllocate(_: Int32) throws(Errno) -> UInt32 { throw .notImplemented }
  func ioasRanges(_: Int32, ioas _: UInt32) throws(Errno) -> IOASRanges { throw .notImplemented }
  func ioasAllow(_: Int32, ioas _: UInt32, ranges _: [IOVARange]) throws(Errno) { throw .notImplemented }
  func ioasMap(
    _: Int32, ioas _: UInt32, flags _: UInt32, address _: UInt64, byteCount _: UInt64, iova _: UInt64
  ) throws(Errno) -> UInt64 { throw .notImplemented }
  func ioasMapFile(
    _: Int32, ioas _: UInt32, flags _: UInt32, file _: Int32, start _: UInt64, byteCount _: UInt64,
    iova _: UInt64
  ) throws(Errno) -> UInt64 { throw .notImplemented }
  func ioasUnmap(_: Int32, ioas _: UInt32, iova _: UInt64, byteCount _: UInt64) throws(Errno) -> UInt64 {
    throw .notImplemented
  }
  func hwptAllocate(_: Int32, flags _: UInt32, device _: UInt32, pageTable _: UInt32) throws(Errno) -> UInt32 {
    throw .notImplemented
  }
  func hardwareInfo(_: Int32, device _: UInt32) throws(Errno) -> HardwareInfo { throw .notImplemented }
}
