import CIOMMU
import Glibc
import Testing

@Suite("Waiting")
struct WaitTests {
  @Test func eventfd() throws {
    let event = try Descriptor(ci_eventfd(0))
    var count: UInt64 = 0
    #expect(unsafe ci_eventfd_read(event.number, &count) == -EAGAIN)
    #expect(ci_eventfd_write(event.number, 3) == 0)
    #expect(ci_eventfd_write(event.number, 4) == 0)
    #expect(unsafe ci_eventfd_read(event.number, &count) == 0 && count == 7)
  }

  @Test("A poll that nothing ends takes at least its time", arguments: [0, 1, 3_000_000] as [Int64])
  func timeout(_ timeout: Int64) throws {
    let event = try Descriptor(ci_eventfd(0))
    var entry = ci_pollfd(fd: event.number, events: Int16(CI_POLLIN), revents: 0)
    let start = ci_monotonic_ns()
    #expect(unsafe ci_poll(&entry, 1, timeout) == 0)
    #expect(ci_monotonic_ns() - start >= timeout)
    #expect(entry.revents == 0)
  }

  @Test("A signalled eventfd ends it", arguments: [-1, 0, .max] as [Int64])
  func ready(_ timeout: Int64) throws {
    let event = try Descriptor(ci_eventfd(1))
    var entries = [
      ci_pollfd(fd: -1, events: Int16(CI_POLLIN), revents: 0),
      ci_pollfd(fd: event.number, events: Int16(CI_POLLIN), revents: 0),
    ]
    #expect(unsafe ci_poll(&entries, 2, timeout) == 1)
    #expect(entries[1].revents == Int16(CI_POLLIN))
  }

  /// A tick of the kernel behind, of which the slowest has 10 ms, and never ahead.
  @Test func coarseClock() {
    for _ in 0..<1000 {
      let before = ci_monotonic_ns(), coarse = ci_coarse_monotonic_ns(), after = ci_monotonic_ns()
      #expect(coarse > before - 20_000_000 && coarse <= after)
    }
  }

  @Test func sleep() {
    let start = ci_monotonic_ns()
    #expect(ci_sleep_ns(2_000_000) == 0)
    #expect(ci_monotonic_ns() - start >= 2_000_000)
    #expect(ci_sleep_ns(0) == 0 && ci_sleep_ns(-5) == 0)
  }

  @Test("A time too far away is the end of time, not the past")
  func deadline() {
    #expect(ci_deadline_ns(.max) == .max)
    #expect(ci_deadline_ns(5) > 5)
  }

  @Test func futex() {
    let word = UnsafeMutablePointer<UInt32>.allocate(capacity: 1)
    unsafe word.initialize(to: 1)
    #expect(unsafe ci_futex_wait(word, 0, -1) == -EAGAIN)
    let start = ci_monotonic_ns()
    #expect(unsafe ci_futex_wait(word, 1, 2_000_000) == -ETIMEDOUT)
    #expect(ci_monotonic_ns() - start >= 2_000_000)
    #expect(unsafe ci_futex_wake(word, 1) == 0)

    let address = UInt(bitPattern: word)
    let sleeper = Worker {
      let word = unsafe UnsafePointer<UInt32>(bitPattern: address)!
      while unsafe ci_mmio_load32(word) == 1 { _ = unsafe ci_futex_wait(word, 1, -1) }
    }
    _ = ci_sleep_ns(2_000_000)
    unsafe ci_mmio_store32(word, 2)
    #expect(unsafe ci_futex_wake(word, .max) >= 0)
    sleeper.join()
    unsafe word.deallocate()
  }
}

/// Signals that arrive in the middle of a call. The handler is installed without SA_RESTART, so that the kernel
/// really answers EINTR.
@Suite("Signals", .serialized)
struct SignalTests {
  init() {
    var action = sigaction()
    unsafe action.__sigaction_handler.sa_handler = { _ in }
    unsafe sigaction(SIGUSR1, &action, nil)
  }

  @Test("A poll keeps its time, however often it is interrupted")
  func poll() throws {
    let event = try Descriptor(ci_eventfd(0))
    let fd = event.number
    let waiter = Worker {
      var entry = ci_pollfd(fd: fd, events: Int16(CI_POLLIN), revents: 0)
      let start = ci_monotonic_ns()
      #expect(unsafe ci_poll(&entry, 1, 30_000_000) == 0)
      #expect(ci_monotonic_ns() - start >= 30_000_000)
    }
    // With a period shorter than the timeout: one that started again each time would never end.
    waiter.interruptUntilDone(period: 1_000_000)
    waiter.join()
  }

  @Test func read() throws {
    var ends: [Int32] = [0, 0]
    #expect(unsafe pipe(&ends) == 0)
    let source = try Descriptor(ends[0])
    let sink = try Descriptor(ends[1])
    let fd = source.number
    let reader = Worker {
      var byte: UInt8 = 0
      #expect(unsafe ci_read(fd, &byte, 1) == 1 && byte == 42)
    }
    reader.interrupt(times: 20, period: 500_000)
    var byte: UInt8 = 42
    #expect(unsafe ci_write(sink.number, &byte, 1) == 1)
    reader.join()
  }

  @Test func sleepAndFutex() {
    let sleeper = Worker {
      let start = ci_monotonic_ns()
      #expect(ci_sleep_ns(15_000_000) == 0)
      #expect(ci_monotonic_ns() - start >= 15_000_000)
      var word: UInt32 = 0
      #expect(unsafe ci_futex_wait(&word, 0, 15_000_000) == -ETIMEDOUT)
      #expect(ci_monotonic_ns() - start >= 30_000_000)
    }
    sleeper.interruptUntilDone(period: 1_000_000)
    sleeper.join()
  }

  @Test func receive() throws {
    var near: Int32 = 0
    var far: Int32 = 0
    #expect(unsafe ci_socketpair(&near, &far) == 0)
    let here = try Descriptor(near)
    let there = try Descriptor(far)
    let fd = there.number
    let receiver = Worker {
      var byte: UInt8 = 0
      var count: UInt32 = 0
      #expect(unsafe ci_receive_descriptors(fd, &byte, 1, nil, &count) == 1 && byte == 9)
    }
    receiver.interrupt(times: 10, period: 500_000)
    var byte: UInt8 = 9
    #expect(unsafe ci_send_descriptors(here.number, &byte, 1, nil, 0) == 1)
    receiver.join()
  }
}
