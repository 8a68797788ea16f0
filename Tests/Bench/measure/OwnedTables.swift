import Glibc
import IOMMU
import IOMMUSimulation
import RawIoctls

/// Map and unmap of 4 KiB of a buffer on page tables that this process owns: natively on the simulator, and in a guest against
/// what the kernel takes for the same.
enum OwnedTables {
  /// As the library's default, but that no timer comes between.
  private static let lazy = Protection.lazy(FlushQueueOptions(.perCPU, depth: 256, timeout: .seconds(1000)))

  /// `owned_native`: a lazy pair, its share of the flushes included.
  static func native() throws -> Measurement {
    var machine = SimulatedMachine.smmuv3Nested
    machine.devices = [SimulatedDevice("0000:01:00.0", EduModel(addressBits: 64))]
    let device = try Device(
      "0000:01:00.0", on: Host.simulated(machine), interface: .iommufd, translation: .process)
    try device.dma.switchProtection(to: lazy)
    let allocator = try AllocatorPairs.allocator()
    var times: [Double] = [], pairs: [Double] = []
    for round in 0...AllocatorPairs.rounds {
      let began = cpuTime()
      try run(device.dma, count: 50_000)
      let time = Double(cpuTime() - began) / 50_000
      let pair = try AllocatorPairs.lifo(allocator, 0x1000, count: 50_000)
      if round == 0 { continue }  // warms all up
      times.append(time)
      pairs.append(pair)
    }
    device.close()
    return Measurement(
      value: median(times), anchor: "the allocator's pair, ns", anchorValue: median(pairs), repeats: times.count)
  }

  private static func run(_ dma: DMADomain, count: Int) throws {
    var buffer = try dma.buffer(byteCount: 4096)
    for _ in 0..<count { buffer = try dma.map(buffer, .bidirectional).unmap() }
  }

  // MARK: - In a guest

  private static let ours = "0000:00:02.0", other = "0000:00:03.0"
  private static let devices = "/sys/bus/pci/devices", drivers = "/sys/bus/pci/drivers"
  private static let benchmark = "/sys/kernel/debug/dma_map_benchmark"
  private static let rounds = 11

  /// `owned_lazy_vs_kernel`, `owned_strict_vs_kernel`, `owned_vs_ioctl`: how many times faster than the kernel's own DMA API in the
  /// same mode, and than the pair of ioctls; of the second, how many times as long.
  ///
  /// The other device is the kernel's and a C program's in turn; each of its rounds is followed by one of ours.
  static func inGuest() throws -> [(id: String, Measurement)] {
    let device = try Device(ours, interface: .iommufd, translation: .process), dma = device.dma
    var ioctls: [(ours: Double, theirs: Double)] = []
    let raw = try RawLoop()
    for _ in 0...rounds { ioctls.append((try pair(dma, lazy), try raw.pair())) }
    raw.close()
    var modes: [String: [(ours: Double, theirs: Double)]] = [:]
    for (type, protection) in [("DMA-FQ", lazy), ("DMA", .strict)] {
      try bind(type)
      for _ in 0..<5 { modes[type, default: []].append((try pair(dma, protection), try kernelPair())) }
    }
    let registered = try registeredPair(dma)
    device.close()
    let faster: ([Times], String) -> Measurement = { measurement($0, { $0.theirs / $0.ours }, $1) }
    return [
      (
        "owned_lazy_vs_kernel",
        faster(modes["DMA-FQ"]!, "with a registration each \(Int(registered)), the kernel's DMA API, ns a pair")
      ),
      (
        "owned_strict_vs_kernel",
        measurement(modes["DMA"]!, { $0.ours / $0.theirs }, "the kernel's DMA API, ns a pair")
      ),
      ("owned_vs_ioctl", faster(Array(ioctls.dropFirst()), "C loop, ns a pair")),
    ]
  }

  private typealias Times = (ours: Double, theirs: Double)

