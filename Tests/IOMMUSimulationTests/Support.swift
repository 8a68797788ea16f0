import AddressSpace
import IOMMU
import IOMMUSimulation
import Synchronization
import Testing

/// A device's registers by raw kernel calls.
struct Registers: Sendable {
  let kernel: any Kernel
  let device: Int32

  func read(_ offset: UInt64, width: Int, region: UInt32 = 0) throws(Errno) -> UInt64 {
    var value: UInt64 = 0
    _ = try unsafe withUnsafeMutableBytes(of: &value) { (bytes) throws(Errno) in
      let part = unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[0..<width])
      return try unsafe kernel.pread(device, part, at: UInt64(region) << 40 | offset)
    }
    return value
  }

  func write(_ offset: UInt64, _ value: UInt64, width: Int, region: UInt32 = 0) throws(Errno) {
    _ = try unsafe withUnsafeBytes(of: value) { (bytes) throws(Errno) in
      let part = unsafe UnsafeRawBufferPointer(rebasing: bytes[0..<width])
      return try unsafe kernel.pwrite(device, part, at: UInt64(region) << 40 | offset)
    }
  }

  subscript(offset: UInt64, width: Int) -> UInt64 { (try? read(offset, width: width)) ?? .max }

  func config(_ offset: UInt64, width: Int) throws(Errno) -> UInt64 {
    try read(offset, width: width, region: VFIOPCI.config)
  }

  func setConfig(_ offset: UInt64, _ value: UInt64, width: Int) throws(Errno) {
    try write(offset, value, width: width, region: VFIOPCI.config)
  }

  /// Memory and bus mastering on.
  func enable() throws(Errno) { try setConfig(4, 6, width: 2) }
}

/// Memory of this process by way of a kernel.
struct Memory: Sendable {
  let kernel: any Kernel
  let address: UInt64
  let byteCount: Int

  init(_ kernel: any Kernel, byteCount: Int = 64 << 10, file: Int32 = -1) throws(Errno) {
    let base = try unsafe kernel.mapMemory(byteCount: byteCount, descriptor: file, offset: 0)
    (self.kernel, self.byteCount) = (kernel, byteCount)
    address = UInt64(UInt(bitPattern: base))
  }

  subscript(offset: Int) -> UInt64 {
    get {
      unsafe UnsafeRawPointer(bitPattern: UInt(address))!.loadUnaligned(
        fromByteOffset: offset, as: UInt64.self)
    }
    nonmutating set {
      unsafe UnsafeMutableRawPointer(bitPattern: UInt(address))!.storeBytes(
        of: newValue, toByteOffset: offset, as: UInt64.self)
    }
  }

  func close() {
    unsafe kernel.unmapMemory(UnsafeMutableRawPointer(bitPattern: UInt(address))!, byteCount: byteCount)
  }
}

/// A device bound to an iommufd and attached to a page table of its own, by raw calls.
struct IOMMUFDRig: Sendable {
  let machine: SimulatedHost
  let kernel: any Kernel
  let iommufd: Int32, device: Int32
  let deviceID: UInt32, ioas: UInt32, hwpt: UInt32
  let registers: Registers
  let memory: Memory

  static let address = "0000:03:00.0"

  init(
    _ description: SimulatedMachine = .vtd, model: any DeviceModel = EduModel(addressBits: 64),
    over wrap: (any Kernel) -> any Kernel = { $0 }
  ) throws(Errno) {
    machine = SimulatedHost(description, devices: [Self.address: model])
    kernel = wrap(machine.kernel)
    iommufd = try kernel.open("/dev/iommu")
    device = try kernel.open("/dev/vfio/devices/vfio0")
    deviceID = try kernel.vfioBind(device, iommufd: iommufd, token: nil)
    ioas = try kernel.ioasAllocate(iommufd)
    hwpt = try kernel.hwptAllocate(iommufd, flags: 0, device: deviceID, pageTable: ioas)
    _ = try kernel.vfioAttach(device, pageTable: hwpt)
    registers = Registers(kernel: kernel, device: device)
    try registers.enable()
    memory = try Memory(kernel)
  }

  /// Maps the rig's memory, or part of it, read and write.
  @discardableResult
  func map(at iova: UInt64, offset: UInt64 = 0, byteCount: UInt64 = 4096, flags: UInt32 = 7) throws(Errno)
    -> UInt64
  {
    try kernel.ioasMap(
      iommufd, ioas: ioas, flags: flags, address: memory.address + offset, byteCount: byteCount, iova: iova)
  }

