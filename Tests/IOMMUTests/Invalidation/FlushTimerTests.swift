import AddressSpace
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// The timer that cannot be had, and the one that has much to do.
@Suite struct FlushTimerTests {
  private static func options(_ topology: FlushQueueOptions.Topology = .single) -> FlushQueueOptions {
    FlushQueueOptions(topology, timeout: LazyTests.patient)
  }

  private static func notices(of dma: DMADomain) -> Shared<[DMANotice]> {
    let notices = Shared<[DMANotice]>([])
    dma.onNotice { notice in notices.change { $0.append(notice) } }
    return notices
  }

  private static let missing = DMANotice.timerMissing(device: LazyTests.address, errno: .tooManyDescriptors)

  // MARK: - None to be had

  /// Nothing waits for a timer that there is not: each unmap is flushed at once, that is counted, and told once. With the first
  /// timer that can be had again, unmaps wait again.
  @Test(arguments: LazyTests.Tables.allCases, [(FlushQueueOptions.Topology.single, 1), (.single, 2), (.perCPU, 1)])
  func noDescriptor(_ tables: LazyTests.Tables, _ way: (FlushQueueOptions.Topology, Int)) throws {
    let (topology, number) = way
    try LazyTests.withDomain(tables, Self.options(topology)) { kernel, dma, machine in
      let notices = Self.notices(of: dma)
      kernel.failFrom(number, of: "createEvent", with: .tooManyDescriptors)
      for count in 1...3 as ClosedRange<UInt64> {
        _ = try LazyTests.mapAndUnmap(dma)
        let statistics = dma.statistics
        #expect(statistics.queuedBytes == 0 && statistics.flushes == count && statistics.timerFailures == count)
      }
      #expect(notices.value == [Self.missing] && !FlushTimer.isRunning(for: kernel))
      #expect(Self.missing.description == "0000:00:02.0: no timer (EMFILE): lazy unmaps are flushed at once")
      kernel.passAll()
      _ = try LazyTests.mapAndUnmap(dma)
      #expect(dma.statistics.queuedBytes == 4096 && dma.statistics.timerFailures == 3)
      #expect(FlushTimer.isRunning(for: kernel))
      dma.onNotice(nil)
    }
  }

  /// Lists, and maps that would be kept.
  @Test(arguments: LazyTests.Tables.kernelOwned, ["list", "cache"])
  func noDescriptorElsewhere(_ tables: LazyTests.Tables, _ way: String) throws {
    let protection = way == "list" ? Protection.lazy(Self.options()) : .automatic(Caching.options())
    let rig = try StandingRig(tables, .vtd, protection), dma = rig.dma
    let notices = Self.notices(of: dma), buffer = try RecurringBuffer(dma)
    rig.kernel.failFrom(1, of: "createEvent", with: .tooManyDescriptors)
    for count in 1...2 as ClosedRange<UInt64> {
      var list = ScatterList()
      list.append(try dma.buffer(byteCount: 64))
      if way == "list" { _ = try dma.map(list, .toDevice).unmap() } else { _ = try buffer.use(dma) }
      #expect(dma.statistics.queuedBytes == 0 && dma.statistics.cachedBytes == 0)
      #expect(rig.machine.kernel.census.pinnedBytes == 0 && dma.statistics.timerFailures == count)
    }
    #expect(notices.value == [Self.missing])
    rig.kernel.passAll()
    if way == "cache" {
      let address = try buffer.use(dma)
      #expect(try buffer.use(dma) == address && dma.statistics.cacheHits == 1)
    }
    dma.onNotice(nil)
    rig.device.close()
  }

  /// Who finds the timer armed just then, and leaves his range to it, is flushed for as well.
  @Test(arguments: LazyTests.Tables.allCases)
  func whoReliesOnIt(_ tables: LazyTests.Tables) throws {
    try LazyTests.withDomain(tables, Self.options()) { kernel, dma, machine in
      kernel.failFrom(1, of: "createEvent", with: .tooManyDescriptors)
      kernel.interject(before: "createEvent") {
        _ = try? LazyTests.mapAndUnmap(dma)
        #expect(dma.statistics.queuedBytes == 8192, "it waits")
      }
      _ = try LazyTests.mapAndUnmap(dma)
      #expect(dma.statistics.unmaps == 2 && dma.statistics.queuedBytes == 0 && dma.statistics.timerFailures == 1)
    }
  }

  /// All devices of the domain are told; one that is gone is not asked.
  @Test func everyDeviceIsTold() throws {
    var machine = SimulatedMachine.vtd
    machine.devices = ["0000:00:02.0", "0000:00:03.0", "0000:00:04.0"].map {
      SimulatedDevice($0, EduModel(addressBits: 64))
    }
    let simulated = SimulatedHost(machine), kernel = FaultingKernel(simulated.kernel)
    do {
      let first = try Device("0000:00:02.0", on: Host(kernel: kernel))
      let second = try Device("0000:00:03.0", on: Host(kernel: kernel), sharing: first.dma)
      do { try Device("0000:00:04.0", on: Host(kernel: kernel), sharing: first.dma).close() }
      try first.dma.switchProtection(to: .lazy(Self.options()))
      let told = [Self.notices(of: first.dma), Self.notices(of: second.dma)]
      kernel.failFrom(1, of: "createEvent", with: .tooManyDescriptors)
      _ = try LazyTests.mapAndUnmap(second.dma)
      #expect(told.map(\.value) == [[Self.missing], [Self.missing]])
      second.close()
      first.close()
    }
    #expect(simulated.isClean)
  }

