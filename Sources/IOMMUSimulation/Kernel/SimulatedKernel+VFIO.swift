package import IOMMU

extension SimulatedKernel {
  package func vfioDeviceInfo(_ device: Int32) throws(Errno) -> VFIODeviceInfo {
    try systemCall { (state) throws(Errno) in try state.vfioDeviceInfo(device) }
  }

  package func vfioRegionInfo(_ device: Int32, index: UInt32) throws(Errno) -> VFIORegionInfo {
    try systemCall { (state) throws(Errno) in try state.vfioRegionInfo(device, index: index) }
  }

  package func vfioInterruptInfo(_ device: Int32, index: UInt32) throws(Errno) -> VFIOInterruptInfo {
    try systemCall { (state) throws(Errno) in try state.vfioInterruptInfo(device, index: index) }
  }

  package func vfioSetInterrupts(
    _ device: Int32, index: UInt32, start: UInt32, events: [Int32]
  ) throws(Errno) {
    try systemCall { (state) throws(Errno) in
      try state.vfioSetInterrupts(device, index: index, start: start, events: events)
    }
  }

  package func vfioInterruptAction(
    _ device: Int32, index: UInt32, start: UInt32, count: UInt32, _ action: VFIOInterruptAction
  ) throws(Errno) {
    try systemCall { (state) throws(Errno) in
      try state.vfioInterruptAction(device, index: index, start: start, count: count, action)
    }
  }

  package func vfioReset(_ device: Int32) throws(Errno) {
    try systemCall { (state) throws(Errno) in try state.vfioReset(device) }.reset()
  }

  package func vfioBind(_ device: Int32, iommufd: Int32, token: [UInt8]?) throws(Errno) -> UInt32 {
    let bound = try systemCall { (state) throws(Errno) in
      try state.vfioBind(device, iommufd: iommufd, token: token)
    }
    bound.resets?.reset()
    return bound.id
  }

  package func vfioAttach(_ device: Int32, pageTable: UInt32) throws(Errno) -> UInt32 {
    try systemCall { (state) throws(Errno) in try state.vfioAttach(device, pageTable: pageTable) }
  }

  package func vfioDetach(_ device: Int32) throws(Errno) {
    try systemCall { (state) throws(Errno) in try state.vfioDetach(device) }
  }
}

// Group and container.

extension SimulatedKernel {
  package func vfioGroupStatus(_ group: Int32) throws(Errno) -> UInt32 {
    try systemCall { (state) throws(Errno) in try state.vfioGroupStatus(group) }
  }

  package func vfioSetContainer(group: Int32, container: Int32) throws(Errno) {
    try systemCall { (state) throws(Errno) in try state.vfioSetContainer(group: group, container: container) }
  }

  package func vfioUnsetContainer(group: Int32) throws(Errno) {
    try systemCall { (state) throws(Errno) in try state.vfioUnsetContainer(group: group) }
  }

  package func vfioGroupDevice(_ group: Int32, name: String) throws(Errno) -> Int32 {
    let opened = try systemCall { (state) throws(Errno) in try state.vfioGroupDevice(group, name: name) }
    opened.resets?.reset()
    return opened.descriptor
  }

  package func vfioAPIVersion(_ container: Int32) throws(Errno) -> Int32 {
    try systemCall { (state) throws(Errno) in
      _ = try state.container(container)
      return 0
    }
  }

  package func vfioCheckExtension(_ container: Int32, _ id: UInt32) throws(Errno) -> Int32 {
    try systemCall { (state) throws(Errno) in try state.vfioCheckExtension(container, id) }
  }

  package func vfioSetIOMMU(_ container: Int32, type: UInt32) throws(Errno) {
    try systemCall { (state) throws(Errno) in try state.vfioSetIOMMU(container, type: type) }
  }

  package func vfioContainerInfo(_ container: Int32) throws(Errno) -> VFIOContainerInfo {
    try systemCall { (state) throws(Errno) in try state.vfioContainerInfo(container) }
  }

  package func vfioMap(
    _ container: Int32, flags: UInt32, address: UInt64, iova: UInt64, byteCount: UInt64
  ) throws(Errno) {
    try systemCall { (state) throws(Errno) in
      try state.vfioMap(container, flags: flags, address: address, iova: iova, byteCount: byteCount)
    }
  }

  package func vfioUnmap(
    _ container: Int32, flags: UInt32, iova: UInt64, byteCount: UInt64
  ) throws(Errno) -> UInt64 {
    try systemCall { (state) throws(Errno) in
      try state.vfioUnmap(container, flags: flags, iova: iova, byteCount: byteCount)
    }
  }
}
