import AddressSpace
import AddressSpaceModels
import Glibc
import IOMMU
import IOMMUSimulation

/// Threads whose addresses wander, on tables of the process: tables become empty behind them and are taken back, while others map
/// beside them, reserve whole regions, drain, and switch the protection.
struct Wandering {
  private let machine: SimulatedHost
  private let model = BusModel()
  private static let address = "0000:00:02.0", byteCount = 1 << 16

  init(_ machine: SimulatedMachine) { self.machine = SimulatedHost(machine, devices: [Self.address: model]) }

  func run(_ run: Run) throws -> String? {
    if let failure = try wander(run) { return failure }
    return (0..<20).contains { _ in machine.isClean } ? nil : "something is left: \(machine.kernel.census)"
  }

  private func wander(_ run: Run) throws -> String? {
    let device = try Device(Self.address, on: machine.host, translation: .process), dma = device.dma
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.byteCount, alignment: 4096)
    defer { unsafe memory.deallocate() }
    let registration = try unsafe dma.register(unsafe: UnsafeRawBufferPointer(memory))
    let base = Int(bitPattern: memory.baseAddress!)
    run.inThreads(run.threads + 1) { [model] index, numbers in
      while !run.isOver {
        guard index == 0 else {
          try Self.step(run, dma, model.bus, base, UInt64(index), &numbers)
          continue
        }
        try dma.switchProtection(to: numbers.next(2) == 0 ? .strict : .lazy(.perCPU))
        // Some region as a whole.
        let reservation = try dma.reserve(byteCount: 1 << 21)
        usleep(UInt32(numbers.next(2000)))
        _ = try reservation.destroy()
      }
    }
    try registration.unregister()
    let statistics = dma.statistics
    device.close()
    if let failure = run.firstFailure { return failure }
    if statistics.maps != statistics.unmaps || statistics.leakedBytes != 0 { return "\(statistics)" }
    // A table for all that may wait in the queues, and some hundred more.
    let most = (256 * sysconf(Int32(_SC_NPROCESSORS_CONF)) + 512) * 4096
    return statistics.tableBytes <= most ? nil : "\(statistics.tableBytes) bytes of tables"
  }

  /// A page at an address of the caller's choice, of which no other thread has one.
  private static func step(
    _ run: Run, _ dma: DMADomain, _ bus: DeviceBus?, _ base: Int, _ index: UInt64, _ numbers: inout SplitMix64
  ) throws {
    run.note()
    let page = UInt64(numbers.next(16))
    let part = unsafe UnsafeRawBufferPointer(
      start: UnsafeRawPointer(bitPattern: base + Int(page) * 4096), count: 4096)
    let iova = IOVA(1 << 32 + UInt64(numbers.next(1 << 16)) << 21 + (index * 16 + page) << 12)
    do throws(DMAError) {
      let mapping = try unsafe dma.map(unsafe: part, .bidirectional, at: iova)
      if numbers.next(4) == 0, (try? bus?.load(mapping.address.rawValue, as: UInt64.self)) == nil {
        run.fail("the device does not reach \(mapping.address)")
      }
      try mapping.unmap()
    } catch {
      // An address of one's own choice waits for a flush as any other.
      if error.code != .overlap { throw error }
    }
  }
}
