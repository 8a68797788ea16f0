import CIOMMU
import IOMMU
import Synchronization
import Testing

@Suite("Interrupt")
struct InterruptTests {
  static func kernel(_ indexes: [UInt32: TestKernel.Index]) -> TestKernel {
    TestKernel { $0.indexes = indexes }
  }
  /// A device with 8 resizable MSI-X vectors.
  static func messages() -> TestKernel { kernel([VFIOPCI.msix: .init(count: 8)]) }
  static func line() -> TestKernel { kernel([VFIOPCI.intx: .line]) }

  // MARK: Waiting

  @Test func anInterruptThatCameIsTakenAtOnce() throws {
    let kernel = Self.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    kernel.fire(VFIOPCI.msix)
    kernel.fire(VFIOPCI.msix)
    #expect(try irq.wait(timeout: .seconds(60)) == 2)
    #expect(!kernel.calls.contains("wait"))
    #expect(try irq.tryTake() == nil)
  }

  @Test func oneThatComesEndsTheWait() throws {
    let kernel = Self.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(3)
    inThread {
      kernel.sleep(.milliseconds(2))
      kernel.fire(VFIOPCI.msix, 3)
    }
    #expect(try irq.wait(timeout: .seconds(60)) == 1)
  }

  @Test func theTimeEndsTheWait() throws {
    let kernel = Self.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    let error = #expect(throws: DMAError.self) { try irq.wait(timeout: .milliseconds(5)) }
    #expect(error?.code == .timedOut)
    #expect(error?.operation == "wait for MSI-X 0")
    #expect(error?.device == "0000:03:00.0")
    #expect(error?.detail?.contains("0.005 seconds") == true)
  }

  @Test(arguments: [Duration.zero, .seconds(-1)])
  func withoutTimeItOnlyLooks(_ timeout: Duration) throws {
    let kernel = Self.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    #expect(throws: DMAError.self) { try irq.wait(timeout: timeout) }
    #expect(!kernel.calls.contains("wait"))
    kernel.fire(VFIOPCI.msix)
    #expect(try irq.wait(timeout: timeout) == 1)
  }

  @Test func aTimeThatLeavesTheClockIsForEver() throws {
    let kernel = Self.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    inThread {
      kernel.sleep(.milliseconds(2))
      kernel.fire(VFIOPCI.msix)
    }
    #expect(try irq.wait(timeout: .seconds(Int64.max)) == 1)
  }

  @Test func signalsNeitherEndNorLengthenTheWait() throws {
    let kernel = Self.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    kernel.with { $0.clock = 0 }
    kernel.fail("wait", .interrupted, .interrupted)
    #expect(throws: DMAError.self) { try irq.wait(timeout: .milliseconds(1)) }
    #expect(kernel.calls.filter { $0 == "wait" }.count == 3)
    #expect(kernel.with { $0.clock } == 1_000_000)
  }

  @Test func aSignalThatComesWithTheInterruptLosesNothing() throws {
    let kernel = Self.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    kernel.fail("wait", .interrupted)
    kernel.with { state in
      state.hook = { if $0 == "wait" { kernel.fire(VFIOPCI.msix) } }
    }
    #expect(try irq.wait(timeout: .seconds(60)) == 1)
  }

  @Test func aWaitThatTheKernelRefusesIsTold() throws {
    let kernel = Self.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    kernel.fail("wait", .noMemory)
    let error = #expect(throws: DMAError.self) { try irq.wait(timeout: .seconds(1)) }
    #expect(error?.operation == "ppoll")
    kernel.fail("takeEvent", .badDescriptor)
    let other = #expect(throws: DMAError.self) { try irq.tryTake() }
    #expect(other?.errno == .badDescriptor)
  }

  @Test func aWaitIsNoBusyLoop() throws {
    let kernel = Self.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    kernel.clearCalls()
    #expect(throws: DMAError.self) { try irq.wait(timeout: .milliseconds(20)) }
    #expect(kernel.calls.count <= 4)
  }

  // MARK: The descriptor

  @Test func theDescriptorIsReadableWhileInterruptsWait() throws {
    let kernel = Self.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    #expect(try kernel.waitReadable([irq.descriptor], timeout: .zero) == nil)
    kernel.fire(VFIOPCI.msix)
    #expect(try kernel.waitReadable([irq.descriptor], timeout: .zero) == 0)
    _ = try irq.tryTake()
    #expect(try kernel.waitReadable([irq.descriptor], timeout: .zero) == nil)
  }

  // MARK: Lines

  @Test func aLineIsUnmaskedBeforeTheNextWait() throws {
    let kernel = Self.line()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    kernel.fire(VFIOPCI.intx)
    #expect(try irq.wait(timeout: .seconds(1)) == 1)
    #expect(!kernel.calls.contains("unmask 0 0+1"), "the driver has not looked at the device yet")
    kernel.deassert()
    #expect(throws: DMAError.self) { try irq.wait(timeout: .zero) }
    #expect(kernel.calls.filter { $0 == "unmask 0 0+1" }.count == 1)
    #expect(throws: DMAError.self) { try irq.wait(timeout: .zero) }
    #expect(kernel.calls.filter { $0 == "unmask 0 0+1" }.count == 1, "once an event")
    kernel.fire(VFIOPCI.intx)
    #expect(try irq.tryTake() == 1)
  }

