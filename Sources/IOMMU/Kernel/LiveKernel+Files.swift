import CIOMMU

extension LiveKernel {
  package func readFile(_ path: String) throws(Errno) -> [UInt8] {
    let descriptor = try check(unsafe ci_open(root + path, CI_O_RDONLY, 0))
    defer { _ = ci_close(descriptor) }
    var bytes: [UInt8] = []
    // sysfs and procfs do not tell lengths: read until the end, bounded.
    let piece = 4096, limit = 16 << 20
    while bytes.count < limit {
      var part = [UInt8](repeating: 0, count: piece)
      let done = try check(unsafe part.withUnsafeMutableBytes { unsafe ci_read(descriptor, $0.baseAddress!, UInt64(piece)) })
      if done == 0 { break }
      bytes += part.prefix(Int(done))
    }
    return bytes
  }

  package func writeFile(_ path: String, _ text: String) throws(Errno) {
    let descriptor = try check(unsafe ci_open(root + path, CI_O_WRONLY, 0))
    defer { _ = ci_close(descriptor) }
    var text = text
    let count = text.utf8.count
    let done = try check(text.withUTF8 { unsafe ci_write(descriptor, $0.baseAddress!, UInt64(count)) })
    if done != count { throw .inputOutput }
  }

  package func listDirectory(_ path: String) throws(Errno) -> [String] {
    let descriptor = try check(unsafe ci_open(root + path, CI_O_RDONLY | CI_O_DIRECTORY, 0))
    defer { _ = ci_close(descriptor) }
    var names: [String] = []
    var buffer = [UInt8](repeating: 0, count: 32 << 10)
    while true {
      let size = try check(unsafe buffer.withUnsafeMutableBytes { unsafe ci_directory_read(descriptor, $0.baseAddress!, UInt64($0.count)) })
      if size == 0 { break }
      unsafe buffer.withUnsafeBytes { bytes in
        var offset: UInt64 = 0, type: UInt32 = 0
        while let name = unsafe ci_directory_next(bytes.baseAddress!, UInt64(size), &offset, &type) {
          unsafe names.append(String(cString: name))
        }
      }
    }
    return names.sorted()
  }

  package func readLink(_ path: String) throws(Errno) -> String {
    var buffer = [CChar](repeating: 0, count: 4096)
    let length = try check(unsafe buffer.withUnsafeMutableBufferPointer { unsafe ci_readlink(root + path, $0.baseAddress!, UInt64($0.count)) })
    return String(decoding: buffer.prefix(Int(length)).map { UInt8(bitPattern: $0) }, as: UTF8.self)
  }

  package func status(_ path: String) throws(Errno) -> FileStatus {
    var status = ci_file_status()
    try check(unsafe ci_stat(root + path, &status))
    let kind: FileStatus.Kind =
      switch status.mode & 0o170000 {
      case 0o100000: .regular
      case 0o040000: .directory
      case 0o020000: .characterDevice
      default: .other
      }
    return FileStatus(kind: kind, mode: status.mode & 0o7777, owner: status.uid, group: status.gid)
  }

  package func checkAccess(_ path: String, write: Bool) throws(Errno) {
    try check(unsafe ci_faccessat(CI_AT_FDCWD, root + path, write ? CI_R_OK | CI_W_OK : CI_R_OK, CI_AT_EACCESS))
  }

  package func open(_ path: String) throws(Errno) -> Int32 { try check(unsafe ci_open(root + path, CI_O_RDWR, 0)) }

  package func close(_ descriptor: Int32) { _ = ci_close(descriptor) }

  package func pread(
    _ descriptor: Int32, _ buffer: UnsafeMutableRawBufferPointer, at offset: UInt64
  ) throws(Errno) -> Int {
    guard let base = buffer.baseAddress else { return 0 }
    return Int(try check(unsafe ci_pread(descriptor, base, UInt64(buffer.count), offset)))
  }

  package func pwrite(
    _ descriptor: Int32, _ buffer: UnsafeRawBufferPointer, at offset: UInt64
  ) throws(Errno) -> Int {
    guard let base = buffer.baseAddress else { return 0 }
    return Int(try check(unsafe ci_pwrite(descriptor, base, UInt64(buffer.count), offset)))
  }
}
