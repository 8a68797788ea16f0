package import AddressSpace
import CIOMMU

extension LiveKernel {
  package func iommufdDestroy(_ iommufd: Int32, id: UInt32) throws(Errno) { try check(ci_iommu_destroy(iommufd, id)) }

  package func ioasAllocate(_ iommufd: Int32) throws(Errno) -> UInt32 {
    var argument = ci_iommu_ioas_alloc()
    try check(unsafe ci_iommu_ioas_alloc(iommufd, &argument))
    return argument.out_ioas_id
  }

  package func ioasRanges(_ iommufd: Int32, ioas: UInt32) throws(Errno) -> IOASRanges {
    var ranges = [ci_iommu_iova_range](repeating: ci_iommu_iova_range(), count: 16)
    // EMSGSIZE tells how many there are; another device may come in between, so ask a few times.
    for _ in 0..<8 {
      var argument = ci_iommu_ioas_iova_ranges()
      argument.ioas_id = ioas
      argument.num_iovas = UInt32(ranges.count)
      let result = unsafe ranges.withUnsafeMutableBufferPointer { buffer in
        argument.allowed_iovas = UInt64(UInt(bitPattern: buffer.baseAddress))
        return unsafe ci_iommu_ioas_iova_ranges(iommufd, &argument)
      }
      if result == -Errno.messageSize.rawValue {
        ranges = Array(repeating: ci_iommu_iova_range(), count: Int(argument.num_iovas) + 16)
        continue
      }
      try check(result)
      let usable = ranges.prefix(Int(argument.num_iovas)).compactMap {
        IOVARange(start: IOVA($0.start), last: IOVA($0.last))
      }
      return IOASRanges(ranges: usable, alignment: argument.out_iova_alignment)
    }
    throw .messageSize
  }

  package func ioasAllow(_ iommufd: Int32, ioas: UInt32, ranges: [IOVARange]) throws(Errno) {
    let list = ranges.map { ci_iommu_iova_range(start: $0.start.rawValue, last: $0.last.rawValue) }
    var argument = ci_iommu_ioas_allow_iovas()
    argument.ioas_id = ioas
    argument.num_iovas = UInt32(list.count)
    try check(
      unsafe list.withUnsafeBufferPointer { buffer in
        argument.allowed_iovas = UInt64(UInt(bitPattern: buffer.baseAddress))
        return unsafe ci_iommu_ioas_allow_iovas(iommufd, &argument)
      })
  }

  package func ioasMap(
    _ iommufd: Int32, ioas: UInt32, flags: UInt32, address: UInt64, byteCount: UInt64, iova: UInt64
  ) throws(Errno) -> UInt64 {
    try Self.ioasMap(iommufd, ioas: ioas, flags: flags, address: address, byteCount: byteCount, iova: iova)
  }

  @inline(__always)
  static func ioasMap(
    _ iommufd: Int32, ioas: UInt32, flags: UInt32, address: UInt64, byteCount: UInt64, iova: UInt64
  ) throws(Errno) -> UInt64 {
    var argument = ci_iommu_ioas_map(
      size: 0, flags: flags, ioas_id: ioas, __reserved: 0, user_va: address, length: byteCount, iova: iova)
    try check(unsafe ci_iommu_ioas_map(iommufd, &argument))
    return argument.iova
  }

  package func ioasMapFile(
    _ iommufd: Int32, ioas: UInt32, flags: UInt32, file: Int32, start: UInt64, byteCount: UInt64, iova: UInt64
  ) throws(Errno) -> UInt64 {
    var argument = ci_iommu_ioas_map_file(
      size: 0, flags: flags, ioas_id: ioas, fd: file, start: start, length: byteCount, iova: iova)
    try check(unsafe ci_iommu_ioas_map_file(iommufd, &argument))
    return argument.iova
  }

