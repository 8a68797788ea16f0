import CIOMMU

extension LiveKernel {
  package func readFile(_ path: String) throws(Errno) -> [UInt8] {
    // Without waiting: a named pipe in a captured tree would otherwise never answer.
    let descriptor = try check(unsafe ci_open(root + path, CI_O_RDONLY | CI_O_NONBLOCK, 0))
    defer { _ = ci_close(descriptor) }
    // sysfs and procfs do not tell lengths: read until the end, bounded.
    var bytes = try readPiece(descriptor), hasMore = !bytes.isEmpty
    while hasMore, bytes.count < 16 << 20 {
      let piece = try readPiece(descriptor)
      bytes += piece
      hasMore = !piece.isEmpty
    }
    return bytes
  }

  /// At most a page, which is as much as sysfs writes.
  private func readPiece(_ descriptor: Int32) throws(Errno) -> [UInt8] {
    var done: Int64 = 0
    let piece = unsafe [UInt8](unsafeUninitializedCapacity: 4096) { buffer, count in
      done = unsafe ci_read(descriptor, buffer.baseAddress!, UInt64(buffer.count))
      count = max(0, Int(done))
    }
    try check(done)
    return piece
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
    let result: Result<[String], Errno> = unsafe withUnsafeTemporaryAllocation(
      byteCount: 32 << 10, alignment: 16
    ) { buffer in
      var names: [String] = []
      while true {
        let size = unsafe ci_directory_read(descriptor, buffer.baseAddress!, UInt64(buffer.count))
        if size < 0 { return .failure(Errno(rawValue: Int32(truncatingIfNeeded: -size))) }
        if size == 0 { return .success(names) }
        var offset: UInt64 = 0, type: UInt32 = 0
        while let name = unsafe ci_directory_next(buffer.baseAddress!, UInt64(size), &offset, &type) {
          unsafe names.append(String(cString: name))
        }
      }
    }
    return try result.get().sorted()
  }

  package func readLink(_ path: String) throws(Errno) -> String {
    let result: Result<String, Errno> = unsafe withUnsafeTemporaryAllocation(of: CChar.self, capacity: 4096) {
      let length = unsafe ci_readlink(root + path, $0.baseAddress!, UInt64($0.count))
      if length < 0 { return .failure(Errno(rawValue: Int32(truncatingIfNeeded: -length))) }
      let bytes = unsafe UnsafeRawBufferPointer(start: $0.baseAddress!, count: Int(length))
      return .success(unsafe String(decoding: bytes, as: UTF8.self))
    }
    return try result.get()
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
    try check(
      unsafe ci_faccessat(CI_AT_FDCWD, root + path, write ? CI_R_OK | CI_W_OK : CI_R_OK, CI_AT_EACCESS))
  }

  package func open(_ path: String) throws(Errno) -> Int32 {
    try check(unsafe ci_open(root + path, CI_O_RDWR, 0))
  }

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
