import Glibc
import IOMMU

/// Traces in files of this machine's, also where the machine that is driven is a simulated one.
enum TraceFile {
  /// The longest that is read: some 20 million operations.
  static let byteCount = 1 << 29

  static func read(_ path: String) throws(Failure) -> Trace {
    let bytes = try library { () throws(DMAError) -> [UInt8] in
      do throws(Errno) { return try contents(path) } catch { throw .file("read trace", path, error) }
    }
    do throws(TraceError) { return try TraceText.parse(bytes) } catch { throw .trace(path, error) }
  }

  static func write(_ trace: Trace, _ path: String) throws(Failure) {
    try OutputFile.write(TraceText.text(of: trace), path, "write trace")
  }

  private static func contents(_ path: String) throws(Errno) -> [UInt8] {
    // Without waiting for the other end of a named pipe.
    let descriptor = try OutputFile.check(Int(unsafe open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)))
    defer { close(Int32(descriptor)) }
    var bytes: [UInt8] = []
    while true {
      var piece = [UInt8](repeating: 0, count: 1 << 20)
      let count = try OutputFile.check(
        unsafe piece.withUnsafeMutableBytes { unsafe Glibc.read(Int32(descriptor), $0.baseAddress, $0.count) })
      if count == 0 { return bytes }
      bytes += piece[..<count]
      if bytes.count > byteCount { throw .tooBig }
    }
  }
}
