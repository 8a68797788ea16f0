import AddressSpaceModels
import Glibc
import IOMMU
import IOMMUSimulation

/// Threads that map and unmap on one domain of a simulated machine.
struct Load {
  private let machine: SimulatedHost
  private let interface: Interface
  private static let address = "0000:00:02.0"

  init(_ interface: Interface) {
    machine = SimulatedHost(devices: [Self.address: EduModel(addressBits: 64)])
    self.interface = interface
  }

  private static let protections: [Protection] = [
    .strict, .lazy(.perCPU), .lazy(.single), .lazy(FlushQueueOptions(.perCPU, depth: 8, timeout: .milliseconds(1))),
    .lazy(FlushQueueOptions(.single, depth: 4, timeout: .milliseconds(2))), .lazy(FlushQueueOptions(.perCPU, depth: 2)),
    .automatic, .persistent, .bounce,
  ]

  /// What is left when everything was dropped.
  private func verdict(_ failure: String?) -> String? {
    // Each look takes a second at most, which is short under the sanitizer with more threads than processors.
    failure ?? ((0..<20).contains { _ in machine.isClean } ? nil : "something is left: \(machine.kernel.census)")
  }

  /// The protection changes all the time, and one thread drains.
  func switching(_ run: Run) throws -> String? { verdict(try switchAndDrain(run)) }

  private func switchAndDrain(_ run: Run) throws -> String? {
    let device = try Device(Self.address, on: machine.host, interface: interface), dma = device.dma
    run.inThreads(run.threads + 2) { index, numbers in
      while !run.isOver {
        switch index {
        case 0:
          try dma.switchProtection(to: Self.protections[numbers.next(Self.protections.count)])
          usleep(UInt32(numbers.next(3000)))
        case 1:
          try dma.drain()
          _ = dma.statistics
          usleep(UInt32(numbers.next(2000)))
        default: try Self.operate(dma, run, &numbers)
        }
      }
    }
    try dma.drain()
    let statistics = dma.statistics
    device.close()
    if let failure = run.firstFailure { return failure }
    if statistics.maps != statistics.unmaps || statistics.liveBytes != 0 || statistics.queuedBytes != 0 {
      return "\(statistics)"
    }
    return statistics.leakedBytes == 0 ? nil : "\(statistics.leakedBytes) bytes leaked"
  }

  /// The device is closed in the midst of it; what fails then says so.
  func closing(_ run: Run) throws -> String? {
    while !run.isOver {
      let device = try Device(Self.address, on: machine.host, interface: interface), dma = device.dma
      try dma.switchProtection(to: Self.protections[run.operations % Self.protections.count])
      run.inThreads(run.threads + 1) { index, numbers in
        if index == 0 {
          usleep(UInt32(numbers.next(4000)))
          return device.close()
        }
        do throws(DMAError) {
          while !run.isOver { try Self.operate(dma, run, &numbers) }
        } catch { if error.code != .closed { throw error } }
        device.close()
      }
      if let failure = run.firstFailure { return failure }
    }
    return verdict(nil)
  }

  /// Forks in the midst of it: each call of a child fails typed, and what it drops touches nothing of the parent's.
  func forking(_ run: Run) throws -> String? {
    try forkAndWait(run)
    return verdict(run.firstFailure)
  }

  private func forkAndWait(_ run: Run) throws {
    let device = try Device(Self.address, on: machine.host, interface: interface), dma = device.dma
    try dma.switchProtection(to: .lazy(.perCPU))
    run.inThreads(run.threads + 1) { index, numbers in
      while !run.isOver {
        guard index == 0 else {
          try Self.operate(dma, run, &numbers)
          continue
        }
        let child = fork()
        if child == 0 {
          var code: Int32 = 1
          do throws(DMAError) { try dma.drain() } catch { code = error.code == .forked ? 0 : 2 }
          _exit(code)
        }
        var status: Int32 = 0
        guard child > 0, unsafe waitpid(child, &status, 0) == child, status == 0 else {
          return run.fail("a child ended with status \(status)")
        }
        usleep(10_000)
      }
    }
    device.close()
  }

  private static func link(_ dma: DMADomain, at offset: Int) throws(DMAError) {
    var reservation = try dma.reserve(byteCount: 16 << 12)
    try reservation.link(try dma.buffer(byteCount: 4096), at: offset, .toDevice)
    let linked = try reservation.sync()
    _ = try linked.destroy()
  }

  /// One of the things that a driver does.
  private static func operate(_ dma: DMADomain, _ run: Run, _ numbers: inout SplitMix64) throws(DMAError) {
    run.note()
    switch numbers.next(8) {
    case 0:
      var list = ScatterList()
      for _ in 0...numbers.next(6) { list.append(try dma.buffer(byteCount: 1 + numbers.next(12_000))) }
      let mapped = try dma.map(list, .bidirectional)
      if numbers.next(2) == 0 { _ = try mapped.unmap() }
    case 1:
      let offset = 4096 * numbers.next(15)
      do throws(DMAError) { try link(dma, at: offset) } catch {
        // Links cannot be copied, so that .bounce has none.
        if error.code != .notSupported { throw error }
      }
    case 2: _ = try dma.allocate(UInt64.self, count: 1 + numbers.next(1000))
    default:
      var buffer = try dma.buffer(byteCount: 1 + numbers.next(20_000))
      let value = numbers.next()
      if buffer.byteCount >= 8 { buffer.store(value) }
      let isLong = buffer.byteCount >= 8
      let mapping = try dma.map(buffer, .bidirectional)
      let found = unsafe dma.translate(mapping.address)
      if isLong, unsafe found?.loadUnaligned(as: UInt64.self) != value { run.fail("an address leads elsewhere") }
      if numbers.next(4) > 0 { _ = try mapping.unmap() }
    }
  }
}