  /// What is told may close the device.
  @Test(arguments: LazyTests.Tables.allCases, ["buffer", "list", "cache"])
  func theHandlerMayClose(_ tables: LazyTests.Tables, _ way: String) throws {
    if way == "cache", tables == .process { return }
    let protection = way == "cache" ? .automatic(Caching.options()) : Protection.lazy(Self.options())
    let rig = try StandingRig(tables, .vtd, protection), dma = rig.dma, device = rig.device
    dma.onNotice { _ in device.close() }
    var list = ScatterList()
    list.append(try dma.buffer(byteCount: 64))
    rig.kernel.failFrom(1, of: "createEvent", with: .tooManyDescriptors)
    if way == "list" { _ = try dma.map(list, .toDevice).unmap() } else { _ = try LazyTests.mapAndUnmap(dma) }
    #expect(device.isClosed && dma.statistics.liveMappings == 0 && dma.statistics.leakedBytes == 0)
    dma.onNotice(nil)
  }

  // MARK: - Several domains

  /// Two domains of a kernel, on tables of different kinds, so that one can be held up and the other not.
  private struct Pair {
    let machine: SimulatedHost
    let kernel: FaultingKernel
    let slow: Device, quick: Device

    init(_ tables: LazyTests.Tables, timeout: Duration) throws {
      machine = SimulatedHost(devices: [
        "0000:00:02.0": EduModel(addressBits: 64), "0000:00:03.0": EduModel(addressBits: 64),
      ])
      kernel = FaultingKernel(machine.kernel)
      slow = try Device("0000:00:02.0", on: Host(kernel: kernel), interface: .iommufd, translation: .kernel)
      quick = try Device(
        "0000:00:03.0", on: Host(kernel: kernel), interface: tables.interface, translation: tables.choice)
      for device in [slow, quick] {
        try device.dma.switchProtection(to: .lazy(FlushQueueOptions(.single, timeout: timeout)))
      }
    }

    static func wait(_ isOver: () -> Bool) -> Bool {
      for _ in 0..<5000 {
        if isOver() { return true }
        usleep(1000)
      }
      return false
    }

    func close() {
      kernel.letGo()
      slow.close()
      quick.close()
    }
  }

  /// The flush of a domain takes as long as its kernel call: the timer flushes the other in time, whether that waited when the
  /// first was due or came to wait since; again and again, and with no more threads than there are domains to flush.
  @Test(arguments: [LazyTests.Tables.process, .container], [false, true])
  func aSlowDomainKeepsNobodyWaiting(_ tables: LazyTests.Tables, _ waits: Bool) throws {
    let pair = try Pair(tables, timeout: .milliseconds(20)), slow = pair.slow.dma, quick = pair.quick.dma
    for round in 1...4 as ClosedRange<UInt64> {
      pair.kernel.hold("ioasUnmap")
      _ = try LazyTests.mapAndUnmap(slow)
      if !waits { #expect(Pair.wait { pair.kernel.heldCount == 1 }) }
      _ = try LazyTests.mapAndUnmap(quick)
      #expect(Pair.wait { quick.statistics.flushes == round && quick.statistics.queuedBytes == 0 }, "round \(round)")
      #expect(Pair.wait { pair.kernel.heldCount == 1 } && slow.statistics.flushes == round - 1)
      let threads = FlushTimer.threadCount(of: pair.kernel)
      #expect(1...2 ~= threads, "one flushes, one watches or rests")
      pair.kernel.letGo()
      #expect(Pair.wait { slow.statistics.flushes == round && slow.statistics.queuedBytes == 0 })
    }
    #expect(Pair.wait { !FlushTimer.isRunning(for: pair.kernel) }, "an idle process has none")
    pair.close()
    #expect(pair.machine.kernel.census.areas == 0)
  }

  /// One domain alone takes one thread, however slow it is.
  @Test func oneDomainTakesOneThread() throws {
    let pair = try Pair(.process, timeout: .milliseconds(5)), slow = pair.slow.dma
    pair.kernel.hold("ioasUnmap")
    _ = try LazyTests.mapAndUnmap(slow)
    #expect(Pair.wait { pair.kernel.heldCount == 1 } && FlushTimer.threadCount(of: pair.kernel) == 1)
    pair.kernel.letGo()
    #expect(Pair.wait { slow.statistics.flushes == 1 })
    pair.close()
    #expect(pair.machine.kernel.census.areas == 0)
  }

  /// A domain whose flush is refused is tried again by the timer, all by itself.
  @Test(arguments: LazyTests.Tables.allCases)
  func aFlushThatFailsIsTriedAgain(_ tables: LazyTests.Tables) throws {
    try LazyTests.withDomain(tables, FlushQueueOptions(.single, timeout: .milliseconds(20))) { kernel, dma, machine in
      kernel.fail(1, of: tables.flushCall, with: .inputOutput)
      _ = try LazyTests.mapAndUnmap(dma)
      #expect(Pair.wait { dma.statistics.flushes == 1 && dma.statistics.queuedBytes == 0 })
      #expect(dma.statistics.failedFlushes == 1)
    }
  }
}
