import Glibc
import IOMMU

/// Traces in files of this machine's, also where the machine that is driven is a simulated one.
enum TraceFile {
  /// The longest that is read: some 20 million operations.
  static let byteCount = 1 << 29

  static func read(_ path: String) throws(Failure) -> Trace {
    let bytes = try library { () throws(DMAError) -> [UInt8] in
      do throws(Errno) { return try contents(path) } catch { throw failed("read trace", path, error) }
    }
    do throws(TraceError) { return try TraceText.parse(bytes) } catch { throw .trace(path, error) }
  }

  static func write(_ trace: Trace, _ path: String) throws(Failure) {
    let bytes = TraceText.text(of: trace)
    try library { () throws(DMAError) in
      do throws(Errno) { try store(bytes, path) } catch { throw failed("write trace", path, error) }
    }
  }

  private static func failed(_ operation: String, _ path: String, _ error: Errno) -> DMAError {
    let isRefused = error == .accessDenied || error == .notPermitted || error == .readOnly
    return DMAError(isRefused ? .permission : .system, operation, errno: error, detail: path)
  }

  private static func contents(_ path: String) throws(Errno) -> [UInt8] {
    // Without waiting for the other end of a named pipe.
    let descriptor = try check(Int(unsafe open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)))
    defer { close(Int32(descriptor)) }
    var bytes: [UInt8] = []
    while true {
      var piece = [UInt8](repeating: 0, count: 1 << 20)
      let count = try check(
        unsafe piece.withUnsafeMutableBytes { unsafe Glibc.read(Int32(descriptor), $0.baseAddress, $0.count) })
      if count == 0 { return bytes }
      bytes += piece[..<count]
      if bytes.count > byteCount { throw .tooBig }
    }
  }

  private static func store(_ bytes: [UInt8], _ path: String) throws(Errno) {
    let descriptor = try check(Int(unsafe open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)))
    defer { close(Int32(descriptor)) }
    var rest = bytes[...]
    while !rest.isEmpty {
      let count = try check(
        unsafe rest.withUnsafeBytes { unsafe Glibc.write(Int32(descriptor), $0.baseAddress, $0.count) })
      rest = rest.dropFirst(count)
    }
  }

  private static func check(_ result: Int) throws(Errno) -> Int {
    if result < 0 { throw Errno(rawValue: errno) }
    return result
  }
}
