package import AddressSpace
package import IOMMU
import Synchronization

extension FaultingKernel {
  package func iommufdDestroy(_ iommufd: Int32, id: UInt32) throws(Errno) {
    let object = Journal.Object(iommufd: iommufd, id: id)
    let name = plan.withLock { $0.journal.objects[object] } ?? "object"
    try entering("destroy \(name)") { () throws(Errno) in
      try pass("iommufdDestroy") { () throws(Errno) in try base.iommufdDestroy(iommufd, id: id) }
    }
    // The id may be given to another object.
    plan.withLock {
      $0.areas[FaultPlan.MapKey(descriptor: iommufd, ioas: id)] = nil
      $0.journal.objects[object] = nil
    }
  }

  package func ioasAllocate(_ iommufd: Int32) throws(Errno) -> UInt32 {
    try making("ioas", in: iommufd) { () throws(Errno) in
      try pass("ioasAllocate") { () throws(Errno) in try base.ioasAllocate(iommufd) }
    }
  }

  package func ioasRanges(_ iommufd: Int32, ioas: UInt32) throws(Errno) -> IOASRanges {
    try pass { () throws(Errno) in try base.ioasRanges(iommufd, ioas: ioas) }
  }

  package func ioasAllow(_ iommufd: Int32, ioas: UInt32, ranges: [IOVARange]) throws(Errno) {
    try pass { () throws(Errno) in try base.ioasAllow(iommufd, ioas: ioas, ranges: ranges) }
  }

  package func ioasMap(
    _ iommufd: Int32, ioas: UInt32, flags: UInt32, address: UInt64, byteCount: UInt64, iova: UInt64
  ) throws(Errno) -> UInt64 {
    let start = try pass { () throws(Errno) in
      try base.ioasMap(
        iommufd, ioas: ioas, flags: flags, address: address, byteCount: byteCount, iova: iova)
    }
    let key = FaultPlan.MapKey(descriptor: iommufd, ioas: ioas)
    plan.withLock {
      $0.mapped(key, iova: start, byteCount: byteCount)
      $0.lastMapped = (address, byteCount)
    }
    return start
  }

  package func ioasMapFile(
    _ iommufd: Int32, ioas: UInt32, flags: UInt32, file: Int32, start: UInt64, byteCount: UInt64,
    iova: UInt64
  ) throws(Errno) -> UInt64 {
    let place = try pass { () throws(Errno) in
      try base.ioasMapFile(
        iommufd, ioas: ioas, flags: flags, file: file, start: start, byteCount: byteCount, iova: iova)
    }
    let key = FaultPlan.MapKey(descriptor: iommufd, ioas: ioas)
    plan.withLock { $0.mapped(key, iova: place, byteCount: byteCount) }
    return place
  }

  package func ioasUnmap(
    _ iommufd: Int32, ioas: UInt32, iova: UInt64, byteCount: UInt64
  ) throws(Errno) -> UInt64 {
    try pass { () throws(Errno) in
      plan.withLock { $0.journal.enter("unmap") }
      let key = FaultPlan.MapKey(descriptor: iommufd, ioas: ioas)
      let last = byteCount == .max ? UInt64.max : iova &+ (byteCount &- 1)
      let swallowed = plan.withLock { $0.unmaps.swallows() ? $0.unmapped(key, iova: iova, last: last) : nil }
      if let swallowed { return swallowed }
      if let half = plan.withLock({ $0.takeHalfway(key, iova: iova, last: last) }) {
        _ = try base.ioasUnmap(iommufd, ioas: ioas, iova: half.iova, byteCount: half.last - half.iova + 1)
        _ = plan.withLock { $0.unmapped(key, iova: half.iova, last: half.last) }
        throw half.errno
      }
      let done = try base.ioasUnmap(iommufd, ioas: ioas, iova: iova, byteCount: byteCount)
      _ = plan.withLock { $0.unmapped(key, iova: iova, last: last) }
      return done
    }
  }

