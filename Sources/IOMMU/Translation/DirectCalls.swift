/// The system calls that map and unmap, where they are all there is to do: Linux below, and page tables of its own.
///
/// A domain makes them itself, past the two tables of functions that a ``Translation`` and its ``Kernel`` are reached
/// through. They do what ``KernelOwnedIOAS`` and ``KernelOwnedContainer`` do for any kernel.
package struct DirectCalls: Sendable {
  enum Way { case iommufd, type1 }
  private let way: Way
  /// iommufd, or the container.
  private let descriptor: Int32
  private let ioas: UInt32

  /// nil where `kernel` is not Linux.
  init?(_ way: Way, of kernel: any Kernel, _ descriptor: Int32, ioas: UInt32 = 0) {
    guard kernel is LiveKernel else { return nil }
    (self.way, self.descriptor, self.ioas) = (way, descriptor, ioas)
  }

  /// As ``Translation/map(iova:address:byteCount:access:)``.
  @inline(__always)
  func map(iova: UInt64, address: UInt64, byteCount: UInt64, access: DMAAccess) throws(Errno) {
    switch way {
    case .iommufd:
      let flags = KernelOwnedIOAS.flags(access)
      let placed = try LiveKernel.ioasMap(
        descriptor, ioas: ioas, flags: flags, address: address, byteCount: byteCount, iova: iova)
      if placed != iova { throw .inputOutput }
    case .type1:
      let flags = KernelOwnedContainer.flags(access)
      try LiveKernel.vfioMap(descriptor, flags: flags, address: address, iova: iova, byteCount: byteCount)
    }
  }

  /// As ``Translation/unmap(iova:byteCount:)``.
  @inline(__always)
  func unmap(iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64 {
    switch way {
    case .iommufd: try LiveKernel.ioasUnmap(descriptor, ioas: ioas, iova: iova, byteCount: byteCount)
    case .type1: try LiveKernel.vfioUnmap(descriptor, flags: 0, iova: iova, byteCount: byteCount)
    }
  }
}
