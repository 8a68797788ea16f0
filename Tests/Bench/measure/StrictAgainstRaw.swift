import Glibc
import IOMMU
import RawIoctls

/// Map and unmap of 4 KiB by the library and by a C loop of the same ioctls, in turns, each on a device of its own.
struct StrictAgainstRaw {
  static let rounds = 61, pairs = 200
  let interface: Interface
  var raw: raw_device

  init(_ interface: Interface) throws {
    self.interface = interface
    raw = raw_device(device: -1, space: -1, group: -1, ioas: 0)
    let details = try Host.system().device(PCIAddress("0000:00:03.0")!)
    let result =
      switch interface {
      case .iommufd: unsafe raw_open_iommufd(&raw, "/dev/vfio/devices/\(details.cdev ?? "?")")
      case .type1: unsafe raw_open_type1(&raw, "/dev/vfio/\(details.group ?? -1)", details.address.description)
      }
    if result != 0 { throw Failure(description: "the C program's device: errno \(-result)") }
  }

  func run() throws -> Measurement { try run(.strict, more: 1) }

  /// The same with the arena mapped once for all, where a pair is so short that many are taken at a time.
  func runPersistent() throws -> Measurement { try run(.persistent, more: 250) }

  private func run(_ protection: Protection, more: Int) throws -> Measurement {
    let device = try Device("0000:00:02.0", interface: interface)
    let domain = device.dma
    try domain.switchProtection(to: protection)
    let address = try page()
    var buffer = try domain.buffer(byteCount: 4096)
    var ratios: [Double] = [], rawTimes: [Double] = []
    for round in 0..<Self.rounds + 1 {
      // Who comes first changes, so that neither always finds the other's traces in the caches.
      var times = (library: 0.0, raw: 0.0)
      for turn in 0..<2 {
        if (turn + round) % 2 == 0 {
          let start = nanoseconds()
          for _ in 0..<Self.pairs * more { buffer = try domain.map(buffer, .bidirectional).unmap() }
          times.library = Double(nanoseconds() - start) / Double(more)
        } else {
          let start = nanoseconds()
          try rawPairs(address)
          times.raw = Double(nanoseconds() - start)
        }
      }
      if round == 0 { continue }  // warms both up
      ratios.append(times.library / times.raw)
      rawTimes.append(times.raw / Double(Self.pairs))
    }
    device.close()
    unsafe withUnsafePointer(to: raw) { unsafe raw_close($0) }
    return Measurement(
      value: median(ratios), anchor: "C loop, ns a pair", anchorValue: median(rawTimes), repeats: Self.rounds)
  }

  private func rawPairs(_ address: UInt64) throws {
    let result = unsafe withUnsafePointer(to: raw) { raw in
      switch interface {
      case .iommufd: unsafe raw_pairs_iommufd(raw, address, 4096, Int32(Self.pairs))
      case .type1: unsafe raw_pairs_type1(raw, address, 4096, Int32(Self.pairs))
      }
    }
    if result != 0 { throw Failure(description: "the C program: errno \(-result)") }
  }

  private func page() throws -> UInt64 {
    let flags = MAP_SHARED | MAP_ANONYMOUS
    let page = unsafe mmap(nil, 4096, PROT_READ | PROT_WRITE, flags, -1, 0)
    guard let page = unsafe page, unsafe page != MAP_FAILED else { throw Failure(description: "mmap: errno \(errno)") }
    unsafe page.storeBytes(of: 1, as: UInt8.self)
    return UInt64(UInt(bitPattern: page))
  }
}
