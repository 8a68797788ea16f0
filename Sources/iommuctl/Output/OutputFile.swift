import Glibc
import IOMMU

/// Files of this machine's that a subcommand writes, also where the machine that is driven is a simulated one.
enum OutputFile {
  /// Says whether a file can be written, before there is anything to write. What it has stays; one that is not there is made.
  static func prepare(_ path: String, _ operation: String) throws(Failure) {
    try library { () throws(DMAError) in
      do throws(Errno) { close(try openToWrite(path, 0)) } catch { throw .file(operation, path, error) }
    }
  }

  /// Writes a file, in the place of what is there.
  static func write(_ bytes: [UInt8], _ path: String, _ operation: String) throws(Failure) {
    try library { () throws(DMAError) in
      do throws(Errno) { try store(bytes, path) } catch { throw .file(operation, path, error) }
    }
  }

  private static func openToWrite(_ path: String, _ flags: Int32) throws(Errno) -> Int32 {
    Int32(try check(Int(unsafe open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0o644))))
  }

  private static func store(_ bytes: [UInt8], _ path: String) throws(Errno) {
    let descriptor = try openToWrite(path, O_TRUNC)
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