  package func hwptAllocate(
    _ iommufd: Int32, flags: UInt32, device: UInt32, pageTable: UInt32
  ) throws(Errno) -> UInt32 {
    try making("parent", in: iommufd) { () throws(Errno) in
      try pass("hwptAllocate") { () throws(Errno) in
        try base.hwptAllocate(iommufd, flags: flags, device: device, pageTable: pageTable)
      }
    }
  }

  package func hwptAllocate(
    _ iommufd: Int32, flags: UInt32, device: UInt32, pageTable: UInt32, data: HWPTData
  ) throws(Errno) -> UInt32 {
    try making("nested", in: iommufd) { () throws(Errno) in
      try pass("hwptAllocate") { () throws(Errno) in
        try base.hwptAllocate(iommufd, flags: flags, device: device, pageTable: pageTable, data: data)
      }
    }
  }

  package func hwptInvalidate(
    _ iommufd: Int32, pageTable: UInt32, type: UInt32, entries: UnsafeRawBufferPointer, byteCount: Int
  ) throws(Errno) -> Int {
    try pass { () throws(Errno) in
      plan.withLock { $0.journal.enter("invalidate") }
      if plan.withLock({ $0.invalidations.swallows() }) { return byteCount > 0 ? entries.count / byteCount : 0 }
      guard let hook = plan.withLock({ $0.invalidationHook }) else {
        return try unsafe base.hwptInvalidate(
          iommufd, pageTable: pageTable, type: type, entries: entries, byteCount: byteCount)
      }
      return try unsafe invalidate(iommufd, pageTable, type: type, entries, byteCount: byteCount, around: hook)
    }
  }

  package func viommuAllocate(
    _ iommufd: Int32, type: UInt32, device: UInt32, pageTable: UInt32
  ) throws(Errno) -> UInt32 {
    try making("viommu", in: iommufd) { () throws(Errno) in
      try pass("viommuAllocate") { () throws(Errno) in
        try base.viommuAllocate(iommufd, type: type, device: device, pageTable: pageTable)
      }
    }
  }

  package func vdeviceAllocate(
    _ iommufd: Int32, viommu: UInt32, device: UInt32, number: UInt64
  ) throws(Errno) -> UInt32 {
    try making("vdevice", in: iommufd) { () throws(Errno) in
      try pass("vdeviceAllocate") { () throws(Errno) in
        try base.vdeviceAllocate(iommufd, viommu: viommu, device: device, number: number)
      }
    }
  }

  package func eventQueueAllocate(
    _ iommufd: Int32, viommu: UInt32, type: UInt32, depth: UInt32
  ) throws(Errno) -> (id: UInt32, descriptor: Int32) {
    let queue = try pass { () throws(Errno) in
      try base.eventQueueAllocate(iommufd, viommu: viommu, type: type, depth: depth)
    }
    plan.withLock {
      $0.journal.objects[.init(iommufd: iommufd, id: queue.id)] = "events"
      $0.journal.descriptors[queue.descriptor] = "events"
    }
    return queue
  }

  package func readEventQueue(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawBufferPointer
  ) throws(Errno) -> Int {
    try pass { () throws(Errno) in
      guard let words = plan.withLock({ $0.takeEvent() }) else {
        return try unsafe base.readEventQueue(descriptor, buffer)
      }
      // The header: no flag, and the first number.
      let record = [0] + words
      unsafe record.withUnsafeBytes { bytes in unsafe buffer.copyMemory(from: bytes) }
      return record.count * 8
    }
  }

  package var hasFlatFormat: Bool { base.hasFlatFormat }
  package var nests: Bool { base.nests }

  package func hardwareInfo(_ iommufd: Int32, device: UInt32) throws(Errno) -> HardwareInfo {
    var info = try pass { () throws(Errno) in try base.hardwareInfo(iommufd, device: device) }
    plan.withLock { $0.hardwareChange }?(&info)
    return info
  }
}
