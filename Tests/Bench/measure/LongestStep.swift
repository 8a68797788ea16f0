import Glibc
import IOMMU
import IOMMUSimulation

/// The longest kernel call of the unmap of 1 GiB, which the library does in areas of capped size.
enum LongestStep {
  private static let total = 1 << 30, repeats = 11

  // MARK: - On the simulated machine's clock

  /// In milliseconds, whoever owns the page tables: of memory of the caller's on 4 KiB pages, of an owned buffer, of the flush of
  /// one, and of a flush of many pages without a gap between them; each with the maps before. The worst of them.
  static func onTheVirtualClock() throws -> Measurement {
    var longest: UInt64 = 0, whole: UInt64 = 0
    for (interface, translation) in [
      (Interface.iommufd, TranslationChoice.process), (.iommufd, .kernel), (.type1, .kernel),
    ] {
      for work in [callersMemory, ownedBuffer, flushOfOne, flushOfMany] {
        let machine = SimulatedHost(.vtd, devices: ["0000:00:02.0": EduModel(addressBits: 64)])
        let kernel = FaultingKernel(machine.kernel)
        let device = try Device(
          "0000:00:02.0", on: Host(kernel: kernel), interface: interface, translation: translation)
        kernel.keepTimes(by: { UInt64(machine.chargedTime.components.attoseconds / 1_000_000_000) })
        try work(device.dma)
        guard device.dma.statistics.liveMappings == 0, device.dma.statistics.queuedBytes == 0 else {
          throw Failure(description: "something is left")
        }
        // What is pinned for tables of the process goes with the domain; for those of the kernel that is one call, whatever there is.
        if translation == .process { device.close() }
        for name in ["ioasMap", "ioasMapFile", "ioasUnmap", "vfioMap", "vfioUnmap", "hwptInvalidate"] {
          longest = max(longest, kernel.times(of: name).max() ?? 0)
          whole = max(whole, kernel.times(of: name).reduce(0, +))
        }
        device.close()
      }
    }
    return Measurement(
      value: Double(longest) / 1e6, anchor: "the whole, ms", anchorValue: Double(whole) / 1e6, repeats: 1)
  }

  private static func callersMemory(_ dma: DMADomain) throws {
    let memory = try unsafe smallPages()
    defer { unsafe munmap(memory.baseAddress, total) }
    try unsafe dma.map(unsafe: UnsafeRawBufferPointer(memory), .bidirectional).unmap()
  }

  private static func ownedBuffer(_ dma: DMADomain) throws {
    _ = try dma.map(try dma.buffer(byteCount: total), .bidirectional).unmap()
  }

  private static func flushOfOne(_ dma: DMADomain) throws {
    try dma.switchProtection(to: .lazy(FlushQueueOptions(.single, timeout: .seconds(1000))))
    try ownedBuffer(dma)
    try dma.drain()
  }

  private static func flushOfMany(_ dma: DMADomain) throws {
    try dma.switchProtection(to: .lazy(FlushQueueOptions(.single, depth: 4096, timeout: .seconds(1000))))
    for _ in 0..<4095 { _ = try dma.map(try dma.buffer(byteCount: 4096), .bidirectional).unmap() }
    try dma.drain()
  }

  // MARK: - On a real kernel

  /// Against the same unmap as one area: memory of the caller's on 4 KiB pages, and the arena on huge pages, which areas of
  /// 128 MiB have. Of each call the median of all repeats, and of these the longest.
  static func onTheKernel() throws -> [(variant: String, Measurement)] {
    let raw = try RawSpace()
    defer { raw.close() }
    let kernel = FaultingKernel(LiveKernel())
    kernel.keepTimes(by: { nanoseconds() })
    let device = try Device("0000:00:02.0", on: Host(kernel: kernel), translation: .kernel)
    defer { device.close() }
    let small = try small(device.dma, kernel, raw), huge = try huge(device.dma, kernel, raw)
    return [("4k", small), ("2m", huge)]
  }

  private static func small(_ dma: DMADomain, _ kernel: FaultingKernel, _ raw: RawSpace) throws -> Measurement {
    let memory = try unsafe smallPages()
    defer { unsafe munmap(memory.baseAddress, total) }
    let address = UInt64(UInt(bitPattern: memory.baseAddress))
    var steps: [[Double]] = [], wholes: [Double] = []
    for _ in 0..<repeats {
      let mapping = try unsafe dma.map(unsafe: UnsafeRawBufferPointer(memory), .bidirectional)
      kernel.resetCounts()
      try mapping.unmap()
      steps.append(kernel.times(of: "ioasUnmap").map { Double($0) })
      wholes.append(try raw.unmap { (iova) throws(Errno) in try raw.map(address: address, total, at: iova) })
    }
    return try measurement(steps, wholes)
  }

