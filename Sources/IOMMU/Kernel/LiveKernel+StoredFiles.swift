import CIOMMU

extension LiveKernel {
  package func storeFile(_ path: String, _ text: String) throws(Errno) {
    try makeDirectories(above: root + path)
    // Written beside it and moved over it, so that a reader never sees a part.
    let new = "\(root)\(path).new"
    let flags = CI_O_WRONLY | CI_O_CREAT | CI_O_TRUNC | CI_O_NOFOLLOW
    let descriptor = try check(unsafe ci_open(new, flags, 0o644))
    do throws(Errno) {
      defer { _ = ci_close(descriptor) }
      var text = text
      let count = text.utf8.count
      let done = try check(
        text.withUTF8 { utf8 in
          guard let base = utf8.baseAddress else { return 0 }
          return unsafe ci_write(descriptor, base, UInt64(count))
        })
      if done != count { throw .noSpace }
      try check(unsafe ci_rename(new, root + path))
    } catch {
      _ = unsafe ci_unlink(new)
      throw error
    }
  }

  package func removeFile(_ path: String) throws(Errno) { try check(unsafe ci_unlink(root + path)) }

  private func makeDirectories(above path: String) throws(Errno) {
    var end = path.startIndex
    while let slash = path[path.index(after: end)...].firstIndex(of: "/") {
      end = slash
      do throws(Errno) { try check(unsafe ci_mkdir(String(path[..<slash]), 0o755)) } catch {
        guard error == .exists else { throw error }
      }
    }
  }
}
