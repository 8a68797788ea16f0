import CIOMMU
import Glibc
import Synchronization

/// A descriptor that closes itself, for the tests of this target.
struct Descriptor: ~Copyable {
  let number: Int32

  /// Takes over what a shim returned.
  init(_ result: Int32) throws(Failure) {
    guard result >= 0 else { throw Failure(errno: -result) }
    number = result
  }

  deinit { _ = ci_close(number) }

  /// A file without a name, on which no driver's ioctl means anything.
  static func memory() throws(Failure) -> Descriptor { try unsafe Descriptor(ci_memfd_create("test", 0)) }
}

struct Failure: Error {
  let errno: Int32
}

/// A thread that the test can interrupt, which a task cannot be.
final class Worker: Sendable {
  private let thread: pthread_t
  private let done: Flag

  private final class Flag: Sendable {
    let value = Atomic(false)
  }
  private final class Start: Sendable {
    let body: @Sendable () -> Void
    let done: Flag
    init(_ body: @escaping @Sendable () -> Void, _ done: Flag) {
      self.body = body
      self.done = done
    }
  }

  init(_ body: @escaping @Sendable () -> Void) {
    let done = Flag()
    var thread = pthread_t()
    let start = unsafe Unmanaged.passRetained(Start(body, done)).toOpaque()
    let result = unsafe pthread_create(
      &thread, nil,
      { argument in
        let start = unsafe Unmanaged<Start>.fromOpaque(argument!).takeRetainedValue()
        start.body()
        start.done.value.store(true, ordering: .releasing)
        return nil
      }, start)
    precondition(result == 0)
    self.thread = thread
    self.done = done
  }

  /// Sends SIGUSR1 so often; the thread must not end meanwhile.
  func interrupt(times: Int, period: Int64) {
    for _ in 0..<times {
      _ = ci_sleep_ns(period)
      pthread_kill(thread, SIGUSR1)
    }
  }

  /// Sends SIGUSR1 until the thread's work is done. It is not joined yet, so its number is still good.
  func interruptUntilDone(period: Int64) {
    while !done.value.load(ordering: .acquiring) { interrupt(times: 1, period: period) }
  }

  func join() { pthread_join(thread, nil) }
}

/// An empty directory that goes with its owner.
struct TemporaryDirectory: ~Copyable {
  let path: String

  init() throws(Failure) {
    var template = Array("/tmp/swift-iommu-XXXXXX".utf8CString)
    guard unsafe mkdtemp(&template) != nil else { throw Failure(errno: EIO) }
    path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  deinit {
    if let names = try? entries() {
      for name in names where unsafe ci_unlink("\(path)/\(name)") != 0 { unsafe rmdir("\(path)/\(name)") }
    }
    unsafe rmdir(path)
  }

  private func entries() throws(Failure) -> [String] {
    let directory = try unsafe Descriptor(ci_open(path, CI_O_DIRECTORY, 0))
    let fd = directory.number
    return unsafe withUnsafeTemporaryAllocation(byteCount: 16384, alignment: 8) { buffer in
      var names: [String] = []
      let base = buffer.baseAddress!
      while true {
        let count = unsafe ci_directory_read(fd, base, 16384)
        if count <= 0 { return names }
        var offset: UInt64 = 0
        var type: UInt32 = 0
        while let name = unsafe ci_directory_next(base, UInt64(count), &offset, &type) {
          unsafe names.append(String(cString: name))
        }
      }
    }
  }
}
