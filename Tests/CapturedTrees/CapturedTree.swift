import Glibc

/// A small sysfs, procfs and /dev in text: what a machine showed, or might show.
///
/// The text is a list of sections, each a directory, with a line an entry:
///
///     # A comment
///     [/sys/bus/pci/devices/0000:00:02.0]
///     vendor = 0x8086                            a file with that line; \n and \t stand for themselves
///     raw ~ no line end behind this               a file with just that text
///     config : 0=86805a46 34=40 #256              a binary file: bytes at offsets, and its size
///     driver -> ../../../bus/pci/drivers/i915     a symbolic link
///     vfio-dev /                                  a directory
///     resource ! EACCES                           a file that cannot be read
package struct CapturedTree: Sendable {
  package enum Entry: Hashable, Sendable {
    case file([UInt8])
    case link(String)
    case directory
    /// Reading it fails with this error number.
    case failure(Int32)
  }

  /// By absolute path; the directories above an entry need not be listed.
  package var entries: [String: Entry] = [:]

  package init() {}

  package subscript(path: String) -> String? {
    get { if case .file(let bytes)? = entries[path] { String(decoding: bytes, as: UTF8.self) } else { nil } }
    set { entries[path] = newValue.map { .file(Array($0.utf8)) } }
  }

  /// All paths in order.
  package var paths: [String] { entries.keys.sorted() }
}

// MARK: - Text

extension CapturedTree {
  package struct SyntaxError: Error, CustomStringConvertible {
    package let line: Int, text: String
    package var description: String { "line \(line): \(text)" }
  }

  package init(parsing text: String) throws {
    var directory = ""
    for (number, line) in text.split(separator: "\n", omittingEmptySubsequences: false).enumerated() {
      if line.isEmpty || line.hasPrefix("#") { continue }
      if line.hasPrefix("["), line.hasSuffix("]") {
        directory = String(line.dropFirst().dropLast())
        continue
      }
      let parts = line.split(separator: " ", maxSplits: 2, omittingEmptySubsequences: false).map(String.init)
      guard directory.hasPrefix("/"), parts.count >= 2,
        let entry = Self.entry(parts[1], parts.count == 3 ? parts[2] : "")
      else { throw SyntaxError(line: number + 1, text: String(line)) }
      entries["\(directory)/\(parts[0])"] = entry
    }
  }

  private static func entry(_ kind: String, _ value: String) -> Entry? {
    switch kind {
    case "=": return .file(Array((unescaped(value) + "\n").utf8))
    case "~": return .file(Array(unescaped(value).utf8))
    case "->": return .link(value)
    case "/": return .directory
    case "!": return ["EACCES": .failure(EACCES), "EIO": .failure(EIO), "EINVAL": .failure(EINVAL)][value]
    case ":": return binary(value).map { .file($0) }
    default: return nil
    }
  }

  private static func unescaped(_ text: String) -> String {
    text.split(separator: "\\n", omittingEmptySubsequences: false).joined(separator: "\n")
      .split(separator: "\\t", omittingEmptySubsequences: false).joined(separator: "\t")
  }

  private static func binary(_ text: String) -> [UInt8]? {
    var bytes: [UInt8] = []
    for word in text.split(separator: " ") {
      if word.hasPrefix("#"), let size = Int(word.dropFirst()) {
        bytes += Array(repeating: 0, count: max(0, size - bytes.count))
        continue
      }
      let parts = word.split(separator: "=").map { Array($0.utf8) }
      guard parts.count == 2, var offset = Int(String(decoding: parts[0], as: UTF8.self), radix: 16) else {
        return nil
      }
      for index in stride(from: 0, to: parts[1].count - 1, by: 2) {
        let pair = String(decoding: parts[1][index...index + 1], as: UTF8.self)
        guard let byte = UInt8(pair, radix: 16) else { return nil }
        while bytes.count <= offset { bytes.append(0) }
        bytes[offset] = byte
        offset += 1
      }
    }
    return bytes
  }
}

// MARK: - Disk

extension CapturedTree {
  package struct WriteError: Error { package let path: String, errno: Int32 }

  /// Writes the tree below a directory, which is made when it is missing. A file that cannot be read has no mode bits.
  package func write(to root: String) throws(WriteError) {
    try Self.makeDirectories(root)
    var made: Set<String> = []
    for path in paths {
      let parent = String(path[..<path.lastIndex(of: "/")!])
      if made.insert(parent).inserted { try Self.makeDirectories(root + parent) }
      switch entries[path]! {
      case .directory: try Self.makeDirectories(root + path)
      case .link(let target):
        guard unsafe symlink(target, root + path) == 0 else {
          throw WriteError(path: root + path, errno: errno)
        }
      case .file(let bytes): try Self.writeFile(root + path, bytes, mode: 0o644)
      case .failure: try Self.writeFile(root + path, [], mode: 0)
      }
    }
  }

  private static func writeFile(_ path: String, _ bytes: [UInt8], mode: mode_t) throws(WriteError) {
    let descriptor = unsafe open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode)
    guard descriptor >= 0 else { throw WriteError(path: path, errno: errno) }
    defer { close(descriptor) }
    let written = unsafe bytes.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) }
    guard written == bytes.count else { throw WriteError(path: path, errno: errno) }
  }

  private static func makeDirectories(_ path: String) throws(WriteError) {
    var position = path.startIndex
    while position < path.endIndex {
      position = path[path.index(after: position)...].firstIndex(of: "/") ?? path.endIndex
      let directory = String(path[..<position])
      guard unsafe mkdir(directory, 0o755) == 0 || errno == EEXIST else {
        throw WriteError(path: directory, errno: errno)
      }
    }
  }
}
