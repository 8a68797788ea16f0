import AddressSpace
import CIOMMU

// Device

extension LiveKernel {
  package func vfioDeviceInfo(_ device: Int32) throws(Errno) -> VFIODeviceInfo {
    var info = ci_vfio_device_info()
    try check(unsafe ci_vfio_device_get_info(device, &info, UInt32(MemoryLayout<ci_vfio_device_info>.stride)))
    return VFIODeviceInfo(flags: info.flags, regionCount: info.num_regions, interruptCount: info.num_irqs)
  }

  package func vfioRegionInfo(_ device: Int32, index: UInt32) throws(Errno) -> VFIORegionInfo {
    var info = ci_vfio_region_info()
    let buffer = try unsafe withCapabilities(MemoryLayout<ci_vfio_region_info>.stride) { base, capacity in
      let head = unsafe base.assumingMemoryBound(to: ci_vfio_region_info.self)
      unsafe head.pointee.index = index
      let result = unsafe ci_vfio_device_get_region_info(device, head, capacity)
      unsafe info = head.pointee
      return (result, info.argsz)
    }
    var region = VFIORegionInfo(flags: info.flags, index: index, byteCount: info.size, offset: info.offset)
    guard info.flags & CI_VFIO_REGION_INFO_FLAG_CAPS != 0 else { return region }
    unsafe buffer.withUnsafeBytes { bytes in
      let base = bytes.baseAddress!, size = UInt32(bytes.count)
      let mappable = unsafe ci_vfio_capability(
        base, size, info.cap_offset, UInt16(CI_VFIO_REGION_INFO_CAP_MSIX_MAPPABLE))
      region.msixMappable = mappable >= 0
      let sparse = unsafe ci_vfio_capability(base, size, info.cap_offset, UInt16(CI_VFIO_REGION_INFO_CAP_SPARSE_MMAP))
      guard sparse >= 0 else { return }
      let count = unsafe ci_vfio_sparse_mmap_count(base, size, UInt32(sparse))
      region.sparse = []
      for index in 0..<UInt32(max(count, 0)) {
        var area = ci_vfio_region_sparse_mmap_area()
        guard unsafe ci_vfio_sparse_mmap_area(base, size, UInt32(sparse), index, &area) >= 0 else { break }
        let (end, overflow) = area.offset.addingReportingOverflow(area.size)
        if !overflow, end <= info.size { region.sparse!.append(area.offset..<end) }
      }
    }
    return region
  }

  package func vfioInterruptInfo(_ device: Int32, index: UInt32) throws(Errno) -> VFIOInterruptInfo {
    var info = ci_vfio_irq_info()
    info.index = index
    try check(unsafe ci_vfio_device_get_irq_info(device, &info))
    return VFIOInterruptInfo(flags: info.flags, count: info.count)
  }

  package func vfioSetInterrupts(_ device: Int32, index: UInt32, start: UInt32, events: [Int32]) throws(Errno) {
    let count = UInt32(events.count)
    var scratch = [UInt8](repeating: 0, count: Int(ci_vfio_irq_set_size(count, 4)) + 16)
    let result = try check(
      unsafe scratch.withUnsafeMutableBytes { scratch in
        unsafe events.withUnsafeBufferPointer { events in
          unsafe ci_vfio_device_set_irqs_eventfd(
            device, CI_VFIO_IRQ_SET_ACTION_TRIGGER, index, start, count, events.baseAddress!, scratch.baseAddress,
            UInt32(scratch.count))
        }
      })
    // Above zero it says how many vectors could be had; none was set up.
    if result > 0 { throw .noSpace }
  }

  package func vfioInterruptAction(
    _ device: Int32, index: UInt32, start: UInt32, count: UInt32, _ action: VFIOInterruptAction
  ) throws(Errno) {
    let number =
      switch action {
      case .mask: CI_VFIO_IRQ_SET_ACTION_MASK
      case .unmask: CI_VFIO_IRQ_SET_ACTION_UNMASK
      case .trigger: CI_VFIO_IRQ_SET_ACTION_TRIGGER
      }
    try check(ci_vfio_device_set_irqs_none(device, number, index, start, count))
  }

  package func vfioReset(_ device: Int32) throws(Errno) { try check(ci_vfio_device_reset(device)) }

  package func vfioBind(_ device: Int32, iommufd: Int32, token: [UInt8]?) throws(Errno) -> UInt32 {
    var argument = ci_vfio_device_bind_iommufd()
    argument.iommufd = iommufd
    guard let token else {
      try check(unsafe ci_vfio_device_bind_iommufd(device, &argument))
      return argument.out_devid
    }
    argument.flags = CI_VFIO_DEVICE_BIND_FLAG_TOKEN
    try check(
      unsafe token.withUnsafeBufferPointer { bytes in
        argument.token_uuid_ptr = UInt64(UInt(bitPattern: bytes.baseAddress))
        return unsafe ci_vfio_device_bind_iommufd(device, &argument)
      })
    return argument.out_devid
  }

  package func vfioAttach(_ device: Int32, pageTable: UInt32) throws(Errno) -> UInt32 {
    var argument = ci_vfio_device_attach_iommufd_pt()
    argument.pt_id = pageTable
    try check(unsafe ci_vfio_device_attach_iommufd_pt(device, &argument))
    return argument.pt_id
  }

  package func vfioDetach(_ device: Int32) throws(Errno) {
    var argument = ci_vfio_device_detach_iommufd_pt()
    try check(unsafe ci_vfio_device_detach_iommufd_pt(device, &argument))
  }

