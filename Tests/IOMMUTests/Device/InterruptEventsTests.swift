import IOMMU
import Testing

@Suite("Interrupts as a sequence", .timeLimit(.minutes(1)))
struct InterruptEventsTests {
  @Test func eventsComeAsElements() async throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    var iterator = irq.events.makeAsyncIterator()
    for round in 1...5 {
      for _ in 0..<round { kernel.fire(VFIOPCI.msix) }
      #expect(try await iterator.next() == UInt64(round))
    }
  }

  @Test func anElementIsWaitedFor() async throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    let task = Task {
      var sum: UInt64 = 0
      for try await count in irq.events {
        sum += count
        if sum >= 3 { break }
      }
      return sum
    }
    for _ in 0..<3 {
      await kernel.reach("wait")
      kernel.clearCalls()
      kernel.fire(VFIOPCI.msix)
    }
    #expect(try await task.value == 3)
  }

  @Test func itEndsWhenTheDeviceIsClosed() async throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    let task = Task {
      var count = 0
      for try await _ in irq.events { count += 1 }
      return count
    }
    await kernel.reach("wait")
    vectors.close()
    #expect(try await task.value == 0)
    var late = irq.events.makeAsyncIterator()
    #expect(try await late.next() == nil)
    #expect(try await late.next() == nil)
  }

  @Test func cancellationEndsIt() async throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    let task = Task {
      for try await _ in irq.events { Issue.record("nothing came") }
      return Task.isCancelled
    }
    await kernel.reach("wait")
    task.cancel()
    #expect(try await task.value)
    kernel.fire(VFIOPCI.msix)
    #expect(try irq.wait(timeout: .seconds(10)) == 1, "what comes later is for the next")
  }

  @Test func aTaskThatIsCancelledBeforeGetsNothing() async throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    kernel.fire(VFIOPCI.msix)
    let task = Task {
      while !Task.isCancelled { await Task.yield() }
      var iterator = irq.events.makeAsyncIterator()
      return try await iterator.next()
    }
    task.cancel()
    #expect(try await task.value == nil)
    #expect(try irq.tryTake() == 1, "the event is not lost")
  }

  @Test func aWaitThatTheKernelRefusesIsThrown() async throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    kernel.fail("wait", .interrupted, .noMemory)
    var iterator = irq.events.makeAsyncIterator()
    let error = await #expect(throws: DMAError.self) { try await iterator.next() }
    #expect(error?.errno == .noMemory)
    #expect(try await iterator.next() == nil, "it has ended")
  }

  @Test func aReadThatTheKernelRefusesIsThrown() async throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    kernel.fail("takeEvent", .badDescriptor)
    var iterator = irq.events.makeAsyncIterator()
    let error = await #expect(throws: DMAError.self) { try await iterator.next() }
    #expect(error?.errno == .badDescriptor)
  }

  @Test func withoutADescriptorItIsThrown() async throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    kernel.fail("createEvent", .tooManyDescriptors)
    var iterator = irq.events.makeAsyncIterator()
    let error = await #expect(throws: DMAError.self) { try await iterator.next() }
    #expect(error?.errno == .tooManyDescriptors)
    #expect(try await iterator.next() == nil)
  }

  @Test func aLineStaysMaskedWhileAnElementIsWorkedOn() async throws {
    let kernel = InterruptTests.line()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    var iterator = irq.events.makeAsyncIterator()
    kernel.fire(VFIOPCI.intx)
    #expect(try await iterator.next() == 1)
    try await Task.sleep(for: .milliseconds(5))
    #expect(!kernel.calls.contains { $0.hasPrefix("unmask") })
    #expect(try await iterator.next() == 1, "it is unmasked then, and still asserted")
    kernel.deassert()
  }

  @Test func noThreadStaysBehind() async throws {
    let kernel = InterruptTests.messages()
    do {
      let vectors = try kernel.vectors()
      let irq = try vectors.interrupt(0)
      for _ in 0..<10 {
        var iterator = irq.events.makeAsyncIterator()
        kernel.fire(VFIOPCI.msix)
        #expect(try await iterator.next() == 1)
      }
      _ = irq.events.makeAsyncIterator()
    }
    // The threads let go of their descriptors as they end.
    await kernel.settle { kernel.leaks == 0 }
    #expect(kernel.leaks == 0)
  }

  @Test func severalIteratorsShareTheEvents() async throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    let sum = Shared<UInt64>(0)
    await withTaskGroup(of: Void.self) { group in
      for _ in 0..<3 {
        group.addTask {
          do {
            for try await count in irq.events { sum.change { $0 += count } }
          } catch { Issue.record("\(error)") }
        }
      }
      for _ in 0..<100 {
        kernel.fire(VFIOPCI.msix)
        await Task.yield()
      }
      await kernel.settle { sum.value >= 100 }
      vectors.close()
    }
    #expect(sum.value == 100)
  }

  /// Cancellation and interrupts race: each interrupt reaches somebody.
  @Test func nothingIsLostWhenATaskIsCancelled() async throws {
    let kernel = InterruptTests.messages()
    let vectors = try kernel.vectors()
    let irq = try vectors.interrupt(0)
    for _ in 0..<200 {
      let task = Task {
        var iterator = irq.events.makeAsyncIterator()
        return try await iterator.next()
      }
      kernel.fire(VFIOPCI.msix)
      task.cancel()
      if try await task.value == nil { #expect(try irq.wait(timeout: .seconds(10)) >= 1) }
    }
    #expect(try irq.tryTake() == nil)
  }
}

extension TestKernel {
  /// Yields until a call was made so often in all.
  func reach(_ call: String, _ count: Int = 1) async {
    await settle { self.calls.count { $0 == call } >= count }
  }

  /// Yields until something is so, at most ten seconds.
  func settle(_ condition: () -> Bool) async {
    for _ in 0..<10_000 where !condition() { try? await Task.sleep(for: .milliseconds(1)) }
  }
}
