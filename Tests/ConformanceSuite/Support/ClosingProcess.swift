import AddressSpace
import Glibc
public import IOMMU

/// A process of its own that maps a lot on one device, waits, and closes it: this program again, told so by its arguments.
public struct ClosingProcess: Sendable {
  /// How it ends.
  public enum End: String, Sendable, CaseIterable {
    /// Closes the device and ends then.
    case close
    /// Ends as it is: the kernel closes what it had open.
    case exit
  }

  /// The device.
  public var device: String
  /// How it is opened.
  public var interface: Interface, translation: TranslationChoice
  /// Mappings that are live when it ends, at least one.
  public var mapCount: Int
  /// How it ends.
  public var end: End

  /// What one is to do.
  public init(
    _ device: String, interface: Interface, translation: TranslationChoice, mapCount: Int = 1000, end: End = .close
  ) {
    (self.device, self.interface, self.translation) = (device, interface, translation)
    (self.mapCount, self.end) = (mapCount, end)
  }

  /// The words that the program is told by.
  var arguments: [String] {
    [
      "conformance", "--interface", interface.rawValue, "--translation", translation.rawValue, "--hold", device,
      "--maps", String(mapCount), "--end", end.rawValue,
    ]
  }

  /// Does it: one byte of output says that all is mapped, and the end of input that it is time.
  public func run() throws {
    let kernel = LiveKernel(), host = Host.local()
    let device = try Device(self.device, on: host, interface: interface, translation: translation)
    // All of it is mapped once, and a page over and over: on tables of the process both cost the kernel nothing once it is pinned.
    let memory = try HostMemory(kernel, byteCount: 16 << 20)
    memory.fill(1)
    let registration = translation == .process ? try unsafe device.dma.register(unsafe: memory.buffer) : nil
    let page = unsafe UnsafeRawBufferPointer(start: memory.base, count: 4096)
    var live: [Item] = []
    live.reserveCapacity(mapCount)
    live.append(Item(try unsafe device.dma.map(unsafe: memory.buffer, .bidirectional)))
    for _ in 1..<mapCount { live.append(Item(try unsafe device.dma.map(unsafe: page, .bidirectional))) }
    try withExtendedLifetime(live) { try waitAndEnd(device) }
    if let registration { try registration.unregister() }
  }

  private func waitAndEnd(_ device: Device) throws {
    var byte: UInt8 = 1
    guard unsafe write(1, &byte, 1) == 1, unsafe read(0, &byte, 1) == 0 else { throw Failure("nobody waits for this") }
    try expectEqual(device.dma.statistics.liveMappings, mapCount, "live mappings")
    if end == .close {
      device.close()
      try expect(device.dma.isClosed, "The device is open still")
    }
    // What is left are values of this process's, which take their time.
    _exit(0)
  }

  private final class Item {
    let mapping: UnsafeMapping
    init(_ mapping: consuming UnsafeMapping) { self.mapping = mapping }
  }
}

/// A process that was started, and the pipes to it.
final class Child {
  private let process: pid_t
  /// What it reads from, until it is to go on, and what it writes to.
  private var input: Int32, output: Int32

  /// Starts this program again.
  init(_ arguments: [String]) throws {
    let down = try Self.pipe(), up = try Self.pipe()
    var actions = unsafe posix_spawn_file_actions_t(), process = pid_t()
    unsafe posix_spawn_file_actions_init(&actions)
    defer { unsafe posix_spawn_file_actions_destroy(&actions) }
    unsafe posix_spawn_file_actions_adddup2(&actions, down.read, 0)
    unsafe posix_spawn_file_actions_adddup2(&actions, up.write, 1)
    var words = unsafe arguments.map { unsafe strdup($0) } + [nil]
    defer { unsafe words.forEach { unsafe free($0) } }
    let failure = unsafe posix_spawn(&process, "/proc/self/exe", &actions, nil, &words, environ)
    Glibc.close(down.read)
    Glibc.close(up.write)
    (self.process, input, output) = (process, down.write, up.read)
    guard failure == 0 else { throw Failure("no process: errno \(failure)") }
  }

  /// A pipe that no other child gets.
  private static func pipe() throws -> (read: Int32, write: Int32) {
    var ends: [Int32] = [-1, -1]
    guard unsafe Glibc.pipe(&ends) == 0 else { throw Failure("no pipe: errno \(errno)") }
    for end in ends { _ = fcntl(end, F_SETFD, FD_CLOEXEC) }
    return (ends[0], ends[1])
  }

  /// Returns when it has said that it is ready; false when it ended instead.
  func waitUntilReady() -> Bool {
    var byte: UInt8 = 0
    return unsafe read(output, &byte, 1) == 1
  }

  /// Lets it go on.
  func letGo() {
    if input >= 0 { Glibc.close(input) }
    input = -1
  }

  /// Waits for its end; its status as of `waitpid`.
  func wait() -> Int32 {
    letGo()
    var status: Int32 = -1
    _ = unsafe waitpid(process, &status, 0)
    return status
  }

  deinit {
    letGo()
    Glibc.close(output)
  }
}
