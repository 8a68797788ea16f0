import CIOMMU
import Glibc
import IOMMU
import Synchronization

/// A kernel that a test scripts: one VFIO device with regions and interrupts by tables, real event descriptors and real
/// memory, every call in a list, any call failed with any errno.
final class TestKernel: Kernel {
  let name = "test"
  let isSimulated = true
  let state: Mutex<State>

  /// The device's descriptor; not a real one, so nothing here may close it.
  static let device: Int32 = 1_000_000

  struct State: Sendable {
    // What the device is
    var regions: [Region] = []
    var indexes: [UInt32: Index] = [:]
    var resets: [Errno?] = []
    var log: [KernelLogLine] = []

    // What was asked
    var calls: [String] = []
    var accesses: [Access] = []
    var openEvents: Set<Int32> = []
    var mappings: [UInt: Int] = [:]
    var covered: [UInt] = []
    var slept: [Duration] = []

    // What goes wrong
    var failures: [String: [Errno?]] = [:]
    var failing: (call: Int, errno: Errno)?
    var callCount = 0
    var shortAccess = false
    /// Nil: the machine's clock.
    var clock: UInt64?
    /// Called with each call's name before it does anything, outside the lock.
    var hook: (@Sendable (String) -> Void)?
  }

  struct Access: Equatable, Sendable {
    var isWrite: Bool
    var position: UInt64
    var width: Int
  }

  init(_ change: (inout State) -> Void = { _ in }) {
    var first = State()
    change(&first)
    state = Mutex(first)
  }

  @discardableResult
  func with<Result: Sendable>(_ body: (inout State) -> Result) -> Result { state.withLock { body(&$0) } }

  /// Fails the next call of this name; a nil lets one pass.
  func fail(_ call: String, _ errnos: Errno?...) { with { $0.failures[call, default: []] += errnos } }

  var calls: [String] { with { $0.calls } }
  /// Descriptors and mappings that are still there.
  var leaks: Int { with { $0.openEvents.count + $0.mappings.count } }
  func clearCalls() { with { ($0.calls, $0.accesses) = ([], []) } }

  /// Notes a call, and throws what the test wants it to.
  func enter(_ call: String, _ arguments: String = "") throws(Errno) {
    let hook = with { $0.hook }
    hook?(call)
    let errno: Errno? = with { state in
      state.calls.append(arguments.isEmpty ? call : "\(call) \(arguments)")
      state.callCount += 1
      if let failing = state.failing, failing.call == state.callCount { return failing.errno }
      guard var queue = state.failures[call], !queue.isEmpty else { return nil }
      let errno = queue.removeFirst()
      state.failures[call] = queue
      return errno
    }
    if let errno { throw errno }
  }
}

// MARK: - Memory

extension TestKernel {
  func createMemoryFile(_ name: String, byteCount: Int, hugePageShift: Int?) throws(Errno) -> Int32 {
    throw .notImplemented
  }

  func mapMemory(byteCount: Int, descriptor: Int32, offset: UInt64) throws(Errno) -> UnsafeMutableRawPointer {
    try enter("map", "\(offset)+\(byteCount)")
    let base = unsafe mmap(nil, byteCount, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    guard let base = unsafe base, unsafe base != MAP_FAILED else { throw .noMemory }
    let address = UInt(bitPattern: base)
    with { $0.mappings[address] = byteCount }
    return unsafe base
  }

  func coverMemory(_ base: UnsafeMutableRawPointer, byteCount: Int) throws(Errno) {
    try enter("cover")
    let address = UInt(bitPattern: base)
    with { $0.covered.append(address) }
    unsafe memset(base, 0, byteCount)
  }

  func unmapMemory(_ base: UnsafeMutableRawPointer, byteCount: Int) {
    try? enter("unmap")
    let address = UInt(bitPattern: base)
    let known = with { $0.mappings.removeValue(forKey: address) }
    precondition(known == byteCount, "unmapped other than was mapped")
    unsafe munmap(base, byteCount)
  }

  func advise(_ base: UnsafeMutableRawPointer, byteCount: Int, _ advice: MemoryAdvice) throws(Errno) {
    try enter("advise", "\(advice)")
  }
  func bindMemory(_ base: UnsafeMutableRawPointer, byteCount: Int, node: Int) throws(Errno) {}
  func memoryLockLimit() -> UInt64 { .max }
  func hasCapability(_ capability: Int) -> Bool { false }
  func effectiveUser() -> UInt32 { 1000 }
}

// MARK: - Events

extension TestKernel {
  func createEvent() throws(Errno) -> Int32 {
    try enter("createEvent")
    let descriptor = ci_eventfd(0)
    if descriptor < 0 { throw Errno(rawValue: -descriptor) }
    with { _ = $0.openEvents.insert(descriptor) }
    return descriptor
  }

  func close(_ descriptor: Int32) {
    let known = with { $0.openEvents.remove(descriptor) }
    precondition(known != nil, "closed a descriptor that is not open")
    ci_close(descriptor)
  }

  func takeEvent(_ descriptor: Int32) throws(Errno) -> UInt64? {
    try enter("takeEvent")
    var count: UInt64 = 0
    let result = unsafe ci_eventfd_read(descriptor, &count)
    if result == -EAGAIN { return nil }
    if result < 0 { throw Errno(rawValue: -result) }
    return count
  }

  func signalEvent(_ descriptor: Int32) throws(Errno) {
    try enter("signalEvent")
    let result = ci_eventfd_write(descriptor, 1)
    if result < 0 { throw Errno(rawValue: -result) }
  }

  func waitReadable(_ descriptors: [Int32], timeout: Duration?) throws(Errno) -> Int? {
    try enter("wait")
    var list = descriptors.map { ci_pollfd(fd: $0, events: Int16(CI_POLLIN), revents: 0) }
    let nanoseconds = timeout.map {
      Int64($0.components.seconds * 1_000_000_000 + $0.components.attoseconds / 1_000_000_000)
    }
    let ready = unsafe list.withUnsafeMutableBufferPointer { list in
      unsafe ci_poll(list.baseAddress, UInt32(list.count), nanoseconds ?? -1)
    }
    if ready < 0 { throw Errno(rawValue: -ready) }
    if ready == 0 {
      // A clock that stands moves by what was slept.
      with { if let clock = $0.clock { $0.clock = clock + UInt64(nanoseconds ?? 0) } }
      return nil
    }
    return list.firstIndex { $0.revents != 0 }
  }

  func now() -> UInt64 { with { $0.clock } ?? UInt64(ci_monotonic_ns()) }

  func sleep(_ duration: Duration) {
    let isReal = with { state in
      state.slept.append(duration)
      guard let clock = state.clock else { return true }
      state.clock =
        clock
        + UInt64(
          duration.components.seconds * 1_000_000_000 + duration.components.attoseconds / 1_000_000_000)
      return false
    }
    if isReal { ci_sleep_ns(duration.components.attoseconds / 1_000_000_000) }
  }

  func kernelLog(from sequence: UInt64) throws(Errno) -> [KernelLogLine] {
    try enter("kernelLog", "\(sequence)")
    return with { $0.log.filter { $0.sequence >= sequence } }
  }
}
