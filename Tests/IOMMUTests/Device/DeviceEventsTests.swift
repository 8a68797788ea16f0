import IOMMU
import Testing

@Suite("Device events", .timeLimit(.minutes(1)))
struct DeviceEventsTests {
  static func kernel() -> TestKernel {
    TestKernel { $0.indexes = [VFIOPCI.error: .init(count: 1), VFIOPCI.request: .init(count: 1)] }
  }

  final class Recorder: Sendable {
    private let list = Shared<[DeviceEvent]>([])
    var all: [DeviceEvent] { list.value }
    func note(_ event: DeviceEvent) { list.change { $0.append(event) } }
  }

  // MARK: Telling

  @Test func whatTheDeviceHasIsKnown() throws {
    let handle = try TestKernel().handle()
    let some = VFIOInterruptInfo(flags: 1, count: 1), none = VFIOInterruptInfo(flags: 1, count: 0)
    #expect(DeviceEvents(handle, error: some, request: some).supported == [.error, .releaseRequested])
    #expect(DeviceEvents(handle, error: nil, request: some).supported == [.releaseRequested])
    #expect(DeviceEvents(handle, error: none, request: nil).supported.isEmpty)
  }

  @Test func eventsReachTheHandler() async throws {
    let kernel = Self.kernel()
    let events = try kernel.events()
    let seen = Recorder()
    try events.start { seen.note($0) }
    kernel.fire(VFIOPCI.error)
    await kernel.settle { seen.all.count == 1 }
    kernel.fire(VFIOPCI.request)
    await kernel.settle { seen.all.count == 2 }
    #expect(seen.all == [.error, .releaseRequested])
    events.close()
  }

  @Test func aHandlerIsReplaced() async throws {
    let kernel = Self.kernel()
    let events = try kernel.events()
    let first = Recorder(), second = Recorder()
    try events.start { first.note($0) }
    events.onEvent { second.note($0) }
    kernel.fire(VFIOPCI.error)
    await kernel.settle { second.all.count == 1 }
    events.onEvent(nil)
    kernel.fire(VFIOPCI.request)
    await kernel.settle { kernel.isTaken(VFIOPCI.request) }
    #expect(first.all.isEmpty)
    #expect(second.all == [.error])
    events.close()
  }

  @Test func withoutEventsThereIsNoThread() throws {
    let kernel = TestKernel()
    let events = try kernel.events()
    try events.start { _ in }
    #expect(EventWatcher.sourceCount(of: kernel) == nil)
    events.close()
    #expect(kernel.calls.filter { $0.hasPrefix("set") }.isEmpty)
  }

  // MARK: The thread

  @Test func oneThreadWatchesAllDevicesOfAKernel() async throws {
    let kernel = Self.kernel()
    let devices = try (0..<4).map { _ in try kernel.events() }
    for device in devices { try device.start { _ in } }
    #expect(EventWatcher.sourceCount(of: kernel) == 8)
    for device in devices { device.close() }
    await kernel.settle { EventWatcher.sourceCount(of: kernel) == nil }
    #expect(EventWatcher.sourceCount(of: kernel) == nil, "it ends with the last")
  }

  @Test func eachKernelHasItsOwn() async throws {
    let kernels = [Self.kernel(), Self.kernel()]
    let seen = [Recorder(), Recorder()]
    let events = try kernels.map { try $0.events() }
    for (event, recorder) in zip(events, seen) { try event.start { recorder.note($0) } }
    kernels[1].fire(VFIOPCI.error)
    await kernels[1].settle { seen[1].all.count == 1 }
    #expect(seen[0].all.isEmpty)
    for event in events { event.close() }
  }

  @Test func itSleepsAndDoesNotPoll() async throws {
    let kernel = Self.kernel()
    let events = try kernel.events()
    try events.start { _ in }
    await kernel.settle { kernel.calls.contains("wait") }
    try await Task.sleep(for: .milliseconds(10))
    let before = kernel.calls.count
    try await Task.sleep(for: .milliseconds(50))
    #expect(kernel.calls.count == before)
    events.close()
  }

  @Test func itStartsAgain() async throws {
    let kernel = Self.kernel()
    for _ in 0..<20 {
      let events = try kernel.events()
      let seen = Recorder()
      try events.start { seen.note($0) }
      kernel.fire(VFIOPCI.error)
      await kernel.settle { seen.all == [.error] }
      #expect(seen.all == [.error])
      events.close()
    }
    await kernel.settle { kernel.leaks == 0 }
    #expect(kernel.leaks == 0)
  }

