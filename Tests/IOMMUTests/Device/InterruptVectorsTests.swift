import IOMMU
import Synchronization
import Testing

@Suite("Interrupt vectors")
struct InterruptVectorsTests {
  private static let all: [UInt32: TestKernel.Index] = [
    VFIOPCI.intx: .line, VFIOPCI.msi: .fixed(4), VFIOPCI.msix: .init(count: 8),
  ]

  private func sets(_ kernel: TestKernel) -> [String] {
    kernel.calls.filter { $0.hasPrefix("set") || $0.hasPrefix("trigger") }
  }

  // MARK: Which kind

  @Test func messagesWithATableAreBest() throws {
    let vectors = try InterruptTests.kernel(Self.all).vectors()
    #expect(vectors.kind == nil)
    #expect(try vectors.interrupt(0).kind == .msix)
    #expect(vectors.kind == .msix)
  }

  @Test func thenMessagesThenTheLine() throws {
    var indexes = Self.all
    indexes[VFIOPCI.msix] = .init(count: 0)
    #expect(try InterruptTests.kernel(indexes).vectors().interrupt(0).kind == .msi)
    indexes[VFIOPCI.msi] = nil
    #expect(try InterruptTests.kernel(indexes).vectors().interrupt(0).kind == .intx)
  }

  @Test func aKindWithoutEventsIsNotThere() throws {
    var indexes = Self.all
    indexes[VFIOPCI.msix] = .init(count: 8, flags: 0)
    let vectors = try InterruptTests.kernel(indexes).vectors()
    #expect(vectors.count(.msix) == 0)
    #expect(vectors.count(.msi) == 4)
    #expect(try vectors.interrupt(0).kind == .msi)
  }

  @Test(arguments: Interrupt.Kind.allCases)
  func theKindThatIsAskedForIsUsed(_ kind: Interrupt.Kind) throws {
    let vectors = try InterruptTests.kernel(Self.all).vectors()
    #expect(try vectors.interrupt(0, kind).kind == kind)
    #expect(try vectors.interrupt(0).kind == kind, "and stays")
  }

  @Test func twoKindsAtATimeAreRefused() throws {
    let vectors = try InterruptTests.kernel(Self.all).vectors()
    _ = try vectors.interrupt(0, .msi)
    let error = #expect(throws: DMAError.self) { try vectors.interrupt(0, .msix) }
    #expect(error?.code == .invalidArgument)
    #expect(error?.detail?.hasPrefix("MSI is in use") == true)
    #expect(error?.remedy == "Ask for the first interrupt as MSI-X")
  }

  @Test func aDeviceWithoutInterruptsIsTold() throws {
    let kernel = InterruptTests.kernel([:])
    let error = #expect(throws: DMAError.self) { try kernel.vectors().interrupt(0) }
    #expect(error?.code == .noSuchResource)
    #expect(kernel.leaks == 0)
  }

  @Test(arguments: [-1, 8, 100, Int.max])
  func aVectorBeyondTheCountIsTold(_ vector: Int) throws {
    let vectors = try InterruptTests.kernel(Self.all).vectors()
    let error = #expect(throws: DMAError.self) { try vectors.interrupt(vector) }
    #expect(error?.code == .noSuchResource)
    #expect(error?.detail == "No vector \(vector): the device has 8 of MSI-X")
    #expect(vectors.kind == nil)
  }

  @Test func aKindThatTheDeviceLacksIsTold() throws {
    let vectors = try InterruptTests.messages().vectors()
    let error = #expect(throws: DMAError.self) { try vectors.interrupt(0, .msi) }
    #expect(error?.detail == "No vector 0: the device has 0 of MSI")
  }

  // MARK: Setting up

  @Test func nothingIsSetUpBeforeItIsAskedFor() throws {
    let kernel = InterruptTests.messages()
    _ = try kernel.vectors()
    #expect(sets(kernel).isEmpty)
  }

