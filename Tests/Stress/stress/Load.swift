import AddressSpaceModels
import Glibc
import IOMMU
import IOMMUSimulation
import Synchronization

/// Threads that map and unmap on one domain of a simulated machine.
struct Load {
  private let machine: SimulatedHost
  private let interface: Interface
  private let translation: TranslationChoice
  private let model = BusModel()
  /// nil for what the environment says: `SWIFT_IOMMU_DEBUG=1` has all of them in debug mode.
  private let debug: DebugOptions?
  private static let address = "0000:00:02.0"

  init(_ interface: Interface, isDebugged: Bool = false) {
    machine = SimulatedHost(devices: [Self.address: model])
    (self.interface, translation) = (interface, .automatic)
    debug = isDebugged ? DebugOptions(onReport: { _ in }) : nil
  }

  /// On tables of the process that hardware walks, with a device that does what it must not now and then, and a thread that asks for
  /// the faults.
  init(nested machine: SimulatedMachine) {
    self.machine = SimulatedHost(machine, devices: [Self.address: model])
    (interface, translation, debug) = (.iommufd, .process, nil)
  }

  private func open() throws -> Device {
    try Device(Self.address, on: machine.host, interface: interface, translation: translation, debug: debug)
  }

  private var faults: Bool { translation == .process }

  /// Page 0 is never mapped.
  private static func fault(_ run: Run, _ bus: DeviceBus?) {
    if let bus, (try? bus.load(0x10, as: UInt64.self)) != nil { run.fail("the device reaches page 0") }
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
    let device = try open(), dma = device.dma, work = Work(dma, model.bus)
    if faults { Self.fault(run, model.bus) }
    run.inThreads(run.threads + 2) { [model, faults] index, numbers in
      while !run.isOver {
        switch index {
        case 0:
          try dma.switchProtection(to: Self.protections[numbers.next(Self.protections.count)])
          usleep(UInt32(numbers.next(3000)))
        case 1:
          try dma.drain()
          if faults { Self.fault(run, model.bus) }
          _ = (dma.statistics, dma.faults)
          usleep(UInt32(numbers.next(2000)))
        default: try work.operate(run, &numbers)
        }
      }
    }
    try dma.drain()
    let statistics = dma.statistics, told = dma.faults
    device.close()
    if let failure = run.firstFailure { return failure }
    if let report = dma.debugReports.first { return "\(report)" }
    if (told.count > 0) != faults { return "\(told.count) faults" }
    if let other = told.faults.first(where: { $0.iova.map { $0.rawValue >> 12 } != 0 }) { return "\(other)" }
    if statistics.maps != statistics.unmaps || statistics.liveBytes != 0 || statistics.queuedBytes != 0 {
      return "\(statistics)"
    }
    return statistics.leakedBytes == 0 ? nil : "\(statistics.leakedBytes) bytes leaked"
  }

  /// The device is closed in the midst of it; what fails then says so.
  func closing(_ run: Run) throws -> String? {
    while !run.isOver {
      let device = try open(), dma = device.dma, work = Work(dma, nil), isClosed = Atomic<Bool>(false)
      try dma.switchProtection(to: Self.protections[run.operations % Self.protections.count])
      run.inThreads(run.threads + 2) { [model, faults] index, numbers in
        if index == 0 {
          usleep(UInt32(numbers.next(4000)))
          device.close()
          return isClosed.store(true, ordering: .relaxed)
        }
        // Faults are told while the device goes, and after.
        while index == 1, !isClosed.load(ordering: .relaxed) {
          if faults { Self.fault(run, model.bus) }
          _ = dma.faults
        }
        do throws(DMAError) {
          while index > 1, !run.isOver { try work.operate(run, &numbers) }
        } catch { if error.code != .closed { throw error } }
        _ = dma.faults
        device.close()
      }
      if let failure = run.firstFailure { return failure }
      if let report = dma.debugReports.first(where: { $0.kind != .aliveAtClose }) { return "\(report)" }
    }
    return verdict(nil)
  }

  /// Forks in the midst of it: each call of a child fails typed, and what it drops touches nothing of the parent's.
  func forking(_ run: Run) throws -> String? {
    try forkAndWait(run)
    return verdict(run.firstFailure)
  }

  private func forkAndWait(_ run: Run) throws {
    let device = try open(), dma = device.dma, work = Work(dma, model.bus)
    try dma.switchProtection(to: .lazy(.perCPU))
    run.inThreads(run.threads + 1) { index, numbers in
      while !run.isOver {
        guard index == 0 else {
          try work.operate(run, &numbers)
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
    // The simulated kernel pins nothing, so that a fork shares the frames of memory that is mapped.
    if let report = dma.debugReports.first(where: { $0.kind != .memoryReplaced }) { run.fail("\(report)") }
    device.close()
  }
}