  /// Calls an info ioctl with room for its capabilities, growing once to what the kernel asks for in `argsz`.
  func withCapabilities(
    _ first: Int, _ call: (UnsafeMutableRawPointer, UInt32) -> (result: Int32, needed: UInt32)
  ) throws(Errno) -> [UInt8] {
    var capacity = max(first, 256)
    for _ in 0..<3 {
      var buffer = [UInt8](repeating: 0, count: capacity)
      let (result, needed) = unsafe buffer.withUnsafeMutableBytes { unsafe call($0.baseAddress!, UInt32($0.count)) }
      try check(result)
      if Int(needed) <= capacity { return buffer }
      capacity = Int(needed)
    }
    throw .messageSize
  }
}

// Group and container

extension LiveKernel {
  package func vfioGroupStatus(_ group: Int32) throws(Errno) -> UInt32 {
    var status = ci_vfio_group_status()
    try check(unsafe ci_vfio_group_get_status(group, &status))
    return status.flags
  }

  package func vfioSetContainer(group: Int32, container: Int32) throws(Errno) {
    try check(ci_vfio_group_set_container(group, container))
  }

  package func vfioUnsetContainer(group: Int32) throws(Errno) { try check(ci_vfio_group_unset_container(group)) }

  package func vfioGroupDevice(_ group: Int32, name: String) throws(Errno) -> Int32 {
    try check(unsafe ci_vfio_group_get_device_fd(group, name))
  }

  package func vfioAPIVersion(_ container: Int32) throws(Errno) -> Int32 {
    try check(ci_vfio_get_api_version(container))
  }

  package func vfioCheckExtension(_ container: Int32, _ id: UInt32) throws(Errno) -> Int32 {
    try check(ci_vfio_check_extension(container, id))
  }

  package func vfioSetIOMMU(_ container: Int32, type: UInt32) throws(Errno) {
    try check(ci_vfio_set_iommu(container, type))
  }

  package func vfioContainerInfo(_ container: Int32) throws(Errno) -> VFIOContainerInfo {
    var info = ci_vfio_iommu_type1_info()
    let buffer = try unsafe withCapabilities(MemoryLayout<ci_vfio_iommu_type1_info>.stride) { base, capacity in
      let head = unsafe base.assumingMemoryBound(to: ci_vfio_iommu_type1_info.self)
      let result = unsafe ci_vfio_iommu_get_info(container, head, capacity)
      unsafe info = head.pointee
      return (result, info.argsz)
    }
    let pageSizes = info.flags & CI_VFIO_IOMMU_INFO_PGSIZES != 0 ? info.iova_pgsizes : 0
    var answer = VFIOContainerInfo(pageSizes: pageSizes, ranges: nil, availableEntries: nil)
    guard info.flags & CI_VFIO_IOMMU_INFO_CAPS != 0 else { return answer }
    unsafe buffer.withUnsafeBytes { bytes in
      let base = bytes.baseAddress!, size = UInt32(bytes.count)
      let ranges = unsafe ci_vfio_capability(
        base, size, info.cap_offset, UInt16(CI_VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE))
      if ranges >= 0 {
        let count = unsafe ci_vfio_iova_range_count(base, size, UInt32(ranges))
        answer.ranges = (0..<UInt32(max(count, 0))).compactMap { index in
          var range = ci_vfio_iova_range()
          guard unsafe ci_vfio_iova_range_at(base, size, UInt32(ranges), index, &range) >= 0 else { return nil }
          return IOVARange(start: IOVA(range.start), last: IOVA(range.end))
        }
      }
      let available = unsafe ci_vfio_capability(base, size, info.cap_offset, UInt16(CI_VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL))
      var entry = ci_vfio_iommu_type1_info_dma_avail()
      let stride = UInt64(MemoryLayout<ci_vfio_iommu_type1_info_dma_avail>.size)
      if available >= 0, unsafe ci_vfio_copy(base, UInt64(size), UInt64(available), &entry, stride) >= 0 {
        answer.availableEntries = entry.avail
      }
    }
    return answer
  }

  package func vfioMap(
    _ container: Int32, flags: UInt32, address: UInt64, iova: UInt64, byteCount: UInt64
  ) throws(Errno) {
    try Self.vfioMap(container, flags: flags, address: address, iova: iova, byteCount: byteCount)
  }

  @inline(__always)
  static func vfioMap(
    _ container: Int32, flags: UInt32, address: UInt64, iova: UInt64, byteCount: UInt64
  ) throws(Errno) {
    var argument = ci_vfio_iommu_type1_dma_map(argsz: 0, flags: flags, vaddr: address, iova: iova, size: byteCount)
    try check(unsafe ci_vfio_iommu_map_dma(container, &argument))
  }

  package func vfioUnmap(
    _ container: Int32, flags: UInt32, iova: UInt64, byteCount: UInt64
  ) throws(Errno) -> UInt64 {
    try Self.vfioUnmap(container, flags: flags, iova: iova, byteCount: byteCount)
  }

  @inline(__always)
  static func vfioUnmap(
    _ container: Int32, flags: UInt32, iova: UInt64, byteCount: UInt64
  ) throws(Errno) -> UInt64 {
    var argument = ci_vfio_iommu_type1_dma_unmap(argsz: 0, flags: flags, iova: iova, size: byteCount)
    try check(unsafe ci_vfio_iommu_unmap_dma(container, &argument))
    return argument.size
  }
}