  @discardableResult
  func unmap(_ iova: UInt64, _ byteCount: UInt64) throws(Errno) -> UInt64 {
    try kernel.ioasUnmap(iommufd, ioas: ioas, iova: iova, byteCount: byteCount)
  }

  /// A transfer of the edu device; whether its DMA went through.
  func edu(_ iova: UInt64, _ byteCount: UInt64, toMemory: Bool) throws(Errno) -> Bool {
    let before = machine.faults.count
    try registers.write(0x80, toMemory ? 0x40000 : iova, width: 8)
    try registers.write(0x88, toMemory ? iova : 0x40000, width: 8)
    try registers.write(0x90, byteCount, width: 8)
    try registers.write(0x98, toMemory ? 3 : 1, width: 8)
    return machine.faults.count == before
  }

  /// Closes everything; nothing may be left.
  func close(_ location: SourceLocation = #_sourceLocation) {
    kernel.close(device)
    kernel.close(iommufd)
    memory.close()
    #expect(machine.kernel.census == Census(), sourceLocation: location)
  }
}

/// A device in a type1 container, by raw calls.
struct ContainerRig: Sendable {
  let machine: SimulatedHost
  let kernel: any Kernel
  let container: Int32, group: Int32, device: Int32
  let registers: Registers
  let memory: Memory

  init(
    _ description: SimulatedMachine = .vtd, model: any DeviceModel = EduModel(addressBits: 64),
    type: UInt32 = 3,
    over wrap: (any Kernel) -> any Kernel = { $0 }
  ) throws(Errno) {
    machine = SimulatedHost(description, devices: [IOMMUFDRig.address: model])
    kernel = wrap(machine.kernel)
    container = try kernel.open("/dev/vfio/vfio")
    group = try kernel.open("/dev/vfio/0")
    try kernel.vfioSetContainer(group: group, container: container)
    try kernel.vfioSetIOMMU(container, type: type)
    device = try kernel.vfioGroupDevice(group, name: IOMMUFDRig.address)
    registers = Registers(kernel: kernel, device: device)
    try registers.enable()
    memory = try Memory(kernel)
  }

  func map(at iova: UInt64, offset: UInt64 = 0, byteCount: UInt64 = 4096, flags: UInt32 = 3) throws(Errno) {
    try kernel.vfioMap(
      container, flags: flags, address: memory.address + offset, iova: iova, byteCount: byteCount)
  }

  @discardableResult
  func unmap(_ iova: UInt64, _ byteCount: UInt64, flags: UInt32 = 0) throws(Errno) -> UInt64 {
    try kernel.vfioUnmap(container, flags: flags, iova: iova, byteCount: byteCount)
  }

  func close(_ location: SourceLocation = #_sourceLocation) {
    kernel.close(device)
    kernel.close(group)
    kernel.close(container)
    memory.close()
    #expect(machine.kernel.census == Census(), sourceLocation: location)
  }
}

/// One rule of an errno contract: a call, what it answers, and where that is written.
struct Rule<Rig: Sendable>: Sendable, CustomTestStringConvertible {
  let name: String
  let errno: Errno?
  /// The section of `linux-iommu.md`, or the kernel's source.
  let reference: String
  let call: @Sendable (Rig) throws -> Void

  init(_ name: String, _ errno: Errno?, _ reference: String, _ call: @escaping @Sendable (Rig) throws -> Void) {
    (self.name, self.errno, self.reference, self.call) = (name, errno, reference, call)
  }

  var testDescription: String { "\(name): \(errno?.name ?? "fine") (\(reference))" }

  /// Makes the call and compares.
  func check(_ rig: Rig) {
    do {
      try call(rig)
      #expect(errno == nil, "\(name) succeeded, \(reference) says \(errno?.name ?? "")")
    } catch {
      #expect(error as? Errno == errno, "\(name), \(reference)")
    }
  }
}

extension Errno {
  static let badFileState = Errno(rawValue: 77)  // EBADFD
}

/// A number that several threads count.
final class SynchronizedCount: Sendable {
  private let count = Mutex(0)
  func add(_ number: Int = 1) { count.withLock { $0 += number } }
  var value: Int { count.withLock { $0 } }
}
