import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// A device over tables of a kind, with the kernel in between, that tells what it reaches.
struct StandingRig {
  let machine: SimulatedHost
  let kernel: FaultingKernel
  let device: Device
  let bar: Registers
  var dma: DMADomain { device.dma }

  init(
    _ tables: LazyTests.Tables, _ machine: SimulatedMachine? = nil, _ protection: Protection = .strict
  ) throws {
    self.machine = SimulatedHost(machine ?? tables.machine, devices: [LazyTests.address: EduModel(addressBits: 64)])
    kernel = FaultingKernel(self.machine.kernel)
    device = try Device(
      LazyTests.address, on: Host(kernel: kernel), interface: tables.interface, translation: tables.choice)
    bar = try device.registers(bar: 0)
    try device.dma.switchProtection(to: protection)
  }

  /// Whether a write of the device goes through: what it writes is what it has read last.
  func writes(_ address: IOVA, _ count: Int = 8) throws -> Bool {
    let faults = machine.faults.count
    try EndToEndTests.transfer(bar, address, count, toDevice: false)
    return machine.faults.count == faults
  }

  /// Whether a read of the device goes through.
  func reads(_ address: IOVA, _ count: Int = 8) throws -> Bool {
    let faults = machine.faults.count
    try EndToEndTests.transfer(bar, address, count, toDevice: true)
    return machine.faults.count == faults
  }

  /// Calls that map, unmap and invalidate; those for registers are not among them.
  var calls: Int {
    ["ioasMap", "ioasMapFile", "ioasUnmap", "vfioMap", "vfioUnmap", "hwptInvalidate"].reduce(0) {
      $0 + kernel.count(of: $1)
    }
  }

  /// Where a buffer's memory lies. A function, since a buffer whose bytes were looked at in place cannot be consumed there.
  static func memory(of buffer: borrowing DMABuffer) -> UInt {
    unsafe buffer.bytes.withUnsafeBytes { UInt(bitPattern: $0.baseAddress) }
  }

  /// The code of the error that `body` throws.
  static func code(_ body: () throws -> Void) -> DMAError.Code? {
    do { try body() } catch { return (error as? DMAError)?.code }
    return nil
  }
}

/// Whole pages of this process.
@safe
final class Pages: @unchecked Sendable {
  let memory: UnsafeMutableRawBufferPointer

  init(_ count: Int, filledWith byte: UInt8 = 0) {
    unsafe memory = .allocate(byteCount: count * 4096, alignment: 4096)
    _ = unsafe memory.initializeMemory(as: UInt8.self, repeating: byte)
  }

  deinit { unsafe memory.deallocate() }

  var all: UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(memory) }
  var address: UInt64 { unsafe UInt64(UInt(bitPattern: memory.baseAddress)) }
  /// A part, in bytes.
  func part(_ range: Range<Int>) -> UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(rebasing: all[range]) }
  func bytes(_ range: Range<Int>) -> [UInt8] { unsafe [UInt8](part(range)) }
  subscript(offset: Int) -> UInt8 {
    get { unsafe memory[offset] }
    set { unsafe memory[offset] = newValue }
  }
}
