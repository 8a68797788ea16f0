import IOMMU

/// Mapping 1 GiB of huge pages by file against mapping it by address, in areas of the arena's size; the ratio of times.
func arenaFile() throws -> Measurement {
  let host = try Host.system(), kernel = host.kernel
  let total = 1 << 30, area = Limits.hugeAreaByteCount
  guard let node = try host.device(PCIAddress("0000:00:03.0")!).cdev else {
    throw Failure(description: "no iommufd: type1 cannot map files")
  }
  let device = try kernel.open("/dev/vfio/devices/\(node)"), iommufd = try kernel.open("/dev/iommu")
  _ = try kernel.vfioBind(device, iommufd: iommufd, token: nil)
  let ioas = try kernel.ioasAllocate(iommufd)
  _ = try kernel.vfioAttach(device, pageTable: ioas)
  let file = try kernel.createMemoryFile("measure", byteCount: total, hugePageShift: 21)
  let base = try unsafe kernel.mapMemory(byteCount: total, descriptor: file, offset: 0)
  try unsafe kernel.advise(base, byteCount: total, .populateWrite)
  let address = UInt64(UInt(bitPattern: base))
  let flags = IOASMapFlags.fixed | IOASMapFlags.readable | IOASMapFlags.writable
  let start: UInt64 = 1 << 32

  func time(_ map: (UInt64) throws(Errno) -> Void) throws -> Double {
    let began = nanoseconds()
    for offset in stride(from: 0, to: UInt64(total), by: area) { try map(offset) }
    let took = Double(nanoseconds() - began)
    let unmapped = try kernel.ioasUnmap(iommufd, ioas: ioas, iova: start, byteCount: UInt64(total))
    if unmapped != UInt64(total) { throw Failure(description: "\(unmapped) bytes were mapped") }
    return took
  }

  var ratios: [Double] = [], byFile: [Double] = []
  for _ in 0..<25 {
    let slow = try time { offset throws(Errno) in
      _ = try kernel.ioasMap(
        iommufd, ioas: ioas, flags: flags, address: address + offset, byteCount: UInt64(area), iova: start + offset)
    }
    let fast = try time { offset throws(Errno) in
      _ = try kernel.ioasMapFile(
        iommufd, ioas: ioas, flags: flags, file: file, start: offset, byteCount: UInt64(area), iova: start + offset)
    }
    ratios.append(slow / fast)
    byFile.append(fast)
  }
  for descriptor in [device, iommufd, file] { kernel.close(descriptor) }
  return Measurement(value: median(ratios), anchor: "by file, ns", anchorValue: median(byFile), repeats: ratios.count)
}
