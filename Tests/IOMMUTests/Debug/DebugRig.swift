import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// A device in debug mode on a simulated machine, and what was reported.
struct DebugRig {
  let machine: SimulatedHost
  let kernel: FaultingKernel
  let device: Device
  let bar: Registers
  private let found: Shared<[DebugReport]>
  var dma: DMADomain { device.dma }

  init(
    _ tables: LazyTests.Tables = .ioas, _ machine: SimulatedMachine = .vtd, _ options: DebugOptions = DebugOptions(),
    model: any DeviceModel = EduModel(addressBits: 64)
  ) throws {
    self.machine = SimulatedHost(machine, devices: [LazyTests.address: model])
    kernel = FaultingKernel(self.machine.kernel)
    let found = Shared<[DebugReport]>([])
    self.found = found
    var options = options
    options.onReport = { report in found.change { $0.append(report) } }
    device = try Device(
      LazyTests.address, on: Host(kernel: kernel), interface: tables.interface, translation: tables.choice,
      debug: options)
    bar = try device.registers(bar: 0)
  }

  /// What was reported so far.
  var reports: [DebugReport] { found.value }
  var kinds: [DebugReport.Kind] { reports.map(\.kind) }

  /// Lets the device read memory, or write what it has read last.
  func read(_ address: IOVA, _ count: Int = 8) throws {
    try EndToEndTests.transfer(bar, address, count, toDevice: true)
  }
  func write(_ address: IOVA, _ count: Int = 8) throws {
    try EndToEndTests.transfer(bar, address, count, toDevice: false)
  }

  /// The code of the error that `body` throws.
  static func code(_ body: () throws(DMAError) -> Void) -> DMAError.Code? {
    do throws(DMAError) { try body() } catch { return error.code }
    return nil
  }
}

/// What the CPU may do at an address, asked of the kernel: a transfer through a pipe fails where a load or a store would.
enum Touch {
  static func mayRead(_ address: UInt) -> Bool {
    withPipe { _, end in unsafe Glibc.write(end, UnsafeRawPointer(bitPattern: address), 1) == 1 }
  }

  /// Leaves the byte as it is, if it may be read; else it becomes 0.
  static func mayWrite(_ address: UInt) -> Bool {
    withPipe { start, end in
      if unsafe Glibc.write(end, UnsafeRawPointer(bitPattern: address), 1) != 1 {
        var zero: UInt8 = 0
        _ = unsafe Glibc.write(end, &zero, 1)
      }
      return unsafe Glibc.read(start, UnsafeMutableRawPointer(bitPattern: address), 1) == 1
    }
  }

  private static func withPipe(_ body: (Int32, Int32) -> Bool) -> Bool {
    var ends: [Int32] = [0, 0]
    guard unsafe pipe(&ends) == 0 else { return false }
    defer { for end in ends { close(end) } }
    return body(ends[0], ends[1])
  }
}
