import CIOMMU
import Glibc
import IOMMU

/// Files of this machine's that a subcommand writes, also where the machine that is driven is a simulated one.
enum OutputFile {
  /// Says whether a file can be written, before there is anything to write. What it has stays; one that is not there stays away.
  static func prepare(_ path: String, _ operation: String) throws(Failure) {
    try library { () throws(DMAError) in
      do throws(Errno) { try tryOut(path) } catch { throw .file(operation, path, error) }
    }
  }

  /// Writes a file, in the place of what is there: all of it, or nothing.
  static func write(_ bytes: [UInt8], _ path: String, _ operation: String) throws(Failure) {
    try library { () throws(DMAError) in
      do throws(Errno) { try store(bytes, path) } catch { throw .file(operation, path, error) }
    }
  }

  /// Whether two paths lead to one file: what is written to the one would be gone from the other. Devices and pipes hold nothing.
  static func isSame(_ path: String, _ other: String) -> Bool {
    guard let one = status(path), let two = status(other), isRegular(one) else { return false }
    return one.device == two.device && one.inode == two.inode
  }

  /// nil when there is none.
  private static func status(_ path: String) -> ci_file_status? {
    var found = ci_file_status()
    return unsafe ci_stat(path, &found) < 0 ? nil : found
  }

  private static func isRegular(_ status: ci_file_status) -> Bool { status.mode & S_IFMT == S_IFREG }

  private static func openToWrite(_ path: String, _ flags: Int32) throws(Errno) -> Int32 {
    Int32(try check(Int(unsafe open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0o644))))
  }

  private static func tryOut(_ path: String) throws(Errno) {
    do throws(Errno) {
      close(try openToWrite(path, O_EXCL))
      unsafe unlink(path)
    } catch {
      if error != .exists { throw error }
      close(try openToWrite(path, 0))
    }
  }

  /// Into a file beside it that takes its place when it is whole; into the file itself where there can be none, or where what is
  /// there is no file.
  private static func store(_ bytes: [UInt8], _ path: String) throws(Errno) {
    let old = status(path)
    if let old, !isRegular(old) { return try fill(try openToWrite(path, 0), bytes) }
    // A link stays, and leads to the new file.
    let place = old == nil ? path : resolved(path)
    let draft = "\(place).\(getpid())~"
    guard let descriptor = try? openToWrite(draft, O_EXCL) else {
      return try fill(try openToWrite(path, O_TRUNC), bytes)
    }
    do throws(Errno) {
      if let old {
        // Whose it is first, as that clears bits of the mode.
        _ = fchown(descriptor, old.uid, old.gid)
        fchmod(descriptor, old.mode & 0o7777)
      }
      try fill(descriptor, bytes)
      _ = try check(Int(unsafe rename(draft, place)))
    } catch {
      unsafe unlink(draft)
      throw error
    }
  }

  /// A path without links.
  private static func resolved(_ path: String) -> String {
    guard let text = unsafe realpath(path, nil) else { return path }
    defer { unsafe free(text) }
    return unsafe String(cString: text)
  }

  private static func fill(_ descriptor: Int32, _ bytes: [UInt8]) throws(Errno) {
    defer { close(descriptor) }
    var rest = bytes[...]
    while !rest.isEmpty {
      let count = try check(
        unsafe rest.withUnsafeBytes { unsafe Glibc.write(descriptor, $0.baseAddress, $0.count) })
      rest = rest.dropFirst(count)
    }
  }

  /// The result of a call, or what errno says.
  static func check(_ result: Int) throws(Errno) -> Int {
    if result < 0 { throw Errno(rawValue: errno) }
    return result
  }
}

extension DMAError {
  /// A file that cannot be read or written.
  static func file(_ operation: String, _ path: String, _ error: Errno) -> DMAError {
    let isRefused = error == .accessDenied || error == .notPermitted || error == .readOnly
    return DMAError(isRefused ? .permission : .system, operation, errno: error, detail: path)
  }
}