  package func ioasUnmap(_ iommufd: Int32, ioas: UInt32, iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64 {
    try Self.ioasUnmap(iommufd, ioas: ioas, iova: iova, byteCount: byteCount)
  }

  @inline(__always)
  static func ioasUnmap(_ iommufd: Int32, ioas: UInt32, iova: UInt64, byteCount: UInt64) throws(Errno) -> UInt64 {
    var argument = ci_iommu_ioas_unmap(size: 0, ioas_id: ioas, iova: iova, length: byteCount)
    try check(unsafe ci_iommu_ioas_unmap(iommufd, &argument))
    return argument.length
  }

  package func hwptAllocate(
    _ iommufd: Int32, flags: UInt32, device: UInt32, pageTable: UInt32
  ) throws(Errno) -> UInt32 {
    var argument = ci_iommu_hwpt_alloc()
    (argument.flags, argument.dev_id, argument.pt_id) = (flags, device, pageTable)
    try check(unsafe ci_iommu_hwpt_alloc(iommufd, &argument))
    return argument.out_hwpt_id
  }

  package func hwptAllocate(
    _ iommufd: Int32, flags: UInt32, device: UInt32, pageTable: UInt32, data: HWPTData
  ) throws(Errno) -> UInt32 {
    // The flat format names an object of this process, which no hardware can read.
    if data.type == FlatFormat.dataType { throw .notSupported }
    var argument = ci_iommu_hwpt_alloc()
    (argument.flags, argument.dev_id, argument.pt_id) = (flags, device, pageTable)
    (argument.data_type, argument.data_len) = (data.type, UInt32(data.bytes.count))
    try check(
      unsafe data.bytes.withUnsafeBytes { bytes in
        argument.data_uptr = UInt64(UInt(bitPattern: bytes.baseAddress))
        return unsafe ci_iommu_hwpt_alloc(iommufd, &argument)
      })
    return argument.out_hwpt_id
  }

  package func hwptInvalidate(
    _ iommufd: Int32, pageTable: UInt32, type: UInt32, entries: UnsafeRawBufferPointer, byteCount: Int
  ) throws(Errno) -> Int {
    if type == FlatFormat.dataType { throw .notSupported }
    guard byteCount > 0 else { throw .invalidArgument }
    var argument = ci_iommu_hwpt_invalidate()
    (argument.hwpt_id, argument.data_type) = (pageTable, type)
    argument.data_uptr = UInt64(UInt(bitPattern: entries.baseAddress))
    (argument.entry_len, argument.entry_num) = (UInt32(byteCount), UInt32(entries.count / byteCount))
    try check(unsafe ci_iommu_hwpt_invalidate(iommufd, &argument))
    return Int(argument.entry_num)
  }

  package func viommuAllocate(
    _ iommufd: Int32, type: UInt32, device: UInt32, pageTable: UInt32
  ) throws(Errno) -> UInt32 {
    var argument = ci_iommu_viommu_alloc()
    (argument.type, argument.dev_id, argument.hwpt_id) = (type, device, pageTable)
    try check(unsafe ci_iommu_viommu_alloc(iommufd, &argument))
    return argument.out_viommu_id
  }

  package func vdeviceAllocate(
    _ iommufd: Int32, viommu: UInt32, device: UInt32, number: UInt64
  ) throws(Errno) -> UInt32 {
    var argument = ci_iommu_vdevice_alloc()
    (argument.viommu_id, argument.dev_id, argument.virt_id) = (viommu, device, number)
    try check(unsafe ci_iommu_vdevice_alloc(iommufd, &argument))
    return argument.out_vdevice_id
  }

  package func eventQueueAllocate(
    _ iommufd: Int32, viommu: UInt32, type: UInt32, depth: UInt32
  ) throws(Errno) -> (id: UInt32, descriptor: Int32) {
    var argument = ci_iommu_veventq_alloc()
    (argument.viommu_id, argument.type, argument.veventq_depth) = (viommu, type, depth)
    try check(unsafe ci_iommu_veventq_alloc(iommufd, &argument))
    return (argument.out_veventq_id, Int32(bitPattern: argument.out_veventq_fd))
  }

  /// The queue's descriptor never blocks.
  package func readEventQueue(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawBufferPointer
  ) throws(Errno) -> Int {
    guard let base = buffer.baseAddress else { return 0 }
    let result = unsafe ci_read(descriptor, base, UInt64(buffer.count))
    if result == -Int64(Errno.wouldBlock.rawValue) { return 0 }
    guard result >= 0 else { throw Errno(rawValue: Int32(-result)) }
    return Int(result)
  }

  package func hardwareInfo(_ iommufd: Int32, device: UInt32) throws(Errno) -> HardwareInfo {
    var data = [UInt8](repeating: 0, count: 256)
    var argument = ci_iommu_hw_info()
    argument.dev_id = device
    argument.data_len = UInt32(data.count)
    try check(
      unsafe data.withUnsafeMutableBytes { buffer in
        argument.data_uptr = UInt64(UInt(bitPattern: buffer.baseAddress))
        return unsafe ci_iommu_get_hw_info(iommufd, &argument)
      })
    return HardwareInfo(
      type: argument.data_type, data: Array(data.prefix(Int(argument.data_len))),
      capabilities: argument.out_capabilities)
  }
}
