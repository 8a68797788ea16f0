import IOMMU
import Testing

@Suite("Device handle", .timeLimit(.minutes(1)))
struct DeviceHandleTests {
  @Test func aCallGetsTheDescriptor() throws {
    let handle = try TestKernel().handle()
    #expect(try handle.use("call") { $0 } == TestKernel.device)
  }

  @Test func itDoesNotOwnTheDescriptor() throws {
    let kernel = TestKernel()
    do {
      let handle = try kernel.handle()
      #expect(handle.close())
    }
    #expect(kernel.leaks == 0, "closing the device's own would have stopped the test")
  }

  @Test func anErrorNamesOperationErrnoAndDevice() throws {
    let handle = try TestKernel().handle("0001:02:03.4")
    let error = #expect(throws: DMAError.self) {
      try handle.use("VFIO_DEVICE_RESET") { _ throws(Errno) in throw .noDevice }
    }
    #expect(
      error
        == DMAError(
          .gone, "VFIO_DEVICE_RESET", errno: .noDevice, device: "0001:02:03.4", remedy: "Close the device"))
  }

  @Test func aTurnThatIsNotToBeHadIsTold() throws {
    for (count, call) in [(0, "createEvent"), (1, "signalEvent")] {
      let kernel = TestKernel()
      kernel.fail(call, .tooManyDescriptors, .tooManyDescriptors, .tooManyDescriptors)
      let error = #expect(throws: DMAError.self) { try kernel.handle() }
      #expect(error?.operation == "eventfd")
      #expect(kernel.leaks == 0, "\(count)")
    }
  }

  @Test func afterClosingNothingReachesTheKernel() throws {
    let handle = try TestKernel().handle()
    #expect(!handle.isClosed)
    #expect(handle.close())
    #expect(handle.close())
    #expect(handle.isClosed)
    let error = #expect(throws: DMAError.self) {
      try handle.use("call") { _ in Issue.record("it was called") }
    }
    #expect(error?.code == .closed)
  }

  @Test func closingWaitsForCallsUnderWay() async throws {
    let kernel = TestKernel()
    let handle = try kernel.handle()
    let isDone = Shared(false)
    inThread {
      try? handle.use("call") { _ in
        kernel.sleep(.milliseconds(20))
        isDone.change { $0 = true }
      }
    }
    await kernel.settle { kernel.with { !$0.slept.isEmpty } }
    #expect(handle.close())
    #expect(isDone.value)
  }

  @Test func closingDoesNotWaitForEver() throws {
    let kernel = TestKernel { $0.clock = 0 }
    let handle = try kernel.handle()
    let drained = try handle.use("call") { _ in handle.close() }
    #expect(!drained)
    #expect(kernel.with { $0.slept.reduce(.zero, +) } == .seconds(1))
  }

  @Test func oneThreadAtATimeHasTheTurn() async throws {
    let handle = try TestKernel().handle()
    let inside = Shared(0), most = Shared(0)
    let failures = await inThreads(4) { _ in
      for _ in 0..<50 {
        try handle.exclusively("turn") { () throws(DMAError) in
          inside.change { $0 += 1 }
          most.change { $0 = max($0, inside.value) }
          inside.change { $0 -= 1 }
        }
      }
    }
    #expect(failures.isEmpty)
    #expect(most.value == 1)
  }

  @Test func anErrorPassesTheTurn() throws {
    let handle = try TestKernel().handle()
    for _ in 0..<3 {
      let error = #expect(throws: DMAError.self) {
        try handle.exclusively("turn") { () throws(DMAError) in throw DMAError(.gone, "inside") }
      }
      #expect(error?.operation == "inside")
    }
  }

  @Test func aTurnThatTheKernelRefusesIsTold() throws {
    let kernel = TestKernel()
    let handle = try kernel.handle()
    kernel.fail("takeEvent", .badDescriptor)
    let error = #expect(throws: DMAError.self) { try handle.exclusively("turn") {} }
    #expect(error?.errno == .badDescriptor)
    #expect(error?.operation == "turn")
  }
}
