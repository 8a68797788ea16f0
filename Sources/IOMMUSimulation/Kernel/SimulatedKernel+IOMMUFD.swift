package import AddressSpace
package import IOMMU

extension SimulatedKernel {
  package func iommufdDestroy(_ iommufd: Int32, id: UInt32) throws(Errno) {
    try systemCall { (state) throws(Errno) in try state.iommufdDestroy(iommufd, id) }
  }

  package func ioasAllocate(_ iommufd: Int32) throws(Errno) -> UInt32 {
    try systemCall { (state) throws(Errno) in try state.ioasAllocate(iommufd) }
  }

  package func ioasRanges(_ iommufd: Int32, ioas: UInt32) throws(Errno) -> IOASRanges {
    try systemCall { (state) throws(Errno) in try state.ioasRanges(iommufd, ioas: ioas) }
  }

  package func ioasAllow(_ iommufd: Int32, ioas: UInt32, ranges: [IOVARange]) throws(Errno) {
    try systemCall { (state) throws(Errno) in try state.ioasAllow(iommufd, ioas: ioas, ranges: ranges) }
  }

  package func ioasMap(
    _ iommufd: Int32, ioas: UInt32, flags: UInt32, address: UInt64, byteCount: UInt64, iova: UInt64
  ) throws(Errno) -> UInt64 {
    try systemCall { (state) throws(Errno) in
      try state.ioasMap(
        iommufd, ioas: ioas, flags: flags, address: address, byteCount: byteCount, iova: iova)
    }
  }

  package func ioasMapFile(
    _ iommufd: Int32, ioas: UInt32, flags: UInt32, file: Int32, start: UInt64, byteCount: UInt64,
    iova: UInt64
  ) throws(Errno) -> UInt64 {
    try systemCall { (state) throws(Errno) in
      try state.ioasMapFile(
        iommufd, ioas: ioas, flags: flags, file: file, start: start, byteCount: byteCount, iova: iova)
    }
  }

  package func ioasUnmap(
    _ iommufd: Int32, ioas: UInt32, iova: UInt64, byteCount: UInt64
  ) throws(Errno) -> UInt64 {
    try systemCall { (state) throws(Errno) in
      try state.ioasUnmap(iommufd, ioas: ioas, iova: iova, byteCount: byteCount)
    }
  }

  package func hwptAllocate(
    _ iommufd: Int32, flags: UInt32, device: UInt32, pageTable: UInt32
  ) throws(Errno) -> UInt32 {
    try systemCall { (state) throws(Errno) in
      try state.hwptAllocate(iommufd, flags: flags, device: device, pageTable: pageTable, data: nil)
    }
  }

  package func hwptAllocate(
    _ iommufd: Int32, flags: UInt32, device: UInt32, pageTable: UInt32, data: HWPTData
  ) throws(Errno) -> UInt32 {
    try systemCall { (state) throws(Errno) in
      try state.hwptAllocate(iommufd, flags: flags, device: device, pageTable: pageTable, data: data)
    }
  }

  package func hwptInvalidate(
    _ iommufd: Int32, pageTable: UInt32, type: UInt32, entries: UnsafeRawBufferPointer, byteCount: Int
  ) throws(Errno) -> Int {
    if type != FlatFormat.dataType {
      let bytes = unsafe Array(entries)
      return try systemCall { (state) throws(Errno) in
        try state.hwptInvalidate(iommufd, pageTable, type: type, bytes, byteCount: byteCount)
      }
    }
    typealias Command = FlatFormat.Command
    let size = MemoryLayout<Command>.size
    guard byteCount == size, entries.count % size == 0 else { throw .invalidArgument }
    let commands = stride(from: 0, to: entries.count, by: size).map {
      unsafe entries.loadUnaligned(fromByteOffset: $0, as: Command.self)
    }
    return try systemCall { (state) throws(Errno) in
      try state.hwptInvalidate(iommufd, pageTable, type: type, commands)
    }
  }

  package func viommuAllocate(
    _ iommufd: Int32, type: UInt32, device: UInt32, pageTable: UInt32
  ) throws(Errno) -> UInt32 {
    try systemCall { (state) throws(Errno) in
      try state.viommuAllocate(iommufd, type: type, device: device, pageTable: pageTable)
    }
  }

  package func vdeviceAllocate(
    _ iommufd: Int32, viommu: UInt32, device: UInt32, number: UInt64
  ) throws(Errno) -> UInt32 {
    try systemCall { (state) throws(Errno) in
      try state.vdeviceAllocate(iommufd, viommu: viommu, device: device, number: number)
    }
  }

  package func eventQueueAllocate(
    _ iommufd: Int32, viommu: UInt32, type: UInt32, depth: UInt32
  ) throws(Errno) -> (id: UInt32, descriptor: Int32) {
    try systemCall { (state) throws(Errno) in
      try state.eventQueueAllocate(iommufd, viommu: viommu, type: type, depth: depth)
    }
  }

  package func readEventQueue(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawBufferPointer
  ) throws(Errno) -> Int {
    let byteCount = buffer.count
    let bytes = try locked { (state) throws(Errno) in try state.readEventQueue(descriptor, byteCount: byteCount) }
    unsafe buffer.copyBytes(from: bytes)
    return bytes.count
  }

  /// How far the process's last commands to an SMMU got.
  package var invalidationProgress: InvalidationProgress { locked { $0.invalidation } }

  package var hasFlatFormat: Bool { locked { $0.machine.nests } }
  /// An SMMUv3 is asked itself.
  package var nests: Bool { locked { $0.machine.nests || $0.machine.asksHardware } }

  package func hardwareInfo(_ iommufd: Int32, device: UInt32) throws(Errno) -> HardwareInfo {
    try systemCall { (state) throws(Errno) in try state.hardwareInfo(iommufd, device: device) }
  }
}
