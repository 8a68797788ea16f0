package import IOMMU
import Synchronization

extension FaultingKernel {
  package func vfioDeviceInfo(_ device: Int32) throws(Errno) -> VFIODeviceInfo {
    try pass { () throws(Errno) in try base.vfioDeviceInfo(device) }
  }

  package func vfioRegionInfo(_ device: Int32, index: UInt32) throws(Errno) -> VFIORegionInfo {
    try pass { () throws(Errno) in try base.vfioRegionInfo(device, index: index) }
  }

  package func vfioInterruptInfo(_ device: Int32, index: UInt32) throws(Errno) -> VFIOInterruptInfo {
    try pass { () throws(Errno) in try base.vfioInterruptInfo(device, index: index) }
  }

  package func vfioSetInterrupts(
    _ device: Int32, index: UInt32, start: UInt32, events: [Int32]
  ) throws(Errno) {
    try pass { () throws(Errno) in
      try base.vfioSetInterrupts(device, index: index, start: start, events: events)
    }
  }

  package func vfioInterruptAction(
    _ device: Int32, index: UInt32, start: UInt32, count: UInt32, _ action: VFIOInterruptAction
  ) throws(Errno) {
    // Those of the device itself: not errors and requests of the kernel's.
    let isOff = index < VFIOPCI.error && count == 0
    try entering(isOff ? "interrupts off" : nil) { () throws(Errno) in
      try pass("vfioInterruptAction") { () throws(Errno) in
        try base.vfioInterruptAction(device, index: index, start: start, count: count, action)
      }
    }
  }

  package func vfioReset(_ device: Int32) throws(Errno) {
    try pass { () throws(Errno) in try base.vfioReset(device) }
  }

  package func vfioBind(_ device: Int32, iommufd: Int32, token: [UInt8]?) throws(Errno) -> UInt32 {
    let id = try pass { () throws(Errno) in try base.vfioBind(device, iommufd: iommufd, token: token) }
    plan.withLock {
      ($0.journal.descriptors[device], $0.journal.descriptors[iommufd]) = ("device", "iommufd")
    }
    return id
  }

  package func vfioAttach(_ device: Int32, pageTable: UInt32) throws(Errno) -> UInt32 {
    try entering("attach") { () throws(Errno) in
      try pass("vfioAttach") { () throws(Errno) in try base.vfioAttach(device, pageTable: pageTable) }
    }
  }

  package func vfioDetach(_ device: Int32) throws(Errno) {
    try entering("detach") { () throws(Errno) in
      try pass("vfioDetach") { () throws(Errno) in try base.vfioDetach(device) }
    }
  }
}

extension FaultingKernel {
  package func vfioGroupStatus(_ group: Int32) throws(Errno) -> UInt32 {
    try pass { () throws(Errno) in try base.vfioGroupStatus(group) }
  }

  package func vfioSetContainer(group: Int32, container: Int32) throws(Errno) {
    try pass { () throws(Errno) in try base.vfioSetContainer(group: group, container: container) }
  }

  package func vfioUnsetContainer(group: Int32) throws(Errno) {
    try pass { () throws(Errno) in try base.vfioUnsetContainer(group: group) }
  }

  package func vfioGroupDevice(_ group: Int32, name: String) throws(Errno) -> Int32 {
    try pass { () throws(Errno) in try base.vfioGroupDevice(group, name: name) }
  }

  package func vfioAPIVersion(_ container: Int32) throws(Errno) -> Int32 {
    try pass { () throws(Errno) in try base.vfioAPIVersion(container) }
  }

  package func vfioCheckExtension(_ container: Int32, _ id: UInt32) throws(Errno) -> Int32 {
    try pass { () throws(Errno) in try base.vfioCheckExtension(container, id) }
  }

  package func vfioSetIOMMU(_ container: Int32, type: UInt32) throws(Errno) {
    try pass { () throws(Errno) in try base.vfioSetIOMMU(container, type: type) }
  }

  package func vfioContainerInfo(_ container: Int32) throws(Errno) -> VFIOContainerInfo {
    try pass { () throws(Errno) in try base.vfioContainerInfo(container) }
  }

  package func vfioMap(
    _ container: Int32, flags: UInt32, address: UInt64, iova: UInt64, byteCount: UInt64
  ) throws(Errno) {
    try pass { () throws(Errno) in
      try base.vfioMap(container, flags: flags, address: address, iova: iova, byteCount: byteCount)
    }
    let key = FaultPlan.MapKey(descriptor: container, ioas: 0)
    plan.withLock { $0.mapped(key, iova: iova, byteCount: byteCount) }
  }

  package func vfioUnmap(
    _ container: Int32, flags: UInt32, iova: UInt64, byteCount: UInt64
  ) throws(Errno) -> UInt64 {
    try pass { () throws(Errno) in
      let key = FaultPlan.MapKey(descriptor: container, ioas: 0)
      let last = flags & 2 != 0 ? UInt64.max : iova &+ (byteCount &- 1)
      let swallowed = plan.withLock { $0.unmaps.swallows() ? $0.unmapped(key, iova: iova, last: last) : nil }
      if let swallowed { return swallowed }
      let done = try base.vfioUnmap(container, flags: flags, iova: iova, byteCount: byteCount)
      _ = plan.withLock { $0.unmapped(key, iova: iova, last: last) }
      return done
    }
  }
}