  @Test func aVectorIsSetUpOnceAndIsOneObject() throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(2)
    #expect(try vectors.interrupt(2) === irq)
    #expect(try vectors.interrupt(2, .msix) === irq)
    #expect(sets(kernel) == ["set 2 0+3"])
  }

  @Test func moreVectorsAreAddedOneByOneWhereThatGoes() throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    let irqs = try [0, 5, 3].map { try vectors.interrupt($0) }
    #expect(sets(kernel) == ["set 2 0+1", "set 2 5+1", "set 2 3+1"])
    for (irq, vector) in zip(irqs, [0, 5, 3]) {
      kernel.fire(VFIOPCI.msix, vector)
      #expect(try irq.tryTake() == 1)
    }
  }

  @Test func eachVectorHasItsOwnEvent() throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    let irqs = try (0..<8).map { try vectors.interrupt($0) }
    #expect(Set(irqs.map(\.descriptor)).count == 8)
    for vector in 0..<8 {
      kernel.fire(VFIOPCI.msix, vector)
      #expect(try irqs.map { try $0.tryTake() } == (0..<8).map { $0 == vector ? 1 : nil })
    }
  }

  // MARK: Indexes that cannot be resized

  @Test func suchAnIndexIsSwitchedOnWithVectorsToSpare() throws {
    let kernel = InterruptTests.kernel([VFIOPCI.msi: .fixed(4)])
    let vectors = try kernel.vectors()
    _ = try vectors.interrupt(0)
    _ = try vectors.interrupt(3)
    #expect(sets(kernel) == ["set 1 0+4", "set 1 3+1"])
  }

  @Test func whatTheHostHasNotIsNotAskedTwice() throws {
    var index = TestKernel.Index.fixed(32)
    index.hostLimit = 2
    let kernel = InterruptTests.kernel([VFIOPCI.msi: index])
    let vectors = try kernel.vectors()
    let interrupt = try vectors.interrupt(1)
    #expect(sets(kernel) == ["set 1 0+16", "set 1 0+2"])
    kernel.fire(VFIOPCI.msi, 1)
    #expect(try interrupt.tryTake() == 1)
  }

  @Test func itGrowsByBeingSwitchedOffAndOnWithAllEvents() throws {
    let kernel = InterruptTests.kernel([VFIOPCI.msix: .fixed(64)])
    let vectors = try kernel.vectors()
    let first = try vectors.interrupt(0), second = try vectors.interrupt(15)
    kernel.clearCalls()
    let third = try vectors.interrupt(40)
    #expect(sets(kernel) == ["trigger 2 0+0", "set 2 0+41"])
    // What came meanwhile was lost, so the old ones look once.
    #expect(try first.tryTake() == 1)
    #expect(try second.tryTake() == 1)
    #expect(try third.tryTake() == nil)
    for (irq, vector) in [(first, 0), (second, 15), (third, 40)] {
      kernel.fire(VFIOPCI.msix, vector)
      #expect(try irq.tryTake() == 1)
    }
    _ = try vectors.interrupt(41)
    #expect(kernel.calls.contains("set 2 0+64"), "twice as many, at most all")
  }

  @Test func growthThatFailsKeepsWhatWas() throws {
    var index = TestKernel.Index.fixed(64)
    index.hostLimit = 16
    let kernel = InterruptTests.kernel([VFIOPCI.msix: index])
    let vectors = try kernel.vectors()
    let first = try vectors.interrupt(0)
    kernel.clearCalls()
    let error = #expect(throws: DMAError.self) { try vectors.interrupt(20) }
    #expect(error?.errno == .noSpace)
    #expect(error?.detail == "MSI-X: 21 vectors from 0 on")
    #expect(error?.remedy?.contains("no more interrupt vectors") == true)
    #expect(sets(kernel) == ["trigger 2 0+0", "set 2 0+32", "set 2 0+21", "set 2 0+16"])
    #expect(try first.tryTake() == 1)
    kernel.fire(VFIOPCI.msix)
    #expect(try first.tryTake() == 1)
    #expect(kernel.with { $0.openEvents.count } == 2, "the turn and the first")
  }

  @Test func switchingOffThatFailsKeepsWhatWas() throws {
    let kernel = InterruptTests.kernel([VFIOPCI.msix: .fixed(64)])
    let vectors = try kernel.vectors()
    let first = try vectors.interrupt(0)
    kernel.fail("trigger", .inputOutput)
    #expect(throws: DMAError.self) { try vectors.interrupt(20) }
    kernel.fire(VFIOPCI.msix)
    #expect(try first.tryTake() == 1)
  }

  @Test func whatCannotBeRestoredIsClosed() throws {
    let kernel = InterruptTests.kernel([VFIOPCI.msix: .fixed(64)])
    let vectors = try kernel.vectors()
    let first = try vectors.interrupt(0)
    kernel.fail("set", .noSpace, .noSpace, .inputOutput)
    let error = #expect(throws: DMAError.self) { try vectors.interrupt(20) }
    #expect(error?.errno == .inputOutput)
    #expect(error?.detail?.contains("could not be restored") == true)
    #expect(first.isClosed)
    #expect(vectors.kind == nil)
    let again = try vectors.interrupt(0)
    #expect(again !== first)
    kernel.fire(VFIOPCI.msix)
    #expect(try again.tryTake() == 1)
  }

  // MARK: Failures

  @Test func theFirstSetUpThatFailsLeavesNothing() throws {
    let kernel = InterruptTests.kernel(Self.all)
    let vectors = try kernel.vectors()
    for errno in [Errno.noSpace, .noMemory, .inputOutput, .invalidArgument] {
      kernel.fail("set", errno)
      let error = #expect(throws: DMAError.self) { try vectors.interrupt(0) }
      #expect(error?.errno == errno)
      #expect((error?.remedy != nil) == (errno == .noSpace || errno == .noMemory))
      #expect(vectors.kind == nil)
      #expect(kernel.with { $0.openEvents.count } == 1)
    }
    #expect(try vectors.interrupt(0, .msi).kind == .msi, "another kind may be had")
  }

  @Test func aDescriptorThatIsNotToBeHadIsTold() throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    kernel.fail("createEvent", .tooManyDescriptors)
    let error = #expect(throws: DMAError.self) { try vectors.interrupt(0) }
    #expect(error?.operation == "eventfd")
    #expect(error?.remedy == "Raise RLIMIT_NOFILE")
    #expect(sets(kernel).isEmpty)
  }

  @Test func aSignalDuringTheSetUpRepeatsIt() throws {
    let kernel = InterruptTests.messages()
    kernel.fail("set", .interrupted)
    #expect(try kernel.vectors().interrupt(0).kind == .msix)
  }

  /// Each call fails once; afterwards nothing is left open.
  @Test func anyCallThatFailsLeavesNothing() throws {
    var call = 0
    var calls = Int.max
    while call < calls {
      call += 1
      let kernel = InterruptTests.kernel([VFIOPCI.msix: .fixed(64)])
      kernel.with { [call] in $0.failing = (call, .inputOutput) }
      do {
        let vectors = try kernel.vectors()
        _ = try vectors.interrupt(0)
        _ = try vectors.interrupt(20)
        vectors.close()
        calls = kernel.with { $0.callCount }
      } catch is DMAError {}
      #expect(kernel.leaks == 0, "call \(call)")
      #expect(kernel.with { $0.indexes[VFIOPCI.msix]!.events.isEmpty } || call >= calls, "call \(call)")
    }
    #expect(call > 8)
  }

  // MARK: Closing

  @Test func closingSwitchesTheIndexOffOnce() throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    _ = try vectors.interrupt(0)
    vectors.close()
    vectors.close()
    #expect(sets(kernel) == ["set 2 0+1", "trigger 2 0+0"])
    let error = #expect(throws: DMAError.self) { try vectors.interrupt(0) }
    #expect(error?.code == .closed)
  }

  @Test func closingWithoutInterruptsAsksNothing() throws {
    let kernel = InterruptTests.messages()
    try kernel.vectors().close()
    #expect(sets(kernel).isEmpty)
  }

  @Test func closingDuringASetUpUndoesIt() throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    kernel.with { state in state.hook = { if $0 == "set" { vectors.close() } } }
    let error = #expect(throws: DMAError.self) { try vectors.interrupt(0) }
    #expect(error?.code == .closed)
    #expect(kernel.with { $0.indexes[VFIOPCI.msix]!.events.isEmpty })
  }

  @Test func threadsThatAskTogetherGetTheSame() async throws {
    let kernel = InterruptTests.kernel([VFIOPCI.msix: .fixed(64)])
    let vectors = try kernel.vectors()
    // Kept: the device holds its interrupts weakly, and one that is gone gives its descriptor to the next.
    let found = Shared<[Int: [Interrupt]]>([:])
    let failures = await inThreads(4) { thread in
      for round in 0..<32 {
        let vector = (round * 7 + thread * 8) % 32
        let interrupt = try vectors.interrupt(vector)
        found.change { $0[vector, default: []].append(interrupt) }
      }
    }
    #expect(failures.isEmpty)
    let interrupts = found.value
    #expect(interrupts.count == 32)
    for (vector, same) in interrupts {
      #expect(same.allSatisfy { $0 === same[0] })
      #expect(kernel.with { $0.indexes[VFIOPCI.msix]!.events[vector] } == same[0].descriptor)
    }
  }
}
