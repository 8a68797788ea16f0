import CapturedTrees
import Glibc
import IOMMU
import IOMMUSimulation
import Testing

/// A machine of 200 devices: counts, not times; the times are the benchmark's.
@Suite struct ServerTreeTests {
  @Test func devicesInMemory() throws {
    let kernel = TreeKernel(CapturedTree.server(deviceCount: 200)), host = Host(kernel: kernel)
    let devices = try host.devices(named: false)
    #expect(devices.count == 200)
    #expect(
      devices.allSatisfy { $0.unread.isEmpty && $0.group != nil && $0.unit != nil && $0.numaNode != nil })
    #expect(devices.contains { $0.address.domain == 2 })
    // Eight looks a device and three a group: a list of 200 devices has to take less than 50 ms.
    #expect(kernel.reads <= 200 * 12)
    for status in [PCIDevice.Status.ready, .bindable, .blocked] {
      #expect(devices.contains { $0.status == status })
    }
    #expect(try host.groups().flatMap(\.devices).count == 200)
    #expect(try host.units().flatMap(\.devices).count == 200)
    #expect(try host.preflight(for: nil)[.iommuEnabled].verdict == .ok)
  }

  @Test(arguments: [0, 1, 2, 3, 96, 97, 500])
  func anyCount(count: Int) throws {
    let host = Host(kernel: TreeKernel(CapturedTree.server(deviceCount: count)))
    #expect(try host.devices(named: false).count == count)
  }

  /// The same from files, through the kernel that reads real ones.
  @Test func devicesOnDisk() throws {
    let directory = try TemporaryDirectory()
    let tree = CapturedTree.server(deviceCount: 40)
    try tree.write(to: directory.path)
    let host = try Host.captured(at: directory.path + "/")
    #expect(host.isCaptured && !host.isSimulated)
    let inMemory = Host(kernel: TreeKernel(tree))
    #expect(try host.devices(named: false) == inMemory.devices(named: false))
    #expect(try host.groups() == inMemory.groups())
    #expect(try host.units() == inMemory.units())
    let address = try #require(try host.devices(named: false).first { $0.status == .bindable }).address
    #expect(try host.details(of: address) == inMemory.details(of: address))
    let plan = try host.plan(.bind, of: address)
    #expect(throws: DMAError.self) { try host.perform(plan) }
  }

  @Test(arguments: Fixture.allCases)
  func fixturesOnDisk(fixture: Fixture) throws {
    let directory = try TemporaryDirectory()
    // Root may read what others may not: such files are tried in memory only.
    var tree = try fixture.tree
    for (path, entry) in tree.entries { if case .failure = entry { tree.entries[path] = nil } }
    try tree.write(to: directory.path)
    let host = try Host.captured(at: directory.path), inMemory = Host(kernel: TreeKernel(tree))
    let devices = try host.devices(named: false)
    #expect(try devices == inMemory.devices(named: false))
    #expect(try host.groups() == inMemory.groups())
    #expect(try host.units() == inMemory.units())
    for device in devices {
      #expect(try host.details(of: device.address) == inMemory.details(of: device.address))
      #expect(try host.peerWindows(of: device.address) == inMemory.peerWindows(of: device.address))
    }
  }

  @Test func noTreeThere() throws {
    let directory = try TemporaryDirectory()
    func error(_ path: String) -> DMAError? { #expect(throws: DMAError.self) { try Host.captured(at: path) } }
    let none = error(directory.path), missing = error(directory.path + "/missing"), file = error("/proc/self/status")
    #expect((none?.code, none?.errno) == (.corruptTree, .noEntry))
    #expect(none?.detail == "No tree was captured at \(directory.path): it holds no sys/")
    #expect((missing?.code, missing?.errno) == (.noSuchTree, .noEntry))
    #expect(missing?.detail == "There is no directory \(directory.path)/missing")
    #expect((file?.code, file?.errno, file?.detail) == (.corruptTree, .notDirectory, "It is no directory"))
    #expect(unsafe mkdir(directory.path + "/sys", 0o755) == 0)
    let empty = error(directory.path)
    #expect((empty?.code, empty?.errno) == (.corruptTree, nil))
    #expect(empty?.detail?.hasSuffix("its sys/ is empty") == true)
    for error in [none, missing, file, empty] { #expect(error?.remedy?.contains("sys/, proc/ and dev/") == true) }
  }

  /// Root may read everything: so the answer is a kernel's that fails on purpose.
  @Test(arguments: [
    (Errno.accessDenied, DMAError.Code.permission), (.notPermitted, .permission), (.inputOutput, .system),
  ])
  func aTreeThatMayNotBeRead(_ errno: Errno, _ code: DMAError.Code) throws {
    let directory = try TemporaryDirectory()
    try CapturedTree.server(deviceCount: 1).write(to: directory.path)
    let kernel = FaultingKernel(LiveKernel(root: directory.path))
    kernel.fail(1, of: "listDirectory", with: errno)
    let error = #expect(throws: DMAError.self) { try Host.captured(at: directory.path, kernel) }
    #expect((error?.code, error?.errno, error?.operation) == (code, errno, "read \(directory.path)/sys"))
    #expect((error?.remedy?.contains("leave to read the tree") == true) == (code == .permission))
    #expect(try Host.captured(at: directory.path, kernel).isCaptured)
  }

  /// Writes a large tree for looking at, and for measuring by hand: `IOMMU_WRITE_TREE=<directory>`.
  @Test(.enabled(if: unsafe getenv("IOMMU_WRITE_TREE") != nil))
  func writeTree() throws {
    let directory = unsafe String(cString: getenv("IOMMU_WRITE_TREE"))
    try CapturedTree.server(deviceCount: 200).write(to: directory)
  }
}

/// A directory that goes away with its owner.
final class TemporaryDirectory {
  let path: String

  init() throws {
    let base = unsafe getenv("TMPDIR").map { unsafe String(cString: $0) } ?? "/tmp"
    var template = Array("\(base)/iommu-XXXXXX".utf8CString)
    let made = unsafe template.withUnsafeMutableBufferPointer { unsafe mkdtemp($0.baseAddress!) }
    guard let made = unsafe made else { throw Errno(rawValue: errno) }
    path = unsafe String(cString: made)
  }

  deinit { Self.remove(path) }

  private static func remove(_ path: String) {
    if unsafe unlink(path) == 0 { return }
    for name in (try? DiskKernel(root: "").listDirectory(path)) ?? [] { remove("\(path)/\(name)") }
    _ = unsafe rmdir(path)
  }
}
