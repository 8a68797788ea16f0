package import AddressSpace
import Synchronization

/// Page tables that the kernel owns, reached through a VFIO container with the type1 (version 2) back end.
///
/// Groups join the container, not devices. When the last group leaves, the kernel unmaps everything itself, with one
/// invalidation.
package final class KernelOwnedContainer: Translation {
  package let interface = Interface.type1
  package let canMapFiles = false
  private let kernel: any Kernel
  /// The container descriptor.
  package let container: Int32
  private let state = Mutex(State())

  private struct State {
    var groups: [Group] = []
    var backEndIsSet = false
    var isClosed = false
  }
  /// A group in the container and how many of its devices are open here.
  private struct Group {
    var number: Int
    var descriptor: Int32
    var devices: Int
  }

  package static let path = "/dev/vfio/vfio"
  private static let type1v2: UInt32 = 3

  /// Opens `/dev/vfio/vfio`, or takes over `descriptor`, which may have its back end and the group of a launcher already.
  package init(kernel: any Kernel, descriptor: Int32? = nil) throws(DMAError) {
    let number: Int32
    if let descriptor {
      number = descriptor
    } else {
      do throws(Errno) { number = try kernel.open(Self.path) } catch { throw .opening(Self.path, error, kernel) }
    }
    self.kernel = kernel
    container = number
    do throws(Errno) {
      if try kernel.vfioAPIVersion(number) != 0 { throw .notSupported }
      if try kernel.vfioCheckExtension(number, Self.type1v2) == 0 { throw .notSupported }
    } catch {
      close()
      throw DMAError(
        .notSupported, "VFIO_CHECK_EXTENSION", errno: error, device: Self.path,
        detail: "The container has no type1 version 2 back end", remedy: "Load vfio_iommu_type1")
    }
  }

  deinit { close() }

  package func pageSizes() throws(Errno) -> PageSizes {
    let sizes = try kernel.vfioContainerInfo(container).pageSizes
    return PageSizes(rawValue: sizes == 0 ? 4096 : sizes)
  }

  /// A kernel that does not say (before 5.5) lets every address be tried.
  package func usableRanges() throws(Errno) -> IOVARanges {
    IOVARanges(try kernel.vfioContainerInfo(container).ranges ?? [.full])
  }

  @inline(__always)
  package func map(iova: UInt64, address: UInt64, byteCount: UInt64, access: DMAAccess) throws(Errno) {
    let flags = Self.flags(access)
    try kernel.vfioMap(container, flags: flags, address: address, iova: iova, byteCount: byteCount)
  }

  /// READ is 1 and WRITE is 2: the same bits.
  @inline(__always)
  static func flags(_ access: DMAAccess) -> UInt32 { UInt32(access.rawValue) }

  package var directCalls: DirectCalls? { DirectCalls(.type1, of: kernel, container) }

  package func map(iova: UInt64, file: Int32, start: UInt64, byteCount: UInt64, access: DMAAccess) throws(Errno) {
    throw .notTypewriter
  }

  package func unmap(iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64 {
    try kernel.vfioUnmap(container, flags: 0, iova: iova, byteCount: byteCount)
  }

  package func close() {
    // A fork would take the parent's groups out; its descriptors go when it ends.
    guard ProcessGuard.isOwner else { return }
    let groups: [Group]? = state.withLock { state in
      if state.isClosed { return nil }
      state.isClosed = true
      defer { state.groups = [] }
      return state.groups
    }
    guard let groups else { return }
    for group in groups { leave(group.descriptor) }
    kernel.close(container)
  }

  private func leave(_ group: Int32) {
    try? kernel.vfioUnsetContainer(group: group)
    kernel.close(group)
  }
}

// MARK: - Attaching

extension KernelOwnedContainer {
  package func attach(_ target: AttachTarget) throws(DMAError) -> Attachment {
    let name = target.address.description
    let group = try join(target)
    do throws(Errno) {
      let text = target.token.map { "\(name) vf_token=\(VirtualFunctionToken.text($0))" } ?? name
      let descriptor = try kernel.vfioGroupDevice(group, name: text)
      return Attachment(target: target, descriptor: descriptor, deviceID: 0)
    } catch {
      drop(group: target.group)
      throw .binding("VFIO_GROUP_GET_DEVICE_FD", error, target, kernel)
    }
  }

  package func detach(_ attachment: Attachment) {
    kernel.close(attachment.descriptor)
    drop(group: attachment.target.group)
  }

  /// Counts one more device of a group that is in, or takes the group in.
  private func join(_ target: AttachTarget) throws(DMAError) -> Int32 {
    let known: Int32? = state.withLock { state in
      guard let index = state.groups.firstIndex(where: { $0.number == target.group }) else { return nil }
      state.groups[index].devices += 1
      return state.groups[index].descriptor
    }
    if let known { return known }
    let descriptor = try open(target)
    do throws(DMAError) {
      try enter(descriptor, target)
    } catch {
      kernel.close(descriptor)
      throw error
    }
    state.withLock { $0.groups.append(Group(number: target.group, descriptor: descriptor, devices: 1)) }
    return descriptor
  }

  private func open(_ target: AttachTarget) throws(DMAError) -> Int32 {
    if let descriptor = target.descriptor { return descriptor }
    let path = "/dev/vfio/\(target.group)"
    do throws(Errno) { return try kernel.open(path) } catch { throw .opening(path, error, kernel) }
  }

  private func enter(_ group: Int32, _ target: AttachTarget) throws(DMAError) {
    let name = "group \(target.group)"
    let status: UInt32
    do throws(Errno) { status = try kernel.vfioGroupStatus(group) } catch {
      throw .attaching(error, target, kernel, "VFIO_GROUP_GET_STATUS")
    }
    guard status & 1 != 0 else {
      throw DMAError(
        .groupNotViable, "VFIO_GROUP_GET_STATUS", device: target.address.description,
        detail: "Another device of \(name) is bound to a host driver",
        remedy: Host(kernel: kernel).whatTellsWhy(target.address.description)
          + " names it; bind the whole group to vfio-pci")
    }
    if status & 2 == 0 {
      do throws(Errno) { try kernel.vfioSetContainer(group: group, container: container) } catch {
        throw .attaching(error, target, kernel, "VFIO_GROUP_SET_CONTAINER")
      }
    }
    let first = state.withLock { state in
      defer { state.backEndIsSet = true }
      return !state.backEndIsSet
    }
    guard first else { return }
    do throws(Errno) {
      try kernel.vfioSetIOMMU(container, type: Self.type1v2)
    } catch {
      // A launcher may have set it: EINVAL then, and the container answers its info.
      if target.descriptor != nil, error == .invalidArgument, (try? kernel.vfioContainerInfo(container)) != nil {
        return
      }
      state.withLock { $0.backEndIsSet = false }
      try? kernel.vfioUnsetContainer(group: group)
      throw error == .notPermitted
        ? .unsafeInterrupts("VFIO_SET_IOMMU", target, kernel) : .attaching(error, target, kernel, "VFIO_SET_IOMMU")
    }
  }

  /// The last device of a group takes the group out of the container.
  private func drop(group number: Int) {
    let leaving: Int32? = state.withLock { state in
      guard let index = state.groups.firstIndex(where: { $0.number == number }) else { return nil }
      state.groups[index].devices -= 1
      guard state.groups[index].devices == 0 else { return nil }
      if state.groups.count == 1 { state.backEndIsSet = false }  // the kernel forgets the back end with the last group
      return state.groups.remove(at: index).descriptor
    }
    if let leaving { leave(leaving) }
  }
}