  @Test func aLineThatIsStillAssertedComesAgain() throws {
    let kernel = Self.line()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    kernel.fire(VFIOPCI.intx)
    for _ in 0..<3 { #expect(try irq.wait(timeout: .seconds(1)) == 1) }
  }

  @Test func rearmingIsForPollLoops() throws {
    let kernel = Self.line()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    try irq.rearm()
    #expect(!kernel.calls.contains("unmask 0 0+1"))
    kernel.fire(VFIOPCI.intx)
    _ = try irq.tryTake()
    kernel.deassert()
    try irq.rearm()
    kernel.fire(VFIOPCI.intx)
    #expect(try kernel.waitReadable([irq.descriptor], timeout: .zero) == 0)
  }

  @Test func anUnmaskThatFailsIsTriedAgain() throws {
    let kernel = Self.line()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    kernel.fire(VFIOPCI.intx)
    _ = try irq.tryTake()
    kernel.fail("unmask", .inputOutput)
    let error = #expect(throws: DMAError.self) { try irq.wait(timeout: .seconds(1)) }
    #expect(error?.operation == "VFIO_DEVICE_SET_IRQS")
    #expect(try irq.wait(timeout: .seconds(1)) == 1, "it is unmasked now, and still asserted")
  }

  @Test func messagesAreNeverUnmasked() throws {
    let kernel = Self.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    kernel.fire(VFIOPCI.msix)
    _ = try irq.tryTake()
    _ = try irq.tryTake()
    try irq.rearm()
    #expect(!kernel.calls.contains { $0.hasPrefix("unmask") })
  }

  // MARK: Loopback

  /// As the kernel's own test of a device does: nothing before, one after.
  @Test(arguments: [VFIOPCI.intx, VFIOPCI.msi, VFIOPCI.msix])
  func aTriggerComesBack(_ index: UInt32) throws {
    let kernel = Self.kernel([index: index == VFIOPCI.intx ? .line : .fixed(2)])
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    #expect(try irq.tryTake() == nil)
    try irq.trigger()
    #expect(try irq.tryTake() == 1)
    #expect(try irq.tryTake() == nil)
    #expect(kernel.calls.contains("trigger \(index) 0+1"))
  }

  @Test func aTriggerThatFailsIsTold() throws {
    let kernel = Self.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    kernel.fail("trigger", .noDevice)
    let error = #expect(throws: DMAError.self) { try irq.trigger() }
    #expect(error?.code == .gone)
  }

  // MARK: Closing

  @Test func closingWakesEveryWaiter() async throws {
    let kernel = Self.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    let codes = Shared<[DMAError.Code?]>([])
    for _ in 0..<3 {
      inThread {
        do throws(DMAError) {
          try irq.wait(timeout: .seconds(600))
          codes.change { $0.append(nil) }
        } catch {
          codes.change { $0.append(error.code) }
        }
      }
    }
    await kernel.reach("wait", 3)
    vectors.close()
    await kernel.settle { codes.value.count == 3 }
    #expect(codes.value == [.closed, .closed, .closed])
    #expect(irq.isClosed)
  }

  @Test func aClosedInterruptThrowsAndStaysReadable() throws {
    let kernel = Self.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    kernel.fire(VFIOPCI.msix)
    vectors.close()
    for call in [
      { _ = try irq.tryTake() }, { _ = try irq.wait(timeout: .seconds(60)) }, { try irq.trigger() },
    ] as [() throws -> Void] {
      let error = #expect(throws: DMAError.self) { try call() }
      #expect(error?.code == .closed)
      #expect(try kernel.waitReadable([irq.descriptor], timeout: .zero) == 0)
    }
  }

  /// A thread that takes the signal of closing while another sleeps must not leave it asleep.
  @Test func theSignalOfClosingIsForAll() throws {
    let kernel = Self.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    // The device is closed between the look at the flag and the take.
    kernel.with { state in
      state.hook = { call in
        guard call == "takeEvent" else { return }
        kernel.with { $0.hook = nil }
        vectors.close()
      }
    }
    let error = #expect(throws: DMAError.self) { try irq.tryTake() }
    #expect(error?.code == .closed)
    #expect(try kernel.waitReadable([irq.descriptor], timeout: .zero) == 0)
  }

  @Test func theDescriptorLivesAsLongAsTheInterrupt() throws {
    let kernel = Self.messages()
    var vectors: InterruptVectors? = try kernel.vectors()
    var irq = try vectors?.interrupt(0)
    vectors = nil
    #expect(irq?.isClosed == true, "a device that is dropped is closed")
    #expect(kernel.with { $0.openEvents.count } == 2, "its own, and its device's turn")
    irq = nil
    #expect(kernel.leaks == 0)
  }
}

extension TestKernel {
  /// The vectors of a device with the indexes that the test gave it.
  func vectors() throws -> InterruptVectors {
    let infos = with { $0.indexes.mapValues(\.info) }
    return try InterruptVectors(
      handle(), intx: infos[VFIOPCI.intx], msi: infos[VFIOPCI.msi], msix: infos[VFIOPCI.msix])
  }

  /// The device's line falls.
  func deassert() { with { $0.indexes[VFIOPCI.intx]?.isAsserted = false } }
}