  @Test func aDeviceThatIsAlwaysSignalledDoesNotHideOthers() async throws {
    let kernel = Self.kernel()
    let noisy = try kernel.events()
    try noisy.start { _ in kernel.fire(VFIOPCI.error) }
    kernel.fire(VFIOPCI.error)
    // The second device ties its own events to the same indexes, so keep what the first had.
    let noisyEvent = kernel.with { $0.indexes[VFIOPCI.error]!.events }
    let quiet = try kernel.events()
    let seen = Recorder()
    try quiet.start { seen.note($0) }
    kernel.with { $0.indexes[VFIOPCI.error]!.events = noisyEvent }
    kernel.fire(VFIOPCI.error)
    kernel.fire(VFIOPCI.request)
    await kernel.settle { seen.all.contains(.releaseRequested) }
    #expect(seen.all.contains(.releaseRequested))
    noisy.close()
    quiet.close()
  }

  @Test func signalsAndShortageDoNotEndIt() async throws {
    let kernel = Self.kernel()
    let events = try kernel.events()
    let seen = Recorder()
    kernel.fail("wait", .interrupted, .noMemory, .interrupted)
    try events.start { seen.note($0) }
    kernel.fire(VFIOPCI.error)
    await kernel.settle { seen.all.count == 1 }
    #expect(seen.all == [.error])
    #expect(kernel.with { $0.slept } == [.milliseconds(100)], "not at once after a shortage")
    events.close()
  }

  @Test func aDescriptorThatCannotBeReadIsDropped() async throws {
    let kernel = TestKernel { $0.indexes = [VFIOPCI.error: .init(count: 1)] }
    let events = try kernel.events()
    kernel.fail("takeEvent", .badDescriptor)
    try events.start { _ in Issue.record("there was no event") }
    kernel.fire(VFIOPCI.error)
    await kernel.settle { EventWatcher.sourceCount(of: kernel) == nil }
    #expect(EventWatcher.sourceCount(of: kernel) == nil)
    events.close()
  }

  // MARK: Closing

  @Test func closingUntiesBothAndLeavesNothing() async throws {
    let kernel = Self.kernel()
    do {
      let events = try kernel.events()
      try events.start { _ in }
      events.close()
      events.close()
    }
    #expect(kernel.calls.filter { $0.hasPrefix("trigger") }.sorted() == ["trigger 3 0+0", "trigger 4 0+0"])
    await kernel.settle { kernel.leaks == 0 }
    #expect(kernel.leaks == 0)
  }

  @Test func aDeviceThatIsDroppedIsClosed() async throws {
    let kernel = Self.kernel()
    try kernel.events().start { _ in }
    await kernel.settle { kernel.leaks == 0 }
    #expect(kernel.leaks == 0)
    #expect(kernel.with { $0.indexes[VFIOPCI.error]!.events.isEmpty })
  }

  @Test func theHandlerMayClose() async throws {
    let kernel = Self.kernel()
    let seen = Recorder()
    let events = try kernel.events()
    try events.start { [weak events] event in
      seen.note(event)
      events?.close()
    }
    kernel.fire(VFIOPCI.request)
    await kernel.settle { EventWatcher.sourceCount(of: kernel) == nil }
    #expect(EventWatcher.sourceCount(of: kernel) == nil)
    kernel.fire(VFIOPCI.request)
    kernel.fire(VFIOPCI.error)
    #expect(seen.all == [.releaseRequested])
  }

  @Test func theHandlerMayDropTheLastReference() async throws {
    let kernel = Self.kernel()
    let owner = Shared<DeviceEvents?>(try kernel.events())
    try owner.value?.start { _ in owner.change { $0 = nil } }
    kernel.fire(VFIOPCI.request)
    await kernel.settle { kernel.leaks == 0 }
    #expect(kernel.leaks == 0)
  }

  @Test func theHandlerMayStartAnotherDevice() async throws {
    let kernel = Self.kernel()
    let first = try kernel.events(), second = try kernel.events()
    let seen = Recorder()
    try first.start { event in
      seen.note(event)
      first.close()
      do { try second.start { seen.note($0) } } catch { Issue.record("\(error)") }
    }
    kernel.fire(VFIOPCI.error)
    await kernel.settle {
      kernel.with { !$0.indexes[VFIOPCI.request]!.events.isEmpty } && seen.all.count == 1
    }
    kernel.fire(VFIOPCI.request)
    await kernel.settle { seen.all.count == 2 }
    #expect(seen.all == [.error, .releaseRequested])
    second.close()
  }

