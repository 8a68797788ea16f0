import CapturedTrees
import Glibc
import IOMMU

/// A captured tree in memory: path walking with symbolic links and the errors of Linux.
struct TreeFiles: Sendable {
  private struct Node: Sendable {
    var entry: CapturedTree.Entry
    var children: [String: Int] = [:]
    var parent: Int
  }
  private var nodes = [Node(entry: .directory, parent: 0)]

  init(_ tree: CapturedTree) { for path in tree.paths { put(path, tree.entries[path]!) } }

  /// Puts an entry at a path whose directories are made, following no links.
  private mutating func put(_ path: String, _ entry: CapturedTree.Entry) {
    var node = 0
    for name in path.split(separator: "/").map(String.init) {
      if let child = nodes[node].children[name] {
        node = child
      } else {
        nodes.append(Node(entry: .directory, parent: node))
        nodes[node].children[name] = nodes.count - 1
        node = nodes.count - 1
      }
    }
    nodes[node].entry = entry
  }

  private func walk(_ path: String, followLast: Bool) throws(Errno) -> Int {
    var node = 0, hops = 0
    var names = path.split(separator: "/").map(String.init)[...]
    while let name = names.popFirst() {
      guard case .directory = nodes[node].entry else { throw .notDirectory }
      if name == "." { continue }
      if name == ".." {
        node = nodes[node].parent
        continue
      }
      guard let child = nodes[node].children[name] else { throw .noEntry }
      guard case .link(let target) = nodes[child].entry, followLast || !names.isEmpty else {
        node = child
        continue
      }
      hops += 1
      guard hops <= 40 else { throw Errno(rawValue: ELOOP) }
      if target.hasPrefix("/") { node = 0 }
      names = target.split(separator: "/").map(String.init)[...] + names
    }
    return node
  }

  func read(_ path: String) throws(Errno) -> [UInt8] {
    switch nodes[try walk(path, followLast: true)].entry {
    case .file(let bytes): return bytes
    case .failure(let number): throw Errno(rawValue: number)
    case .directory, .link: throw .isDirectory
    }
  }

  func list(_ path: String) throws(Errno) -> [String] {
    let node = nodes[try walk(path, followLast: true)]
    switch node.entry {
    case .directory: return node.children.keys.sorted()
    case .failure(let number): throw Errno(rawValue: number)
    case .file, .link: throw .notDirectory
    }
  }

  func readLink(_ path: String) throws(Errno) -> String {
    switch nodes[try walk(path, followLast: false)].entry {
    case .link(let target): return target
    case .failure(let number): throw Errno(rawValue: number)
    case .file, .directory: throw .invalidArgument
    }
  }

  func status(_ path: String) throws(Errno) -> FileStatus {
    let entry = nodes[try walk(path, followLast: true)].entry
    var kind = FileStatus.Kind.regular
    if case .directory = entry {
      kind = .directory
    } else if path.hasPrefix("/dev/") {
      kind = .characterDevice
    }
    return FileStatus(kind: kind, mode: kind == .directory ? 0o755 : 0o600, owner: 0, group: 0)
  }

  mutating func write(_ path: String, _ text: String) throws(Errno) {
    let node = try walk(path, followLast: true)
    switch nodes[node].entry {
    case .file: nodes[node].entry = .file(Array(text.utf8))
    case .failure(let number): throw Errno(rawValue: number)
    case .directory, .link: throw .isDirectory
    }
  }

  /// Makes, replaces or (with nil) removes the entry at the end of a path, following links on the way.
  mutating func set(_ path: String, _ entry: CapturedTree.Entry?) throws(Errno) {
    let slash = path.lastIndex(of: "/")!
    let parent = try walk(String(path[..<slash]), followLast: true)
    let name = String(path[path.index(after: slash)...])
    guard let entry else {
      guard nodes[parent].children.removeValue(forKey: name) != nil else { throw .noEntry }
      return
    }
    if let child = nodes[parent].children[name] {
      nodes[child].entry = entry
    } else {
      nodes.append(Node(entry: entry, parent: parent))
      nodes[parent].children[name] = nodes.count - 1
    }
  }

  /// Makes a directory and those above it.
  mutating func makeDirectory(_ path: String) { put(path, .directory) }
}
