import CapturedTrees
import Glibc
import IOMMU
import Synchronization

/// A captured tree in memory with a bus that binds drivers when it is written to, as Linux' does.
final class TreeKernel: FilesKernel, @unchecked Sendable {
  struct Behaviour: Sendable {
    /// A captured tree is of a real machine; true shows what is said of a simulated one.
    var isSimulated = false
    var lockLimit: UInt64 = 8 << 20
    var capabilities: Set<Int> = []
    var user: UInt32 = 1000
    /// Nodes that this process may not open.
    var denied: Set<String> = []
    /// Groups' nodes that another process has open.
    var openNodes: Set<String> = []
    /// The drivers that take a device without an override, by address.
    var defaultDrivers: [String: String] = [:]
    /// Fails the n-th write, counted from 0.
    var failWrite: (index: Int, error: Errno)?
    /// Drivers whose probe fails.
    var refusingDrivers: Set<String> = []
  }
  private struct State: Sendable {
    var files: TreeFiles
    var behaviour = Behaviour()
    var writes: [String] = []
    var reads = 0
  }
  private let state: Mutex<State>

  init(_ tree: CapturedTree, _ change: (inout Behaviour) -> Void = { _ in }) {
    var state = State(files: TreeFiles(tree))
    change(&state.behaviour)
    self.state = Mutex(state)
  }

  /// The successful writes, as `path=value`.
  var writes: [String] { state.withLock { $0.writes } }
  /// Files, links and directories looked at.
  var reads: Int { state.withLock { $0.reads } }
  func change(_ change: (inout Behaviour) -> Void) { state.withLock { change(&$0.behaviour) } }

  private func look<Value>(_ body: (TreeFiles) throws(Errno) -> Value) throws(Errno) -> Value {
    let files = state.withLock { state in
      state.reads += 1
      return state.files
    }
    return try body(files)
  }

  override var isSimulated: Bool { state.withLock { $0.behaviour.isSimulated } }

  override func readFile(_ path: String) throws(Errno) -> [UInt8] {
    try look { files throws(Errno) in try files.read(path) }
  }
  override func listDirectory(_ path: String) throws(Errno) -> [String] {
    try look { files throws(Errno) in try files.list(path) }
  }
  override func readLink(_ path: String) throws(Errno) -> String {
    try look { files throws(Errno) in try files.readLink(path) }
  }
  override func status(_ path: String) throws(Errno) -> FileStatus {
    try look { files throws(Errno) in try files.status(path) }
  }
  override func checkAccess(_ path: String, write: Bool) throws(Errno) {
    _ = try status(path)
    if state.withLock({ $0.behaviour.denied.contains(path) }) { throw .accessDenied }
  }
  override func open(_ path: String) throws(Errno) -> Int32 {
    try checkAccess(path, write: true)
    if state.withLock({ $0.behaviour.openNodes.contains(path) }) { throw .busy }
    return 1000
  }
  override func memoryLockLimit() -> UInt64 { state.withLock { $0.behaviour.lockLimit } }
  override func hasCapability(_ capability: Int) -> Bool {
    state.withLock { $0.behaviour.capabilities.contains(capability) }
  }
  override func effectiveUser() -> UInt32 { state.withLock { $0.behaviour.user } }

  // Writing

  override func writeFile(_ path: String, _ text: String) throws(Errno) {
    let result: Result<Void, Errno> = state.withLock { state in
      do throws(Errno) {
        if let fail = state.behaviour.failWrite, fail.index == state.writes.count {
          state.behaviour.failWrite = nil
          throw fail.error
        }
        try Self.write(path, text, &state)
        state.writes.append("\(path)=\(text)")
        return .success(())
      } catch { return .failure(error) }
    }
    try result.get()
  }

  override func storeFile(_ path: String, _ text: String) throws(Errno) {
    state.withLock { state in
      state.files.makeDirectory(String(path[..<path.lastIndex(of: "/")!]))
      try? state.files.set(path, .file(Array(text.utf8)))
    }
  }

  override func removeFile(_ path: String) throws(Errno) {
    let removed = state.withLock { state in (try? state.files.set(path, nil)) != nil }
    if !removed { throw .noEntry }
  }

  private static func write(_ path: String, _ text: String, _ state: inout State) throws(Errno) {
    _ = try state.files.read(path)
    let parts = path.split(separator: "/").map(String.init)
    let value = text.hasSuffix("\n") ? String(text.dropLast()) : text
    switch parts.last! {
    case "driver_override": try state.files.write(path, (value.isEmpty ? "(null)" : value) + "\n")
    case "unbind":
      let device = "/sys/bus/pci/devices/\(value)"
      guard try state.files.readLink("\(device)/driver").hasSuffix("/\(parts[parts.count - 2])") else {
        throw .noDevice
      }
      try state.files.set("\(device)/driver", nil)
      try? state.files.set("\(device)/vfio-dev", nil)
    case "bind": try bind(value, to: parts[parts.count - 2], &state)
    case "drivers_probe":
      _ = try state.files.status("/sys/bus/pci/devices/\(value)")
      let override = try overriding(value, state)
      guard let driver = override ?? state.behaviour.defaultDrivers[value] else { return }
      // The kernel's probe answers success when no driver takes the device.
      try? bind(value, to: driver, &state)
    default: try state.files.write(path, text)
    }
  }

  private static func overriding(_ device: String, _ state: State) throws(Errno) -> String? {
    let bytes = try state.files.read("/sys/bus/pci/devices/\(device)/driver_override")
    let text = String(decoding: bytes, as: UTF8.self).dropLast()
    return text == "(null)" ? nil : String(text)
  }

  private static func bind(_ device: String, to driver: String, _ state: inout State) throws(Errno) {
    let path = "/sys/bus/pci/devices/\(device)"
    if (try? state.files.readLink("\(path)/driver")) != nil { throw .busy }
    let wanted = try overriding(device, state) ?? state.behaviour.defaultDrivers[device]
    guard wanted == driver, !state.behaviour.refusingDrivers.contains(driver) else { throw .noDevice }
    _ = try state.files.status("/sys/bus/pci/drivers/\(driver)")
    try state.files.set("\(path)/driver", .link("/sys/bus/pci/drivers/\(driver)"))
    guard driver == "vfio-pci" else { return }
    try state.files.set("\(path)/vfio-dev", .directory)
    try state.files.set("\(path)/vfio-dev/vfio0", .directory)
    try state.files.set("\(path)/vfio-dev/vfio0/dev", .file(Array("511:0\n".utf8)))
  }
}