  private static func measurement(_ rounds: [Times], _ value: (Times) -> Double, _ anchor: String) -> Measurement {
    let ours = Int(median(rounds.map { $0.ours }))
    return Measurement(
      value: median(rounds.map(value)), anchor: "ours \(ours), \(anchor)",
      anchorValue: median(rounds.map { $0.theirs }), repeats: rounds.count)
  }

  /// Nanoseconds a pair of ours, flushes included.
  private static func pair(_ dma: DMADomain, _ protection: Protection) throws -> Double {
    try dma.switchProtection(to: protection)
    let count = protection == .strict ? 2_000 : 40_000
    try run(dma, count: 500)
    let began = nanoseconds()
    try run(dma, count: count)
    return Double(nanoseconds() - began) / Double(count)
  }

  /// The same with a registration of the page and its end in the loop.
  private static func registeredPair(_ dma: DMADomain) throws -> Double {
    try dma.switchProtection(to: lazy)
    let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096), count = 500
    defer { unsafe page.deallocate() }
    unsafe page.initializeMemory(as: UInt8.self, repeating: 1)
    let began = nanoseconds()
    for _ in 0..<count {
      let registration = try unsafe dma.register(unsafe: UnsafeRawBufferPointer(page))
      try unsafe dma.map(unsafe: UnsafeRawBufferPointer(page), .bidirectional).unmap()
      try registration.unregister()
    }
    return Double(nanoseconds() - began) / Double(count)
  }

  /// A pair of the kernel's, by what it says of itself.
  private static func kernelPair() throws -> Double {
    var (map, unmap) = (0.0, 0.0)
    let result = unsafe raw_kernel_pairs(benchmark, &map, &unmap)
    if result != 0 { throw Failure(description: "\(benchmark): errno \(-result)") }
    return map + unmap
  }

  /// Gives the other device to the kernel's benchmark, its domain of a type: `DMA` is strict, `DMA-FQ` lazy.
  private static func bind(_ type: String) throws {
    let device = "\(devices)/\(other)", details = try Host.system().device(PCIAddress(other)!)
    try? write("\(device)/driver/unbind", other)
    try write("/sys/kernel/iommu_groups/\(details.group ?? -1)/type", type)
    try write("\(device)/driver_override", "dma_map_benchmark")
    try write("\(drivers)/dma_map_benchmark/bind", other)
  }

  private static func write(_ path: String, _ text: String) throws {
    let descriptor = unsafe open(path, O_WRONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw Failure(description: "\(path): errno \(errno)") }
    defer { close(descriptor) }
    let done = unsafe text.utf8CString.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress!, $0.count - 1) }
    if done < 0 { throw Failure(description: "\(path), \(text): errno \(errno)") }
  }

  /// The ioctls of a C program on an IOAS of its own.
  @safe
  private struct RawLoop {
    private var raw = raw_device(device: -1, space: -1, group: -1, ioas: 0)
    private let page = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 4096)

    init() throws {
      let node = try Host.system().device(PCIAddress(other)!).cdev ?? "?"
      let result = unsafe raw_open_iommufd(&raw, "/dev/vfio/devices/\(node)")
      if result != 0 { throw Failure(description: "the C program's device: errno \(-result)") }
      unsafe page.initializeMemory(as: UInt8.self, repeating: 1)
    }

    func pair() throws -> Double {
      let address = unsafe UInt64(UInt(bitPattern: page.baseAddress)), count: Int32 = 1000
      let began = nanoseconds()
      let result = unsafe withUnsafePointer(to: raw) { unsafe raw_pairs_iommufd($0, address, 4096, count) }
      if result != 0 { throw Failure(description: "the C program: errno \(-result)") }
      return Double(nanoseconds() - began) / Double(count)
    }

    func close() {
      unsafe withUnsafePointer(to: raw) { unsafe raw_close($0) }
      unsafe page.deallocate()
    }
  }
}
