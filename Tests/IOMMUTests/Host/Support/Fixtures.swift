import CapturedTrees
import Glibc
import IOMMU
import Testing

/// The captured trees in Tests/IOMMUTests/Fixtures.
enum Fixture: String, CaseIterable {
  case laptop = "vtd-laptop", server = "smmuv3-server", noIOMMU = "no-iommu", plainVM = "vm-without-iommu"
  case type1Only = "type1-only", corrupt

  var tree: CapturedTree {
    get throws {
      let fixtures = #filePath.split(separator: "/").dropLast(3).map { "/\($0)" }.joined() + "/Fixtures"
      let files = DiskKernel(root: fixtures)
      return try CapturedTree(parsing: String(decoding: files.readFile("/\(rawValue).tree"), as: UTF8.self))
    }
  }

  /// A host over the tree, changed before it is used.
  func host(_ change: (inout CapturedTree) -> Void = { _ in }) throws -> Host {
    var tree = try tree
    change(&tree)
    return Host(kernel: TreeKernel(tree))
  }
}

extension CapturedTree {
  /// The directory of a device, for changing files in it.
  func path(of address: String) -> String {
    guard case .link(let target)? = entries["/sys/bus/pci/devices/\(address)"] else { return "/missing" }
    return "/sys\(target.dropFirst(8))"
  }
}

func address(_ text: String) -> PCIAddress { PCIAddress(text)! }

/// Files below a directory of this machine's disk.
final class DiskKernel: FilesKernel, @unchecked Sendable {
  private let root: String
  init(root: String) { self.root = root }

  override func readFile(_ path: String) throws(Errno) -> [UInt8] {
    let descriptor = unsafe Glibc.open(root + path, O_RDONLY | O_CLOEXEC)
    guard descriptor >= 0 else { throw Errno(rawValue: errno) }
    defer { Glibc.close(descriptor) }
    var bytes: [UInt8] = []
    while true {
      var failure: Int32 = 0
      let part = unsafe [UInt8](unsafeUninitializedCapacity: 4096) { buffer, count in
        let received = unsafe read(descriptor, buffer.baseAddress, 4096)
        failure = received < 0 ? errno : 0
        count = max(0, received)
      }
      guard failure == 0 else { throw Errno(rawValue: failure) }
      if part.isEmpty { return bytes }
      bytes += part
      if part.count < 4096 { return bytes }
    }
  }

  override func listDirectory(_ path: String) throws(Errno) -> [String] {
    guard let stream = unsafe opendir(root + path) else { throw Errno(rawValue: errno) }
    defer { unsafe closedir(stream) }
    var names: [String] = []
    while let entry = unsafe readdir(stream) {
      let name = unsafe withUnsafePointer(to: &entry.pointee.d_name) {
        unsafe $0.withMemoryRebound(to: CChar.self, capacity: 256) { unsafe String(cString: $0) }
      }
      if name != ".", name != ".." { names.append(name) }
    }
    return names.sorted()
  }

  override func readLink(_ path: String) throws(Errno) -> String {
    var failure: Int32 = 0
    let text = unsafe String(unsafeUninitializedCapacity: 4096) { buffer in
      let count = unsafe readlink(
        root + path, UnsafeMutableRawPointer(buffer.baseAddress!).assumingMemoryBound(to: CChar.self), 4096)
      failure = count < 0 ? errno : 0
      return max(0, count)
    }
    guard failure == 0 else { throw Errno(rawValue: failure) }
    return text
  }

  override func status(_ path: String) throws(Errno) -> FileStatus {
    var status = stat()
    guard unsafe stat(root + path, &status) == 0 else { throw Errno(rawValue: errno) }
    let kind: FileStatus.Kind = status.st_mode & S_IFMT == S_IFDIR ? .directory : .regular
    return FileStatus(kind: kind, mode: status.st_mode & 0o7777, owner: status.st_uid, group: status.st_gid)
  }
}
