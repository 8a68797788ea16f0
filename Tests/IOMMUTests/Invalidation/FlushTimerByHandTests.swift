import IOMMU
import IOMMUSimulation
import Testing

/// A timer without a thread, on a machine whose time is its own.
@Suite struct FlushTimerByHandTests {
  /// A domain whose queues wait for 10 ms, and the timer of its kernel.
  private static func withTimer(_ body: (FlushTimer, DMADomain, SimulatedHost) throws -> Void) throws {
    var machine = SimulatedMachine.vtd
    machine.followsRealTime = false
    let simulated = SimulatedHost(machine, devices: [LazyTests.address: EduModel(addressBits: 64)])
    do {
      let timer = try FlushTimer.byHand(for: simulated.kernel)
      defer { timer.end() }
      let device = try Device(LazyTests.address, on: simulated.host, translation: .process)
      try device.dma.switchProtection(to: .lazy(.perCPU))
      try body(timer, device.dma, simulated)
      device.close()
    }
    #expect(simulated.isClean)
  }

  @Test func itFlushesWhenItIsCalledInTime() throws {
    try Self.withTimer { timer, dma, machine in
      #expect(timer.nextTime == nil && !timer.fire())
      _ = try LazyTests.mapAndUnmap(dma)
      #expect(timer.nextTime == machine.kernel.now() + 10_000_000)
      machine.kernel.sleep(.nanoseconds(9_999_999))
      #expect(!timer.fire() && dma.statistics.flushes == 0)
      machine.kernel.sleep(.nanoseconds(1))
      #expect(timer.fire() && dma.statistics.flushes == 1)
      // A system call and the invalidation.
      #expect(dma.statistics.longestWindowNanoseconds == 10_000_000 + 310 + 800)
      #expect(timer.nextTime == nil, "nothing waits")
    }
  }

  /// What was queued since the last flush is due later.
  @Test func youngEntriesWait() throws {
    try Self.withTimer { timer, dma, machine in
      _ = try LazyTests.mapAndUnmap(dma)
      machine.kernel.sleep(.milliseconds(4))
      try dma.drain()
      _ = try LazyTests.mapAndUnmap(dma)
      let queued = machine.kernel.now()
      machine.kernel.sleep(.milliseconds(6))
      timer.fire()
      #expect(dma.statistics.flushes == 1 && timer.nextTime == queued + 10_000_000)
    }
  }

  /// After its end domains have a thread again.
  @Test func theEnd() throws {
    try Self.withTimer { timer, dma, machine in
      #expect(FlushTimer.isRunning(for: machine.kernel))
      timer.end()
      #expect(!FlushTimer.isRunning(for: machine.kernel))
      _ = try LazyTests.mapAndUnmap(dma)
      #expect(FlushTimer.isRunning(for: machine.kernel) && timer.nextTime == nil)
    }
  }
}
