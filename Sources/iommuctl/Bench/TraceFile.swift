import CIOMMU
import Glibc
import IOMMU

/// Traces in files of this machine's, also where the machine that is driven is a simulated one.
enum TraceFile {
  /// The longest that is read: some 20 million operations.
  static let byteCount = 1 << 29

  static func read(_ path: String) throws(Failure) -> Trace {
    let bytes = try library { () throws(DMAError) -> [UInt8] in
      do throws(Errno) { return try contents(path) } catch {
        guard error == .tooBig else { throw .file("read trace", path, error) }
        throw DMAError(
          .invalidArgument, "read trace", detail: "\(path) is longer than a trace may be, \(byteCount) bytes",
          remedy: "Record fewer operations")
      }
    }
    do throws(TraceError) { return try TraceText.parse(bytes) } catch { throw .trace(path, error) }
  }

  static func write(_ trace: Trace, _ path: String) throws(Failure) {
    try OutputFile.write(TraceText.text(of: trace), path, "write trace")
  }

  /// Waits for the other end of a named pipe, and for what it writes.
  private static func contents(_ path: String) throws(Errno) -> [UInt8] {
    let descriptor = Int32(try OutputFile.check(Int(unsafe open(path, O_RDONLY | O_CLOEXEC))))
    defer { close(descriptor) }
    var status = ci_file_status()
    if unsafe ci_fstat(descriptor, &status) == 0, status.size > byteCount { throw .tooBig }
    var bytes: [UInt8] = []
    while true {
      var piece = [UInt8](repeating: 0, count: 1 << 20)
      let count = try OutputFile.check(
        unsafe piece.withUnsafeMutableBytes { unsafe Glibc.read(descriptor, $0.baseAddress, $0.count) })
      bytes += piece[..<count]
      // What has no line is no trace, and may have no end either: the parser says so of what is there.
      if count == 0 || !TraceText.hasLine(bytes) { return bytes }
      if bytes.count > byteCount { throw .tooBig }
    }
  }
}