  @Test func closingWhileTheHandlerRunsDoesNotWaitForIt() async throws {
    let kernel = Self.kernel()
    let events = try kernel.events()
    let isEntered = Shared(false), mayLeave = Shared(false)
    try events.start { _ in
      isEntered.change { $0 = true }
      while !mayLeave.value {}
    }
    kernel.fire(VFIOPCI.error)
    await kernel.settle { isEntered.value }
    events.close()
    #expect(isEntered.value)
    mayLeave.change { $0 = true }
    await kernel.settle { EventWatcher.sourceCount(of: kernel) == nil }
  }

  // MARK: Failures

  /// Each call fails once; afterwards nothing is tied, open or watched.
  @Test func anyCallThatFailsLeavesNothing() async throws {
    for call in 1...12 {
      let kernel = Self.kernel()
      kernel.with { $0.failing = (call, .noMemory) }
      do {
        let events = try kernel.events()
        defer { events.close() }
        try events.start { _ in }
      } catch is DMAError {}
      await kernel.settle { kernel.leaks == 0 && EventWatcher.sourceCount(of: kernel) == nil }
      #expect(kernel.leaks == 0, "call \(call)")
      #expect(EventWatcher.sourceCount(of: kernel) == nil, "call \(call)")
    }
  }

  @Test func theErrorNamesTheCall() throws {
    let kernel = Self.kernel()
    let events = try kernel.events()
    kernel.fail("set", .busy)
    let error = #expect(throws: DMAError.self) { try events.start { _ in } }
    #expect(error?.operation == "VFIO_DEVICE_SET_IRQS")
    #expect(error?.code == .busy)
    #expect(EventWatcher.sourceCount(of: kernel) == nil)
  }

  @Test func aClosedDeviceIsNotWatched() throws {
    let kernel = Self.kernel()
    let events = try kernel.events()
    events.close()
    let error = #expect(throws: DMAError.self) { try events.start { _ in } }
    #expect(error?.code == .closed)
    #expect(kernel.with { $0.indexes[VFIOPCI.error]!.events.isEmpty })
  }

  // MARK: Streams

  @Test func everyStreamGetsEveryEvent() async throws {
    let kernel = Self.kernel()
    let events = try kernel.events()
    var first = events.stream.makeAsyncIterator(), second = events.stream.makeAsyncIterator()
    try events.start { _ in }
    kernel.fire(VFIOPCI.error)
    #expect(await first.next() == .error)
    #expect(await second.next() == .error)
    events.close()
    #expect(await first.next() == nil)
    #expect(await second.next() == nil)
    var late = events.stream.makeAsyncIterator()
    #expect(await late.next() == nil)
  }

  @Test func aStreamThatIsDroppedIsForgotten() async throws {
    let kernel = Self.kernel()
    let events = try kernel.events()
    try events.start { _ in }
    let stream = events.stream
    let task = Task {
      var count = 0
      for await _ in stream { count += 1 }
      return count
    }
    task.cancel()
    #expect(await task.value == 0)
    kernel.fire(VFIOPCI.error)
    events.close()
  }

  // MARK: Threads

  @Test func devicesComeAndGoOnManyThreads() async throws {
    let kernel = Self.kernel()
    let failures = await inThreads(8) { _ in
      for _ in 0..<50 {
        let events = try kernel.events()
        try events.start { _ in }
        kernel.fire(VFIOPCI.error)
        events.close()
      }
    }
    #expect(failures.isEmpty)
    await kernel.settle { kernel.leaks == 0 && EventWatcher.sourceCount(of: kernel) == nil }
    #expect(kernel.leaks == 0)
    #expect(EventWatcher.sourceCount(of: kernel) == nil)
  }
}

extension TestKernel {
  /// The events of a device with the indexes that the test gave it.
  func events() throws -> DeviceEvents {
    let infos = with { $0.indexes.mapValues(\.info) }
    return DeviceEvents(try handle(), error: infos[VFIOPCI.error], request: infos[VFIOPCI.request])
  }

  /// Whether an index has no event that waits to be taken.
  func isTaken(_ index: UInt32) -> Bool {
    guard let event = with({ $0.indexes[index]?.events.first }) else { return true }
    return (try? waitReadable([event], timeout: .zero)) == .some(nil)
  }
}