  private static func huge(_ dma: DMADomain, _ kernel: FaultingKernel, _ raw: RawSpace) throws -> Measurement {
    var steps: [[Double]] = [], wholes: [Double] = []
    let buffer = try dma.buffer(byteCount: total), file = try arenaFile()
    for _ in 0..<repeats {
      try dma.switchProtection(to: .persistent)
      kernel.resetCounts()
      try dma.switchProtection(to: .strict)
      steps.append(kernel.times(of: "ioasUnmap").map { Double($0) })
      wholes.append(try raw.unmap { (iova) throws(Errno) in try raw.map(file: file, total, at: iova) })
    }
    if buffer.byteCount != total { throw Failure(description: "the buffer is not what was asked for") }
    return try measurement(steps, wholes)
  }

  private static func measurement(_ steps: [[Double]], _ wholes: [Double]) throws -> Measurement {
    guard let count = steps.first?.count, count > 1, steps.allSatisfy({ $0.count == count }) else {
      throw Failure(description: "the unmap of 1 GiB was \(steps.map(\.count)) calls")
    }
    let longest = (0..<count).map { index in median(steps.map { $0[index] }) }.max()!
    return Measurement(
      value: longest / median(wholes), anchor: "as one area, ns", anchorValue: median(wholes), repeats: repeats)
  }

  /// Memory that is there, on pages of 4 KiB.
  private static func smallPages() throws -> UnsafeMutableRawBufferPointer {
    let base = unsafe mmap(nil, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard let base = unsafe base, unsafe base != MAP_FAILED else { throw Failure(description: "mmap: errno \(errno)") }
    unsafe madvise(base, total, MADV_NOHUGEPAGE)
    return unsafe UnsafeMutableRawBufferPointer(start: base, count: total)
  }

  /// The memory file of the buffer arena.
  private static func arenaFile() throws -> Int32 {
    let kernel = LiveKernel()
    for name in try kernel.listDirectory("/proc/self/fd") {
      let link = try? kernel.readLink("/proc/self/fd/\(name)")
      if link?.contains("iommu-buffers") ?? false, let file = Int32(name) { return file }
    }
    throw Failure(description: "the buffer arena has no memory file")
  }
}

/// Another device's address space, by the kernel's calls alone.
struct RawSpace {
  private let kernel = LiveKernel()
  private let device: Int32, iommufd: Int32, ioas: UInt32
  private let start: UInt64 = 1 << 32

  init() throws {
    guard let node = try Host.system().device(PCIAddress("0000:00:03.0")!).cdev else {
      throw Failure(description: "no iommufd")
    }
    device = try kernel.open("/dev/vfio/devices/\(node)")
    iommufd = try kernel.open("/dev/iommu")
    _ = try kernel.vfioBind(device, iommufd: iommufd, token: nil)
    ioas = try kernel.ioasAllocate(iommufd)
    _ = try kernel.vfioAttach(device, pageTable: ioas)
  }

  func close() { for descriptor in [device, iommufd] { kernel.close(descriptor) } }

  private var flags: UInt32 { IOASMapFlags.fixed | IOASMapFlags.readable | IOASMapFlags.writable }

  func map(address: UInt64, _ byteCount: Int, at iova: UInt64) throws(Errno) {
    _ = try kernel.ioasMap(
      iommufd, ioas: ioas, flags: flags, address: address, byteCount: UInt64(byteCount), iova: iova)
  }

  func map(file: Int32, _ byteCount: Int, at iova: UInt64) throws(Errno) {
    _ = try kernel.ioasMapFile(
      iommufd, ioas: ioas, flags: flags, file: file, start: 0, byteCount: UInt64(byteCount), iova: iova)
  }

  /// What the unmap of all that `map` has mapped takes, in nanoseconds.
  func unmap(_ map: (UInt64) throws(Errno) -> Void) throws -> Double {
    try map(start)
    let began = nanoseconds()
    _ = try kernel.ioasUnmap(iommufd, ioas: ioas, iova: start, byteCount: 1 << 30)
    return Double(nanoseconds() - began)
  }
}
